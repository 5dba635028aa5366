//! Deciding what is streamed and how much memory that gets.
//!
//! This layer knows tensors, roles and bytes. Which tensors the host keeps in its own memory is the host's choice
//! (`-ngl`, `--cpu-moe`, `-ot`): the plan divides only what would be in RAM.
//!
//! [`decide`] and [`distribute`] are what a session runs by. Beside them, [`problem_of`] and [`solve`] find where everything is best,
//! and predict how fast that is: see `docs/PLANNING.md`.

mod budget;
mod decide;
mod division;
mod explain;
mod learned;
mod linear;
mod micro_batch;
mod miss;
mod model;
mod problem;
mod refine;
mod relax;
mod ring;
mod role;
mod simulate;
mod solve;

#[cfg(test)]
mod solve_tests;

pub use budget::{SlotClass, distribute, minimum_bytes};
pub use decide::{Mode, Plan, WORKING_BYTES, decide};
pub use division::{Keeping, divide};
pub use learned::{Learned, Measured};
pub use micro_batch::micro_batch;
pub use miss::MissCurve;
pub use model::{Circumstances, Frequencies, problem_of};
pub use problem::{Item, Machine, Problem, Seat, TierBytes, Usage};
pub use ring::{Pass, Step, pinned};
pub use role::{Role, layer_of, rank_in_layer, role_of};
pub use simulate::{Limit, Prediction, simulate};
pub use solve::{Solution, solve, speed_by_ram};

/// Bytes for people.
pub fn in_gigabytes(bytes: u64) -> String {
    if bytes < 1 << 30 {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
    }
}
