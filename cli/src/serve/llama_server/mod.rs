//! llama-server: its process, which model it has loaded, requests to it, its answers, and why it fails.

pub mod child;
pub mod failures;
pub mod generation;
pub mod loader;
pub mod sse;
pub mod tool_calls;
pub mod upstream;
