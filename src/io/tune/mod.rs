//! How to read from a drive: engine, block size, depth, direct or through the page cache.

mod probe;
mod search;
mod store;

pub use probe::{Limit, ReadSpeed, destination, destination_bytes_min, measure};
pub use search::tune;

use super::EngineKind;

/// How to read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// The engine.
    pub engine: EngineKind,
    /// Bytes of one system call at most; a power of two, at least any file's alignment.
    pub block_bytes: usize,
    /// System calls in flight at once.
    pub depth: usize,
    /// Past the page cache.
    pub direct: bool,
    /// What that reached, where it was measured.
    pub bytes_per_second: Option<f64>,
    /// What a small read takes beyond its bytes, where it was measured.
    pub read_overhead_seconds: Option<f64>,
}

impl std::fmt::Display for Tuning {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { block_bytes, depth, .. } = self;
        let mode = if self.direct { "direct" } else { "buffered" };
        write!(formatter, "{}, {} KiB blocks, depth {depth}, {mode}", self.engine.name(), block_bytes >> 10)
    }
}
