//! Replays recorded expert routing: what a policy or a predictor would have reached on a trace.
//!
//! The way through: [`Trace`] reads what `HYPURA_TRACE` writes, [`simulate`] plays it against a policy and a number of
//! slots, [`Belady`] is the policy that knows the future. [`compare`] does all of it, for a table. [`profile_recall`]
//! measures how well the usage profile predicts a trace, [`warm_start`] what it spares a text at its start.

mod belady;
mod compare;
mod recall;
mod simulate;
mod trace;
mod warm;

#[cfg(test)]
mod tests;

pub use belady::Belady;
pub use compare::{Row, SHARES, compare};
pub use recall::{ProfileRecall, Recall, profile_recall};
pub use simulate::{Outcome, simulate};
pub use trace::{ExpertUse, LayerUse, Pass, Trace};
pub use warm::{WARM_TOKENS, WarmStart, warm_start};
