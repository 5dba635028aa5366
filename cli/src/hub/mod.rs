//! Models that are not on this machine: a repository of the Hugging Face hub (`hf:OWNER/REPO[:QUANTISATION]`), or a
//! file behind an address. Headers are read by HTTP range requests, and whole files into the cache that other programs
//! share.
//!
//! The way of a model: `source` reads what was written, `client` speaks HTTP, `listing` asks what a repository holds,
//! `variants` sorts that into models, `header` reads a model's header, `cache` knows where files belong, `download`
//! brings them there.

pub mod cache;
pub mod client;
pub mod download;
mod extent;
pub mod header;
pub mod listing;
pub mod source;
pub mod variants;

#[cfg(test)]
pub mod test_hub;
