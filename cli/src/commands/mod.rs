//! One file a subcommand: its arguments, and what it prints.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod inspect;
pub mod man;
pub mod plan;
mod plan_remote;
pub mod profile;
pub mod pull;
pub mod replay;
pub mod run;
pub mod serve;
