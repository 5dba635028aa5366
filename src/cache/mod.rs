//! Slots: the RAM that holds streamed weights.
//!
//! This layer knows blocks by number and slots by number; it does not know files or tensors. A *block* is a stretch of
//! weights that is read and used as a whole (a dense tensor, or one expert of an expert tensor). A *slot* is room for
//! one block. Slots of one size form a [`Pool`]; blocks of another size live in another pool, so no room is lost to
//! fragmentation.
//!
//! Invariants, all guarded by the one lock that the owner keeps the pools behind:
//! 1. A slot is Empty, Loading, Draining, Failed or Ready. Only a Ready slot's bytes are ever handed out.
//! 2. `users` counts the fetches that hold or await a slot. A slot with users, Loading or Draining, is never given away;
//!    a Failed one is Empty when its last user leaves.
//! 3. A Ready slot without users is either in `prefetched` (read ahead, not asked for yet) or evictable: the pool's
//!    [`policy`] knows it, and says who goes first. All other slots are neither, unless Empty: then in `empty`. A slot that was
//!    *closed*, because memory ran short, is in none of them and gets no block.
//! 4. A read ahead of need takes an empty or an evictable slot, never another's; a demand read takes those first, and
//!    then the speculative prefetch made last, so a ring full of speculative prefetches can never starve a demand.
//! 5. A slot whose block the host also keeps elsewhere, in the memory of a GPU, goes before all others but empty ones: nothing has to be
//!    read again for it. Where it would be evictable it is in `copied`, and unknown to the policy.

mod list;
pub mod policy;
mod pool;

pub use pool::{NewBlock, Pool, SlotCount, SlotState, TakeFor, WaiterSet};
