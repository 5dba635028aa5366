//! One file a subcommand: what it prints and what it calls.

pub mod serve;
