//! Reading experts before the router has chosen them: what the predictors in `predict` name, read while the drive would idle.
//!
//! [`Predictor`] is the thread that applies the next layer's router early, [`Speculation`] what was named and read, [`ProfileKeeper`] the thread
//! that keeps a model's usage profile between runs and reads the experts that earlier runs used most.

mod predictor;
mod prefetch;
mod profile_keeper;

pub(super) use predictor::{LOOK_AHEAD_ROWS_MAX, Predictor, Seen};
pub(super) use prefetch::Speculation;
pub(super) use profile_keeper::ProfileKeeper;
