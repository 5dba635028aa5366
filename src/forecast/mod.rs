//! How fast a model will run, and why: advice for people. Nothing here moves a byte.
//!
//! [`problem_of`] puts a model and a machine into figures, [`simulate`] plays a token through a placement, [`Learned`]
//! corrects that by what earlier runs reached. [`divide`] describes the placement that a session runs with; [`solve`]
//! finds the best that there could be. See `docs/PLANNING.md`.

mod bandwidth;
mod division;
mod explain;
mod kernels;
mod learned;
mod linear;
mod miss;
mod model;
mod pace;
mod problem;
mod refine;
mod relax;
mod simulate;
mod solve;

#[cfg(test)]
mod solve_tests;

pub use bandwidth::{measure_memory, measure_memory_bandwidth, memory_bandwidth};
pub use division::{Keeping, divide};
pub use kernels::Kernels;
pub use learned::{Learned, Measured};
pub use miss::MissCurve;
pub use model::{Circumstances, Frequencies, Lookup, problem_of};
pub(crate) use pace::Pace;
pub use problem::{Item, Machine, Problem, Seat, TierBytes, Usage};
pub use simulate::{Limit, Prediction, simulate};
pub use solve::{Solution, solve, speed_by_ram};
