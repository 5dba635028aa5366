//! The memory that stays free.

use crate::hw::MemoryReport;

/// What should stay free beside everything else, in bytes: room to breathe that grows with the machine.
pub fn margin_bytes(memory: &MemoryReport) -> u64 {
    const LEAST_BYTES: u64 = 64 << 20;
    const MOST_BYTES: u64 = 1 << 30;
    (LEAST_BYTES + memory.limit_bytes / 16).min(MOST_BYTES)
}
