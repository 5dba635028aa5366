//! Memory: where slots live, how much of it models may have, and what others want of it.
//!
//! Slots lie in a [`Backing`], such as an [`Arena`]. The governor divides what there is among the models of this process ([`share`]), keeps a
//! margin free and watches it ([`Control`]). It knows a model only as a [`Tenant`].
//! What other processes of this user hold is known from the records that they keep (`neighbours.rs`), so that each gets the same.

mod arena;
mod backing;
mod control;
mod crowding;
mod governor;
mod margin;
mod neighbours;
mod share;
mod slabs;
mod taken;

pub use arena::Arena;
pub use backing::Backing;
pub use control::{Change, Control, Reading};
pub use governor::{
    Admission, MappedWeights, Membership, Refusal, Tenant, admit, check_load, join, make_room, make_room_to_load,
    memory_for_another,
};
pub use margin::margin_bytes;
pub use share::{Claim, share};
pub use slabs::{HostMemory, Slabs};
