//! Reading experts before the router has chosen them: what the predictors in `predict` name, read while the drive would idle.
//!
//! [`Foresight`] is the thread that applies the next layer's router early, [`Guesses`] what was named and read, [`Keeper`] the thread
//! that keeps a model's habits between runs and reads the experts that earlier runs used most.

mod foresight;
mod guesses;
mod keeper;

pub(super) use foresight::{Foresight, LOOK_AHEAD_ROWS_MAX, Seen};
pub(super) use guesses::Guesses;
pub(super) use keeper::Keeper;
