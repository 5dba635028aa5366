//! Ollama's API: a file an endpoint, and what they translate.

pub mod account;
pub mod answer;
pub mod capabilities;
pub mod chat;
pub mod choice;
pub mod embed;
pub mod generate;
pub mod images;
pub mod messages;
pub mod models;
pub mod options;
pub mod prompt_template;
pub mod pull;
pub mod shorten;
pub mod unsupported;
