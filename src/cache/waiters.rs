//! Who waits for a slot.

use crate::index::WaiterId;

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
