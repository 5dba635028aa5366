//! llama-server: its process, which model it has loaded, requests to it and its answers.

pub mod child;
pub mod generation;
pub mod loader;
pub mod sse;
pub mod tool_calls;
pub mod upstream;
