//! How fast a placement of a model is, and why.
//!
//! [`problem_of`] puts a model and a machine into figures, [`simulate`] plays a token through a placement, [`Learned`]
//! corrects that by what earlier runs reached. Which placement runs is [`crate::placement`]'s choice. See `docs/PLANNING.md`.

mod bandwidth;
mod cost;
mod kernels;
mod learned;
mod miss;
mod model;
mod pace;
mod problem;
mod simulate;
mod simulator;

pub use bandwidth::{measure_memory, measure_memory_bandwidth, memory_bandwidth};
pub(crate) use cost::Cost;
pub use kernels::Kernels;
pub use learned::{Learned, Measured};
pub use miss::MissCurve;
pub use model::{Lookup, problem_of};
pub(crate) use pace::Pace;
pub use problem::{Item, Machine, Problem, Residency, TierBytes, Usage};
pub use simulate::{Limit, Prediction, simulate};
pub(crate) use simulator::simulated_pass;
