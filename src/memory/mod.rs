//! Memory: where slots live, how much of it models may have, and what others want of it.
//!
//! Slots lie in a [`Backing`], such as an [`Arena`]. The governor divides what there is among the models of this process ([`share`]), keeps a
//! margin free and watches it ([`Control`]). It knows a model only as a [`Tenant`].

mod arena;
mod backing;
mod control;
mod governor;
mod margin;
mod share;

pub use arena::Arena;
pub use backing::Backing;
pub use control::{Change, Control, Reading};
pub use governor::{MappedWeights, Membership, Tenant, admit, join, make_room, memory_for_another};
pub use margin::margin_bytes;
pub use share::{Claim, share};
