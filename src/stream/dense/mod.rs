//! What a dense pass does: it uses every block once, always in the same order.
//!
//! [`Order`] learns that order, along which blocks are read ahead (`super::ahead`); [`Pins`] chooses those that stay in their slots, and
//! the others flow through a few.

mod order;
mod pins;

pub(super) use order::{Order, Walk};
pub(super) use pins::Pins;
