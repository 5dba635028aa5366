//! Deciding what is streamed and how much memory that gets.
//!
//! This layer knows tensors, roles and bytes. Which tensors the host keeps in its own memory is the host's choice
//! (`-ngl`, `--cpu-moe`, `-ot`): the plan divides only what would be in RAM.
//!
//! [`decide`] chooses what is streamed. How the memory is divided among it, [`crate::placement`] finds, by the rule of [`distribute`] or
//! better.

mod budget;
mod decide;
mod micro_batch;
mod place;
mod ring;
mod vram;

pub use budget::{SlotClass, bytes_for_tables, distribute, minimum_bytes, tables_claim};
pub use decide::{Mode, Plan, WORKING_BYTES, decide};
pub use micro_batch::micro_batch;
pub use place::{Place, usual_place};
pub use ring::{FIRST_RING, Pass, Step, pinned};
pub use vram::{vram_budget, vram_budget_now};

/// Bytes for people: MiB below 1 GiB, else GiB.
pub fn in_gigabytes(bytes: u64) -> String {
    if bytes < 1 << 30 {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
    }
}
