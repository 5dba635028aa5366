//! The slots of one size: who is where, who may go, who goes next.

use super::arena::Arena;
use super::list::{Links, List};
use crate::error::Result;
use crate::io::Priority;

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing.
    Empty,
    /// A read is writing to it.
    Loading,
    /// All bytes of its block.
    Ready,
}

/// A set of fetches, to wake exactly those that wait. Fetches beyond the 63rd share the last bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Members(u64);

impl Members {
    const SHARED: u32 = u64::BITS - 1;

    /// The number of distinct members.
    pub const COUNT: usize = u64::BITS as usize;

    /// Adds a member.
    pub fn insert(&mut self, member: u32) {
        self.0 |= 1 << member.min(Self::SHARED);
    }

    /// Takes a member out; the shared one stays, since another fetch may be meant.
    pub fn remove(&mut self, member: u32) {
        if member < Self::SHARED {
            self.0 &= !(1 << member);
        }
    }

    /// Adds all of another set's.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// The smallest number that is not in the set, or the shared one.
    pub fn first_free(self) -> u32 {
        (!self.0).trailing_zeros().min(Self::SHARED)
    }

    /// The members, smallest first.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..Self::COUNT).filter(move |bit| self.0 >> bit & 1 == 1)
    }
}

#[derive(Clone, Debug)]
struct Slot {
    block: usize,
    state: SlotState,
    users: u32,
    members: Members,
    /// Read ahead and not asked for since.
    guess: bool,
    /// Never evicted.
    permanent: bool,
    /// Where the block's first byte is within the slot.
    lead: usize,
}

/// Slots of one size. See the module's invariants.
#[derive(Debug)]
pub struct Pool {
    arena: Arena,
    slot_bytes: usize,
    slots: Vec<Slot>,
    links: Links,
    empty: Vec<usize>,
    used: List,
    guessed: List,
}

impl Pool {
    /// Reserves `slot_count` slots of `slot_bytes`.
    ///
    /// # Errors
    /// `Resource` when the system refuses the memory.
    pub fn new(slot_bytes: usize, slot_count: usize) -> Result<Self> {
        let slot = Slot {
            block: 0,
            state: SlotState::Empty,
            users: 0,
            members: Members::default(),
            guess: false,
            permanent: false,
            lead: 0,
        };
        Ok(Self {
            arena: Arena::new(slot_bytes * slot_count)?,
            slot_bytes,
            slots: vec![slot; slot_count],
            links: Links::new(slot_count),
            empty: (0..slot_count).rev().collect(),
            used: List::new(),
            guessed: List::new(),
        })
    }

    /// How many slots there are.
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of slots that were never used: reserved, but not yet taken from the system.
    pub fn untouched_bytes(&self) -> u64 {
        (self.empty.len() * self.slot_bytes) as u64
    }

    /// Takes a slot for a block and marks it Loading. Returns it with the block that lost it, if one did; `None` when
    /// every slot is in use, or, for a speculative read, not worth taking.
    pub fn take(&mut self, block: usize, lead: usize, priority: Priority) -> Option<(usize, Option<usize>)> {
        let (slot, evicted) = match self.empty.pop() {
            Some(slot) => (slot, None),
            None => {
                let slot = self.victim(priority)?;
                (slot, Some(self.slots[slot].block))
            }
        };
        let guess = priority == Priority::Speculative;
        self.slots[slot] = Slot {
            block,
            state: SlotState::Loading,
            users: 0,
            members: Members::default(),
            guess,
            permanent: false,
            lead,
        };
        Some((slot, evicted))
    }

    fn victim(&mut self, priority: Priority) -> Option<usize> {
        if let Some(slot) = self.used.front() {
            self.used.remove(&mut self.links, slot);
            return Some(slot);
        }
        if priority == Priority::Speculative {
            return None;
        }
        let slot = self.guessed.back()?;
        self.guessed.remove(&mut self.links, slot);
        Some(slot)
    }

    /// The read into a Loading slot is complete. Returns who waits for it; nobody means that the slot may be taken.
    pub fn loaded(&mut self, slot: usize) -> Members {
        debug_assert_eq!(self.slots[slot].state, SlotState::Loading);
        self.slots[slot].state = SlotState::Ready;
        self.settle(slot);
        self.slots[slot].members
    }

    /// Adds a user: the slot stays until [`Self::leave`]. Says whether this is the first use of a block that was read
    /// ahead.
    pub fn join(&mut self, slot: usize, member: u32) -> bool {
        if self.is_listed(slot) {
            let list = if self.slots[slot].guess { &mut self.guessed } else { &mut self.used };
            list.remove(&mut self.links, slot);
        }
        let entry = &mut self.slots[slot];
        entry.users += 1;
        entry.members.insert(member);
        std::mem::replace(&mut entry.guess, false)
    }

    /// Takes a user away.
    pub fn leave(&mut self, slot: usize, member: u32) {
        let entry = &mut self.slots[slot];
        entry.users -= 1;
        entry.members.remove(member);
        if entry.users == 0 {
            entry.members = Members::default();
        }
        self.settle(slot);
    }

    /// Keeps the slot's block for good.
    pub fn make_permanent(&mut self, slot: usize) {
        debug_assert!(!self.is_listed(slot));
        self.slots[slot].permanent = true;
    }

    /// The state of a slot.
    pub fn state(&self, slot: usize) -> SlotState {
        self.slots[slot].state
    }

    /// The address of the slot's first byte: where a widened read goes.
    pub fn address(&self, slot: usize) -> *mut u8 {
        self.arena.at(slot * self.slot_bytes)
    }

    /// The address of the block's first byte.
    pub fn data(&self, slot: usize) -> *const u8 {
        self.address(slot).wrapping_add(self.slots[slot].lead)
    }

    /// The block in a slot.
    pub fn block(&self, slot: usize) -> usize {
        self.slots[slot].block
    }

    fn is_listed(&self, slot: usize) -> bool {
        let slot = &self.slots[slot];
        slot.state == SlotState::Ready && slot.users == 0 && !slot.permanent
    }

    fn settle(&mut self, slot: usize) {
        if self.is_listed(slot) {
            let list = if self.slots[slot].guess { &mut self.guessed } else { &mut self.used };
            list.push_back(&mut self.links, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pool: &mut Pool, block: usize, priority: Priority) -> Option<usize> {
        let (slot, _) = pool.take(block, 0, priority)?;
        pool.loaded(slot);
        Some(slot)
    }

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let mut pool = Pool::new(64, 3).unwrap();
        assert_eq!(pool.untouched_bytes(), 192);
        let slots: Vec<usize> = (0..3).map(|block| load(&mut pool, block, Priority::Demand).unwrap()).collect();
        assert_eq!(pool.untouched_bytes(), 0);
        pool.join(slots[0], 0);
        pool.leave(slots[0], 0);
        assert_eq!(pool.take(3, 0, Priority::Demand).unwrap(), (slots[1], Some(1)));
        assert_eq!(pool.take(4, 0, Priority::Demand).unwrap(), (slots[2], Some(2)));
        assert_eq!(pool.take(5, 0, Priority::Demand).unwrap(), (slots[0], Some(0)));
        assert_eq!(pool.take(6, 0, Priority::Demand), None, "a Loading slot is never given away");
    }

    #[test]
    fn a_slot_in_use_or_permanent_stays() {
        let mut pool = Pool::new(64, 2).unwrap();
        let used = load(&mut pool, 0, Priority::Demand).unwrap();
        pool.join(used, 0);
        pool.join(used, 0);
        pool.leave(used, 0);
        let (kept, _) = pool.take(1, 0, Priority::Demand).unwrap();
        pool.make_permanent(kept);
        pool.loaded(kept);
        assert_eq!(pool.take(2, 0, Priority::Demand), None);
        pool.leave(used, 0);
        assert_eq!(pool.take(2, 0, Priority::Demand), Some((used, Some(0))));
    }

    #[test]
    fn a_completed_read_names_those_that_wait_for_it() {
        let mut pool = Pool::new(64, 2).unwrap();
        let (slot, _) = pool.take(0, 0, Priority::Demand).unwrap();
        pool.join(slot, 3);
        pool.join(slot, 70);
        pool.join(slot, 5);
        pool.leave(slot, 5);
        assert_eq!(pool.loaded(slot).iter().collect::<Vec<_>>(), [3, 63]);
        let (other, _) = pool.take(1, 0, Priority::Speculative).unwrap();
        assert_eq!(pool.loaded(other), Members::default());
    }

    #[test]
    fn guesses_never_push_each_other_out_but_yield_to_demand_last_first() {
        let mut pool = Pool::new(64, 3).unwrap();
        let first = load(&mut pool, 0, Priority::Speculative).unwrap();
        let last = load(&mut pool, 1, Priority::Speculative).unwrap();
        let used = load(&mut pool, 2, Priority::Demand).unwrap();
        assert_eq!(pool.take(3, 0, Priority::Speculative).unwrap().0, used);
        pool.loaded(used);
        assert_eq!(pool.take(4, 0, Priority::Speculative), None);
        assert_eq!(pool.take(4, 0, Priority::Demand), Some((used, Some(3))));
        assert_eq!(pool.take(5, 0, Priority::Demand), Some((last, Some(1))));
        assert!(pool.join(first, 0), "the first use of a guess is reported");
        assert!(!pool.join(first, 0));
    }
}
