//! What a dense pass does: it uses every block once, always in the same order.
//!
//! [`Order`] learns that order, [`Pins`] chooses the blocks that stay in their slots, and `ahead` reads what comes next into the few
//! slots that the others flow through.

mod ahead;
mod order;
mod pins;

pub(super) use ahead::read_ahead;
pub(super) use order::{Order, Walk};
pub(super) use pins::Pins;
