//! Streams the weights of language models that are larger than memory: over RAM, and the drive that the model lies on.
//!
//! The C ABI in [`ffi`] (header `include/hypura.h`) is what hosts such as llama.cpp use; Rust programs use the modules
//! directly. `docs/ARCHITECTURE.md` tells how the parts fit together.

pub mod cache;
pub mod config;
pub mod discover;
pub mod error;
pub mod ffi;
pub mod fnv;
pub mod forecast;
pub mod gguf;
pub mod hw;
pub mod index;
pub mod io;
pub mod memory;
pub mod persist;
pub mod placement;
pub mod plan;
pub mod predict;
pub mod replay;
pub mod stats;
pub mod stream;

// The test models of the integration tests, which name this crate from outside, serve the unit tests as well.
#[cfg(test)]
extern crate self as hypura;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
