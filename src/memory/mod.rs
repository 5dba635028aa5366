//! Memory: where slots live, how much of it models may have, and what others want of it.
//!
//! Slots lie in a [`Backing`], such as an [`Arena`]. The governor divides what there is among the models of this process ([`share`]), keeps a
//! margin free and watches it ([`Control`]). It knows a model only as a [`Tenant`].
//! What other processes of this user hold is known from the records that they keep (`neighbours.rs`), so that each gets the same.

mod admission;
mod arena;
mod backing;
mod control;
mod crowding;
mod governor;
mod margin;
mod models;
mod neighbours;
mod share;
mod slabs;
mod taken;
mod touch;

pub use admission::{Admission, Refusal, admit, check_load, make_room, make_room_to_load, memory_for_another};
pub use arena::Arena;
pub use backing::Backing;
pub use control::{Change, Control, Reading};
pub use governor::{Membership, join};
pub use margin::margin_bytes;
pub use models::{MappedWeights, Tenant};
pub use share::{Claim, share};
pub use slabs::{HostMemory, Slabs};
pub use touch::{touch, yield_to_others};
