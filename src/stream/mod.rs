//! The running model: plans, then serves weights out of slots, reading what is missing.
//!
//! This is the only layer that knows all the others, and the only one that the C ABI talks to. A [`Session`] belongs to
//! one loaded model; a [`Fetch`] is one multiplication's demand for a tensor, or for some experts of one, delivered
//! as they become ready.
//!
//! The one rule above all: bytes are handed out only from a slot that is Ready, and a slot that someone holds is never
//! reused. A failed read fails every fetch that is under way. The next demand goes on if the files are what they were;
//! otherwise it fails with what is wrong with them, and so do all that follow, until that has passed.

mod ahead;
mod core;
mod demand;
mod dense;
mod device;
mod fetch;
mod first_touch;
#[cfg(test)]
mod invariants;
mod learner;
mod machine_at_load;
mod pass;
#[cfg(test)]
mod resize_tests;
mod rows;
mod running;
mod running_placement;
#[cfg(all(test, schedules))]
mod schedule_tests;
mod session;
mod slots;
mod speculation;
mod task;
mod tensors;
mod timeline;
mod trace;
mod verify;

pub use fetch::{Block, Fetch};
pub use session::Session;
pub use task::{Machine, foresee, least_bytes};
