//! A slot, what is known of it, and who waits for it.

use crate::index::{BlockId, SlotNumber, UnitId, WaiterId};

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing.
    Empty,
    /// A read is writing to it.
    Loading,
    /// A read that was broken off may still be writing to it; then it is Empty.
    Draining,
    /// The read failed. It is Empty once those that awaited it have left.
    Failed,
    /// All bytes of its block.
    Ready,
}

/// What a slot is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeFor {
    /// Someone waits for the block.
    Demand,
    /// It may be needed soon.
    Prefetch,
}

/// How many slots a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCount {
    /// To begin with.
    pub now: usize,
    /// However large it grows; costs addresses, not memory.
    pub most: usize,
}

/// A block that is to be read into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewBlock {
    /// Its number.
    pub block: BlockId,
    /// Its number in the pool's policy.
    pub unit: UnitId,
    /// The slot that it gets if that one is empty: blocks that all have a slot then lie in their own order.
    pub preferred_slot: SlotNumber,
    /// Where its first byte will be within the slot.
    pub head_padding: usize,
}

/// A slot of a pool.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) block: BlockId,
    pub(super) unit: UnitId,
    pub(super) state: SlotState,
    pub(super) users: u32,
    pub(super) waiters: WaiterSet,
    /// Read ahead and not asked for since.
    pub(super) is_prefetched: bool,
    /// Never evicted.
    pub(super) pinned: bool,
    /// The host has the block elsewhere, too.
    pub(super) copied: bool,
    /// Where the block's first byte is within the slot.
    pub(super) head_padding: usize,
    /// How often it was taken: tells a read into it from those before.
    pub(super) generation: u64,
    /// Whether the system has given the memory: a read has written here, or it was asked for ahead of that.
    pub(super) touched: bool,
    /// Closed, and without memory: it went back to the system, or was never asked for.
    pub(super) returned: bool,
    /// What a read ahead of need took the slot from. Its bytes stay until that read begins.
    pub(super) before: Option<Before>,
}

/// A block that lost its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    pub(super) block: BlockId,
    pub(super) unit: UnitId,
    pub(super) head_padding: usize,
}

impl Slot {
    /// Nothing was ever in it.
    pub(super) fn new() -> Self {
        Self {
            block: BlockId(0),
            unit: UnitId(0),
            state: SlotState::Empty,
            users: 0,
            waiters: WaiterSet::default(),
            is_prefetched: false,
            pinned: false,
            copied: false,
            head_padding: 0,
            generation: 0,
            touched: false,
            returned: false,
            before: None,
        }
    }

    /// The same slot, into which a block is to be read, which it got from the one `before`.
    pub(super) fn loading(&self, new: NewBlock, purpose: TakeFor, before: Option<Before>) -> Self {
        Self {
            block: new.block,
            unit: new.unit,
            state: SlotState::Loading,
            is_prefetched: purpose != TakeFor::Demand,
            head_padding: new.head_padding,
            generation: self.generation + 1,
            touched: self.touched,
            before,
            ..Self::new()
        }
    }
}

/// A set of fetches, to wake exactly those that wait. Fetches beyond the 63rd share the last bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaiterSet(u64);

impl WaiterSet {
    const SHARED: WaiterId = WaiterId(Self::COUNT - 1);

    /// The number of distinct members.
    pub const COUNT: usize = u64::BITS as usize;

    /// Adds a member.
    pub fn insert(&mut self, waiter: WaiterId) {
        self.0 |= 1 << waiter.min(Self::SHARED).0;
    }

    /// Takes a member out; the shared one stays, since another fetch may be meant.
    pub fn remove(&mut self, waiter: WaiterId) {
        if waiter < Self::SHARED {
            self.0 &= !(1 << waiter.0);
        }
    }

    /// Adds all of another set's.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// The smallest number that is not in the set, or the shared one.
    pub fn first_free(self) -> WaiterId {
        WaiterId((!self.0).trailing_zeros() as usize).min(Self::SHARED)
    }

    /// The members, smallest first.
    pub fn iter(self) -> impl Iterator<Item = WaiterId> {
        (0..Self::COUNT).filter(move |bit| self.0 >> bit & 1 == 1).map(WaiterId)
    }
}
