//! The slots of one size: who is where, who may go, who goes next.

use super::list::{Links, List};
use super::policy::{Policy, Position, Use};
use crate::error::Result;
use crate::memory::{Arena, Backing};

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

/// A set of fetches, to wake exactly those that wait. Fetches beyond the 63rd share the last bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaiterSet(u64);

impl WaiterSet {
    const SHARED: u32 = u64::BITS - 1;

    /// The number of distinct members.
    pub const COUNT: usize = u64::BITS as usize;

    /// Adds a member.
    pub fn insert(&mut self, waiter: u32) {
        self.0 |= 1 << waiter.min(Self::SHARED);
    }

    /// Takes a member out; the shared one stays, since another fetch may be meant.
    pub fn remove(&mut self, waiter: u32) {
        if waiter < Self::SHARED {
            self.0 &= !(1 << waiter);
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
    pub block: usize,
    /// Its number in the pool's policy.
    pub unit: usize,
    /// The slot that it gets if that one is empty: blocks that all have a slot then lie in their own order.
    pub preferred_slot: usize,
    /// Where its first byte will be within the slot.
    pub head_padding: usize,
}

#[derive(Clone, Debug)]
struct Slot {
    block: usize,
    unit: usize,
    state: SlotState,
    users: u32,
    waiters: WaiterSet,
    /// Read ahead and not asked for since.
    guess: bool,
    /// Never evicted.
    pinned: bool,
    /// The host has the block elsewhere, too.
    copied: bool,
    /// Where the block's first byte is within the slot.
    head_padding: usize,
    /// How often it was taken: tells a read into it from those before.
    generation: u64,
    /// Whether a read has written here, so that the system has given the memory.
    touched: bool,
    /// What a read ahead of need took the slot from. Its bytes stay until that read begins.
    before: Option<Before>,
}

/// A block that lost its slot.
#[derive(Clone, Copy, Debug)]
struct Before {
    block: usize,
    unit: usize,
    head_padding: usize,
}

/// Slots of one size. See the module's invariants.
#[derive(Debug)]
pub struct Pool {
    memory: Box<dyn Backing>,
    slot_bytes: usize,
    /// As many as there can ever be.
    slots: Vec<Slot>,
    /// As many as may be used now: those from here on are closed.
    slot_count: usize,
    links: Links,
    empty: List,
    empty_count: usize,
    /// Open slots that are not touched.
    untouched_count: usize,
    guessed: List,
    /// In the order in which they were let go of.
    copied: List,
    policy: Box<dyn Policy>,
    /// By unit: the slot that it is in. Only that of an offered unit is ever looked at.
    slot_of_unit: Vec<u32>,
}

impl Pool {
    /// Reserves addresses for `slots.most` slots of `slot_bytes`, of which `slots.now` may be used until it is resized. Blocks are
    /// given up as `policy` says; it knows `unit_count` units. Where the system is sparing with addresses, there will be no more
    /// than `slots.now`.
    ///
    /// # Errors
    /// `Resource` when the system refuses the memory.
    pub fn new(slot_bytes: usize, slots: SlotCount, policy: Box<dyn Policy>, unit_count: usize) -> Result<Self> {
        let (arena, most) = match Arena::new(slot_bytes * slots.most) {
            Ok(arena) => (arena, slots.most),
            Err(_) => (Arena::new(slot_bytes * slots.now)?, slots.now),
        };
        Ok(Self::over(Box::new(arena), slot_bytes, SlotCount { most, ..slots }, policy, unit_count))
    }

    /// Like [`Self::new`], with the slots in memory of another kind, which has room for `slots.most` of them.
    pub fn over(
        memory: Box<dyn Backing>,
        slot_bytes: usize,
        slots: SlotCount,
        policy: Box<dyn Policy>,
        unit_count: usize,
    ) -> Self {
        assert!(slot_bytes * slots.most <= memory.length(), "the slots do not fit into their memory");
        let slot = Slot {
            block: 0,
            unit: 0,
            state: SlotState::Empty,
            users: 0,
            waiters: WaiterSet::default(),
            guess: false,
            pinned: false,
            copied: false,
            head_padding: 0,
            generation: 0,
            touched: false,
            before: None,
        };
        let (mut links, mut empty) = (Links::new(slots.most), List::new());
        (0..slots.now).for_each(|slot| empty.push_back(&mut links, slot));
        Self {
            memory,
            slot_bytes,
            slots: vec![slot; slots.most],
            slot_count: slots.now,
            links,
            empty,
            empty_count: slots.now,
            untouched_count: slots.now,
            guessed: List::new(),
            copied: List::new(),
            policy,
            slot_of_unit: vec![0; unit_count],
        }
    }

    /// How many slots may be used.
    pub fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// How many slots there can be.
    pub fn largest_slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Opens or closes slots until `slot_count` may be used, and calls `evicted` with each block that lost its slot. What is closed
    /// goes back to the system. A slot that is in use or being read into stays until a later call; nothing new comes into it.
    pub fn resize(&mut self, slot_count: usize, mut evicted: impl FnMut(usize)) {
        let is_untouched = |slot: &&Slot| !slot.touched;
        if slot_count > self.slot_count {
            self.untouched_count += self.slots[self.slot_count..slot_count].iter().filter(is_untouched).count();
        } else {
            self.untouched_count -= self.slots[slot_count..self.slot_count].iter().filter(is_untouched).count();
        }
        for slot in self.slot_count..slot_count {
            match self.slots[slot].state {
                SlotState::Empty => self.add_empty(slot),
                // It was in use when it should have been closed.
                _ => {
                    self.slot_count = slot + 1;
                    self.settle(slot);
                }
            }
        }
        for slot in slot_count..self.slot_count {
            match self.slots[slot].state {
                SlotState::Empty => self.remove_empty(slot),
                _ => self.unlist(slot),
            }
        }
        self.slot_count = slot_count;
        for (slot, entry) in self.slots.iter_mut().enumerate().skip(slot_count) {
            match entry.state {
                SlotState::Ready if entry.users == 0 => evicted(entry.block),
                SlotState::Empty if entry.touched => {}
                _ => continue,
            }
            entry.state = SlotState::Empty;
            entry.touched = false;
            self.memory.release(slot * self.slot_bytes, self.slot_bytes);
        }
        if let Some(slab_bytes) = self.memory.slab_bytes() {
            let (slots, slot_bytes) = (&self.slots, self.slot_bytes);
            let is_used = |offset: usize| {
                let mut of_slab = slots.iter().skip(offset / slot_bytes).take(slab_bytes / slot_bytes);
                of_slab.any(|slot| slot.state != SlotState::Empty)
            };
            self.memory.hand_back(slot_count * slot_bytes, &is_used);
        }
    }

    /// Bytes of slots that no read was ever completed into: reserved, but not yet taken from the system. What is being read for
    /// the first time counts in full, since many reads may be waiting for the drive.
    pub fn untouched_bytes(&self) -> u64 {
        let untouched = || self.untouched_count * self.slot_bytes;
        self.memory.untaken_bytes(self.slot_count * self.slot_bytes).unwrap_or_else(untouched) as u64
    }

    /// A block is wanted, now or later in this pass; `slot` is where it is, if it is in one. To be called once for each block and
    /// pass.
    pub fn used(&mut self, unit: usize, slot: Option<usize>, at: Position, usage: Use) {
        // What is offered is ranked by what was known then: it is offered anew.
        let is_offered = |slot: &Slot| !slot.guess && !slot.copied;
        let offered = slot.filter(|&slot| self.is_listed(slot) && is_offered(&self.slots[slot]));
        if offered.is_some() {
            self.policy.set_in_use(unit);
        }
        self.policy.used(unit, at, usage);
        if offered.is_some() {
            self.policy.set_evictable(unit);
        }
    }

    /// Tells the policy what earlier runs know of a unit; to be called before the first use.
    pub fn remember(&mut self, unit: usize, uses_per_token: f32) {
        self.policy.remember(unit, uses_per_token);
    }

    /// Whether reading a unit ahead of need is likely to gain: its layer, when its turn comes, is foreseen to use it with this
    /// probability, and what would go for it is worth less.
    pub fn would_gain(&self, unit: usize, probability: f32, at: Position) -> bool {
        let is_better = |victim| self.policy.predicted_score(unit, probability, at) > self.policy.score(victim, at);
        self.has_spare() || self.policy.victim(at).is_some_and(is_better)
    }

    /// How much a unit deserves a slot, in one or not: see [`Policy::score`].
    pub fn score(&self, unit: usize, at: Position) -> f64 {
        self.policy.score(unit, at)
    }

    /// Whether a slot can be had for which nothing would have to be read again.
    fn has_spare(&self) -> bool {
        self.empty_count > 0 || self.copied.front().is_some()
    }

    /// As [`Self::take`], for a block that comes from elsewhere than the drive and would otherwise be lost: `None` also when every block
    /// that could go for it is worth more.
    pub fn take_for_copy(&mut self, new: NewBlock, at: Position) -> Option<(usize, Option<usize>)> {
        let score = self.policy.score(new.unit, at);
        let is_better = |victim| score > self.policy.score(victim, at);
        match self.has_spare() || self.policy.victim(at).is_some_and(is_better) {
            true => self.take(new, at, TakeFor::Demand),
            false => None,
        }
    }

    /// Notes whether the host has a slot's block elsewhere, too: then it goes first.
    pub fn set_copied(&mut self, slot: usize, copied: bool) {
        if self.slots[slot].copied != copied {
            self.unlist(slot);
            self.slots[slot].copied = copied;
            self.settle(slot);
        }
    }

    /// Slots that hold nothing.
    pub fn empty_count(&self) -> usize {
        self.empty_count
    }

    /// Takes a slot for a block and marks it Loading. Returns it with the block that lost it, if one did; `None` when every
    /// slot is in use, or, for a read ahead of need, not worth taking.
    pub fn take(&mut self, new: NewBlock, at: Position, purpose: TakeFor) -> Option<(usize, Option<usize>)> {
        let (slot, before) = match self.take_empty(new.preferred_slot) {
            Some(slot) if !self.memory.provide(slot * self.slot_bytes) => {
                self.add_empty(slot);
                return None;
            }
            Some(slot) => (slot, None),
            None => {
                let slot = self.victim(at, purpose)?;
                let Slot { block, unit, head_padding, state, users, .. } = self.slots[slot];
                assert!(
                    state == SlotState::Ready && users == 0,
                    "a slot is given away that is {state:?}, {users} users"
                );
                (slot, Some(Before { block, unit, head_padding }))
            }
        };
        self.slots[slot] = Slot {
            block: new.block,
            unit: new.unit,
            state: SlotState::Loading,
            users: 0,
            waiters: WaiterSet::default(),
            guess: purpose != TakeFor::Demand,
            pinned: false,
            copied: false,
            head_padding: new.head_padding,
            generation: self.slots[slot].generation + 1,
            touched: self.slots[slot].touched,
            before,
        };
        self.slot_of_unit[new.unit] = slot as u32;
        Some((slot, before.map(|before| before.block)))
    }

    fn take_empty(&mut self, preferred_slot: usize) -> Option<usize> {
        let is_empty = |slot: &Slot| slot.state == SlotState::Empty;
        let slot = if self.slots[..self.slot_count].get(preferred_slot).is_some_and(is_empty) {
            preferred_slot
        } else {
            self.empty.front()?
        };
        self.remove_empty(slot);
        Some(slot)
    }

    fn add_empty(&mut self, slot: usize) {
        self.empty.push_back(&mut self.links, slot);
        self.empty_count += 1;
    }

    fn remove_empty(&mut self, slot: usize) {
        self.empty.remove(&mut self.links, slot);
        self.empty_count -= 1;
    }

    fn victim(&mut self, at: Position, purpose: TakeFor) -> Option<usize> {
        // Of copies, that which was let go of last stays elsewhere the longest.
        if let Some(slot) = self.copied.back() {
            self.unlist(slot);
            return Some(slot);
        }
        let slot = match self.policy.victim(at) {
            Some(unit) => self.slot_of_unit[unit] as usize,
            None if purpose == TakeFor::Demand => self.guessed.back()?,
            None => return None,
        };
        self.unlist(slot);
        Some(slot)
    }

    /// The read into a Loading or Draining slot is over. Returns who waits for it; nobody means that the slot may be taken.
    pub fn loaded(&mut self, slot: usize) -> WaiterSet {
        self.slots[slot].state = match self.slots[slot].state {
            SlotState::Draining => {
                self.clear(slot);
                return WaiterSet::default();
            }
            state => {
                assert_eq!(state, SlotState::Loading, "a slot became Ready that nothing was read into");
                SlotState::Ready
            }
        };
        self.touch(slot);
        self.settle(slot);
        self.slots[slot].waiters
    }

    /// The read into a Loading or Draining slot has failed: what is there is of no use. Returns who waits for it; nobody means that the
    /// slot may be taken.
    pub fn failed(&mut self, slot: usize) -> WaiterSet {
        let Slot { state, users, waiters, .. } = self.slots[slot];
        assert!(
            matches!(state, SlotState::Loading | SlotState::Draining),
            "a read failed into a slot that is {state:?}"
        );
        self.touch(slot);
        if users == 0 {
            self.clear(slot);
            return WaiterSet::default();
        }
        self.slots[slot].state = SlotState::Failed;
        waiters
    }

    fn touch(&mut self, slot: usize) {
        let was_touched = std::mem::replace(&mut self.slots[slot].touched, true);
        if !was_touched && slot < self.slot_count {
            self.untouched_count -= 1;
        }
    }

    /// Adds a user: the slot stays until [`Self::leave`]. Says whether this is the first use of a block that was read
    /// ahead.
    pub fn join(&mut self, slot: usize, waiter: u32) -> bool {
        self.unlist(slot);
        let entry = &mut self.slots[slot];
        assert!(
            matches!(entry.state, SlotState::Loading | SlotState::Ready),
            "a slot is used that is {:?}",
            entry.state
        );
        entry.users += 1;
        entry.waiters.insert(waiter);
        std::mem::replace(&mut entry.guess, false)
    }

    /// Takes a user away.
    pub fn leave(&mut self, slot: usize, waiter: u32) {
        let entry = &mut self.slots[slot];
        assert!(entry.users > 0, "a slot is given back that nobody uses");
        entry.users -= 1;
        entry.waiters.remove(waiter);
        if entry.users > 0 {
            return;
        }
        entry.waiters = WaiterSet::default();
        match entry.state {
            SlotState::Failed => self.clear(slot),
            _ => self.settle(slot),
        }
    }

    /// Whether a slot's block was read ahead and not asked for since.
    pub fn is_prefetched(&self, slot: usize) -> bool {
        self.slots[slot].guess
    }

    /// A speculative prefetch was wrong: its slot may be taken like any other.
    pub fn expire(&mut self, slot: usize) {
        self.unlist(slot);
        self.slots[slot].guess = false;
        self.settle(slot);
    }

    /// The read into a Loading slot was taken back before it began: the block that lost the slot to it is still there and gets it
    /// back, unless `is_elsewhere` by now; returns it. Otherwise the slot is Empty.
    pub fn give_back(&mut self, slot: usize, is_elsewhere: impl FnOnce(usize) -> bool) -> Option<usize> {
        self.assert_idle_read(slot);
        let is_open = slot < self.slot_count;
        let entry = &mut self.slots[slot];
        let Some(before) = entry.before.take().filter(|before| is_open && !is_elsewhere(before.block)) else {
            self.clear(slot);
            return None;
        };
        (entry.block, entry.unit, entry.head_padding) = (before.block, before.unit, before.head_padding);
        entry.state = SlotState::Ready;
        entry.guess = false;
        self.slot_of_unit[before.unit] = slot as u32;
        self.settle(slot);
        Some(before.block)
    }

    /// The read into a Loading slot was broken off: the slot is Empty, or will be once [`Self::loaded`], if it `is_in_flight`.
    pub fn drain(&mut self, slot: usize, is_in_flight: bool) {
        self.assert_idle_read(slot);
        self.touch(slot);
        match is_in_flight {
            true => self.slots[slot].state = SlotState::Draining,
            false => self.clear(slot),
        }
    }

    /// Only a read that nobody awaits may be taken back.
    fn assert_idle_read(&self, slot: usize) {
        let Slot { state, users, .. } = self.slots[slot];
        assert!(
            state == SlotState::Loading && users == 0,
            "a read is taken back into a slot that is {state:?}, {users} users"
        );
    }

    fn clear(&mut self, slot: usize) {
        self.slots[slot].state = SlotState::Empty;
        self.slots[slot].guess = false;
        if slot < self.slot_count {
            self.add_empty(slot);
        }
    }

    /// Keeps the slot's block for good, or no longer.
    pub fn set_pinned(&mut self, slot: usize, pinned: bool) {
        self.unlist(slot);
        self.slots[slot].pinned = pinned;
        self.settle(slot);
    }

    /// The state of a slot.
    pub fn state(&self, slot: usize) -> SlotState {
        self.slots[slot].state
    }

    /// The address of the slot's first byte: where a widened read goes.
    pub fn address(&self, slot: usize) -> *mut u8 {
        self.memory.address(slot * self.slot_bytes)
    }

    /// The address of the first byte of the block in a slot that is Ready and that someone holds.
    pub fn data(&self, slot: usize) -> *const u8 {
        let Slot { state, users, head_padding, .. } = self.slots[slot];
        assert!(
            state == SlotState::Ready && users > 0,
            "weights are handed out of a slot that is {state:?}, {users} users"
        );
        self.address(slot).wrapping_add(head_padding)
    }

    /// Which of the slot's reads is the latest, counted from 1.
    pub fn generation(&self, slot: usize) -> u64 {
        self.slots[slot].generation
    }

    /// The block in a slot.
    pub fn block(&self, slot: usize) -> usize {
        self.slots[slot].block
    }

    fn is_listed(&self, slot: usize) -> bool {
        let is_open = slot < self.slot_count;
        let slot = &self.slots[slot];
        is_open && slot.state == SlotState::Ready && slot.users == 0 && !slot.pinned
    }

    /// Recounts all that is kept beside the slots' own states; for tests.
    #[cfg(test)]
    pub fn check(&self) {
        let open = |wanted: &dyn Fn(usize) -> bool| (0..self.slot_count).filter(|&slot| wanted(slot)).count();
        let is_empty = |slot: usize| self.slots[slot].state == SlotState::Empty;
        let listed_guess = |slot: usize| self.is_listed(slot) && self.slots[slot].guess;
        let empty: Vec<usize> = self.empty.iter(&self.links).collect();
        assert_eq!((empty.len(), self.empty_count), (open(&is_empty), open(&is_empty)), "empty slots");
        assert!(empty.iter().all(|&slot| slot < self.slot_count && is_empty(slot)), "{empty:?}");
        let guessed: Vec<usize> = self.guessed.iter(&self.links).collect();
        assert_eq!(guessed.len(), open(&listed_guess), "guesses");
        assert!(guessed.iter().all(|&slot| listed_guess(slot)), "{guessed:?}");
        let offered = open(&|slot| self.is_listed(slot) && !self.slots[slot].guess && !self.slots[slot].copied);
        let copied = open(&|slot| self.is_listed(slot) && !self.slots[slot].guess && self.slots[slot].copied);
        assert_eq!(self.copied.iter(&self.links).count(), copied, "copies");
        assert_eq!(self.policy.evictable_count(), offered, "what the policy may give up");
        assert_eq!(self.untouched_count, open(&|slot| !self.slots[slot].touched), "untouched slots");
        for (index, slot) in self.slots.iter().enumerate() {
            let has_users = slot.users > 0;
            assert!(has_users || slot.waiters == WaiterSet::default(), "{index}: members without users");
            match slot.state {
                SlotState::Empty | SlotState::Draining => assert!(!has_users, "{index}: {slot:?}"),
                SlotState::Failed => assert!(has_users, "{index}: {slot:?}"),
                SlotState::Loading => {}
                SlotState::Ready => assert_eq!(self.slot_of_unit[slot.unit] as usize, index, "{slot:?}"),
            }
        }
    }

    fn unlist(&mut self, slot: usize) {
        if self.is_listed(slot) {
            match self.slots[slot] {
                Slot { guess: true, .. } => self.guessed.remove(&mut self.links, slot),
                Slot { copied: true, .. } => self.copied.remove(&mut self.links, slot),
                Slot { unit, .. } => self.policy.set_in_use(unit),
            }
        }
    }

    fn settle(&mut self, slot: usize) {
        if self.is_listed(slot) {
            match self.slots[slot] {
                Slot { guess: true, .. } => self.guessed.push_back(&mut self.links, slot),
                Slot { copied: true, .. } => self.copied.push_back(&mut self.links, slot),
                Slot { unit, .. } => self.policy.set_evictable(unit),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::cache::policy::{PolicyKind, Shape};
    use crate::memory::{HostMemory, Slabs};

    const HERE: Position = Position { pass: 1, layer: 0 };

    /// Slots for blocks below 16, given up least recently used first.
    fn pool(slot_count: usize) -> Pool {
        let shape = Shape { layer_count: 1, expert_count: 16 };
        let slots = SlotCount { now: slot_count, most: slot_count.max(4) };
        Pool::new(64, slots, PolicyKind::Lru.build(shape), shape.unit_count()).unwrap()
    }

    fn take(pool: &mut Pool, block: usize, preferred_slot: usize, purpose: TakeFor) -> Option<(usize, Option<usize>)> {
        pool.take(NewBlock { block, unit: block, preferred_slot, head_padding: 0 }, HERE, purpose)
    }

    fn load(pool: &mut Pool, block: usize, purpose: TakeFor) -> Option<usize> {
        let (slot, _) = take(pool, block, block, purpose)?;
        pool.loaded(slot);
        Some(slot)
    }

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let mut pool = pool(3);
        assert_eq!(pool.untouched_bytes(), 192);
        let slots: Vec<usize> = (0..3).map(|block| load(&mut pool, block, TakeFor::Demand).unwrap()).collect();
        assert_eq!(pool.untouched_bytes(), 0);
        pool.join(slots[0], 0);
        pool.leave(slots[0], 0);
        assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand).unwrap(), (slots[1], Some(1)));
        assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand).unwrap(), (slots[2], Some(2)));
        assert_eq!(take(&mut pool, 5, 0, TakeFor::Demand).unwrap(), (slots[0], Some(0)));
        assert_eq!(take(&mut pool, 6, 0, TakeFor::Demand), None, "a Loading slot is never given away");
    }

    #[test]
    fn while_there_is_room_every_block_gets_its_own_place() {
        let mut pool = pool(4);
        let places: Vec<usize> = [2, 0, 9, 3]
            .iter()
            .map(|&preferred_slot| take(&mut pool, preferred_slot, preferred_slot, TakeFor::Demand).unwrap().0)
            .collect();
        assert_eq!(places, [2, 0, 1, 3], "9 is no slot and gets the first that is left");
        assert_eq!(take(&mut pool, 1, 1, TakeFor::Demand), None);
    }

    #[test]
    fn a_slot_in_use_or_permanent_stays() {
        let mut pool = pool(2);
        let used = load(&mut pool, 0, TakeFor::Demand).unwrap();
        pool.join(used, 0);
        pool.join(used, 0);
        pool.leave(used, 0);
        let (kept, _) = take(&mut pool, 1, 0, TakeFor::Demand).unwrap();
        pool.set_pinned(kept, true);
        pool.loaded(kept);
        assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), None);
        pool.leave(used, 0);
        assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), Some((used, Some(0))));
        pool.set_pinned(kept, false);
        assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand), Some((kept, Some(1))));
    }

    #[test]
    fn a_completed_read_names_those_that_wait_for_it() {
        let mut pool = pool(2);
        let (slot, _) = take(&mut pool, 0, 0, TakeFor::Demand).unwrap();
        pool.join(slot, 3);
        pool.join(slot, 70);
        pool.join(slot, 5);
        pool.leave(slot, 5);
        assert_eq!(pool.loaded(slot).iter().collect::<Vec<_>>(), [3, 63]);
        let (other, _) = take(&mut pool, 1, 0, TakeFor::Prefetch).unwrap();
        assert_eq!(pool.loaded(other), WaiterSet::default());
    }

    #[test]
    fn guesses_never_push_each_other_out_but_yield_to_demand_last_first() {
        let mut pool = pool(3);
        let first = load(&mut pool, 0, TakeFor::Prefetch).unwrap();
        let last = load(&mut pool, 1, TakeFor::Prefetch).unwrap();
        let used = load(&mut pool, 2, TakeFor::Demand).unwrap();
        assert_eq!(take(&mut pool, 3, 0, TakeFor::Prefetch).unwrap().0, used);
        pool.loaded(used);
        assert_eq!(take(&mut pool, 4, 0, TakeFor::Prefetch), None);
        assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand), Some((used, Some(3))));
        assert_eq!(take(&mut pool, 5, 0, TakeFor::Demand), Some((last, Some(1))));
        assert!(pool.join(first, 0), "the first use of a guess is reported");
        assert!(!pool.join(first, 0));
    }

    #[test]
    fn a_guess_gains_where_there_is_room_or_less_to_lose() {
        let shape = Shape { layer_count: 2, expert_count: 4 };
        let mut pool =
            Pool::new(64, SlotCount { now: 1, most: 1 }, PolicyKind::Forecast.build(shape), shape.unit_count())
                .unwrap();
        let (held, foreseen) = (shape.unit(0, 0), shape.unit(1, 0));
        assert_eq!(pool.empty_count(), 1);
        assert!(pool.would_gain(foreseen, 0.0, HERE));
        pool.remember(held, 1.0);
        let new = NewBlock { block: held, unit: held, preferred_slot: 0, head_padding: 0 };
        let (slot, _) = pool.take(new, HERE, TakeFor::Demand).unwrap();
        assert!(!pool.would_gain(foreseen, 1.0, HERE), "nothing can be had");
        pool.loaded(slot);
        assert!(pool.would_gain(foreseen, 0.9, HERE));
        assert!(!pool.would_gain(foreseen, 0.1, HERE), "what is there is likelier used");
        assert_eq!(pool.empty_count(), 0);
    }

    #[test]
    fn a_wrong_guess_is_let_go_and_one_that_was_taken_back_leaves_an_empty_slot() {
        let mut pool = pool(2);
        let read = load(&mut pool, 0, TakeFor::Prefetch).unwrap();
        let (queued, _) = take(&mut pool, 1, 1, TakeFor::Prefetch).unwrap();
        pool.expire(read);
        assert_eq!(pool.give_back(queued, |_| false), None);
        assert!(!pool.is_prefetched(read));
        assert_eq!(take(&mut pool, 2, 1, TakeFor::Prefetch), Some((queued, None)));
        assert_eq!(take(&mut pool, 3, 1, TakeFor::Prefetch), Some((read, Some(0))));
    }

    #[test]
    fn what_a_guess_took_a_slot_from_comes_back_when_the_guess_is_taken_back() {
        let mut pool = pool(2);
        let slot = load(&mut pool, 0, TakeFor::Demand).unwrap();
        load(&mut pool, 1, TakeFor::Demand).unwrap();
        let guess = |pool: &mut Pool| take(pool, 2, 0, TakeFor::Prefetch);
        assert_eq!(guess(&mut pool), Some((slot, Some(0))));
        assert_eq!(pool.give_back(slot, |block| block != 0), Some(0));
        assert_eq!((pool.state(slot), pool.block(slot), pool.is_prefetched(slot)), (SlotState::Ready, 0, false));
        assert!(!pool.join(slot, 0), "it is a hit like any other");
        pool.leave(slot, 0);
        // Read again into another slot meanwhile, it stays there.
        assert_eq!(take(&mut pool, 3, 0, TakeFor::Prefetch), Some((1, Some(1))));
        assert_eq!(pool.give_back(1, |block| block == 1), None);
        assert_eq!(pool.empty_count(), 1);
    }

    #[test]
    fn a_guess_that_is_broken_off_leaves_an_empty_slot_once_its_last_read_is_over() {
        let mut pool = pool(1);
        load(&mut pool, 0, TakeFor::Demand).unwrap();
        for is_in_flight in [true, false] {
            let (slot, _) = take(&mut pool, 1, 0, TakeFor::Prefetch).unwrap();
            pool.drain(slot, is_in_flight);
            if is_in_flight {
                assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), None, "it is still written to");
                assert_eq!(pool.loaded(slot), WaiterSet::default());
            }
            assert_eq!((pool.state(slot), pool.empty_count()), (SlotState::Empty, 1));
            assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), Some((slot, None)));
            pool.loaded(slot);
        }
    }

    /// The blocks that lose their slots.
    fn resize(pool: &mut Pool, slot_count: usize) -> Vec<usize> {
        let mut evicted = Vec::new();
        pool.resize(slot_count, |block| evicted.push(block));
        evicted
    }

    #[test]
    fn closed_slots_lose_their_blocks_and_are_empty_when_they_open_again() {
        let mut pool = pool(4);
        for (block, purpose) in [(0, TakeFor::Demand), (1, TakeFor::Demand), (2, TakeFor::Prefetch)] {
            load(&mut pool, block, purpose).unwrap();
        }
        pool.set_pinned(1, true);
        assert_eq!(resize(&mut pool, 1), [1, 2], "of permanent ones and of guesses as well");
        assert_eq!((pool.slot_count(), pool.untouched_bytes()), (1, 0));
        assert_eq!(take(&mut pool, 5, 3, TakeFor::Demand), Some((0, Some(0))), "a home that is closed is no home");
        assert_eq!(take(&mut pool, 6, 1, TakeFor::Demand), None);
        assert_eq!(resize(&mut pool, 3), [0; 0]);
        assert_eq!(pool.untouched_bytes(), 128);
        assert_eq!(take(&mut pool, 6, 1, TakeFor::Demand), Some((1, None)));
    }

    #[test]
    fn a_slot_in_use_closes_once_it_is_given_back() {
        let mut pool = pool(3);
        let used = load(&mut pool, 2, TakeFor::Demand).unwrap();
        pool.join(used, 0);
        let (loading, _) = take(&mut pool, 1, 1, TakeFor::Prefetch).unwrap();
        assert_eq!(resize(&mut pool, 1), [0; 0]);
        pool.leave(used, 0);
        pool.loaded(loading);
        assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand), Some((0, None)));
        assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand), None, "neither of the two may be taken");
        assert_eq!(resize(&mut pool, 1), [1, 2]);
        // A read that is taken back leaves a closed slot closed.
        assert_eq!(resize(&mut pool, 2), [0; 0]);
        let (queued, _) = take(&mut pool, 5, 1, TakeFor::Prefetch).unwrap();
        assert_eq!(resize(&mut pool, 1), [0; 0]);
        assert_eq!(pool.give_back(queued, |_| false), None);
        assert_eq!(take(&mut pool, 6, 1, TakeFor::Demand), None);
    }

    #[test]
    fn a_slot_that_should_have_closed_is_like_any_other_when_there_is_room_again() {
        let mut pool = pool(2);
        let used = load(&mut pool, 1, TakeFor::Demand).unwrap();
        pool.join(used, 0);
        assert_eq!(resize(&mut pool, 1), [0; 0]);
        assert_eq!(resize(&mut pool, 2), [0; 0]);
        pool.leave(used, 0);
        take(&mut pool, 0, 0, TakeFor::Demand).unwrap();
        assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), Some((used, Some(1))));
    }

    #[test]
    fn what_the_host_has_a_copy_of_goes_first_and_nothing_is_lost_for_a_guess() {
        let mut pool = pool(3);
        let slots: Vec<usize> = (0..3).map(|block| load(&mut pool, block, TakeFor::Demand).unwrap()).collect();
        pool.set_copied(slots[1], true);
        pool.set_copied(slots[2], true);
        pool.join(slots[2], 0);
        assert!(pool.would_gain(0, 0.0, HERE), "a copy costs nothing");
        assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand), Some((slots[1], Some(1))), "2 is in use");
        pool.leave(slots[2], 0);
        pool.set_copied(slots[2], false);
        assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand), Some((slots[0], Some(0))), "2 was used later");
    }

    #[test]
    fn a_copy_that_is_dropped_gets_a_slot_only_from_what_is_worth_less() {
        let shape = Shape { layer_count: 1, expert_count: 4 };
        let slots = SlotCount { now: 1, most: 1 };
        let mut pool = Pool::new(64, slots, PolicyKind::Forecast.build(shape), shape.unit_count()).unwrap();
        let new = |block| NewBlock { block, unit: block, preferred_slot: 0, head_padding: 0 };
        for (unit, uses_per_token) in [(0, 0.5), (1, 0.9), (2, 0.1)] {
            pool.remember(unit, uses_per_token);
        }
        let (slot, _) = pool.take_for_copy(new(0), HERE).unwrap();
        assert_eq!(pool.take_for_copy(new(1), HERE), None, "its bytes are still on their way");
        pool.loaded(slot);
        assert_eq!(pool.take_for_copy(new(2), HERE), None, "2 is worth less");
        assert_eq!(pool.take_for_copy(new(1), HERE), Some((slot, Some(0))));
    }

    #[derive(Debug, Default)]
    struct Lender {
        lent: std::sync::Mutex<Vec<(usize, std::alloc::Layout)>>,
        is_empty: std::sync::atomic::AtomicBool,
    }

    impl HostMemory for Lender {
        fn allocate(&self, size_bytes: usize) -> Option<*mut std::ffi::c_void> {
            if self.is_empty.load(std::sync::atomic::Ordering::Relaxed) {
                return None;
            }
            let layout = std::alloc::Layout::from_size_align(size_bytes, 4096).unwrap();
            // SAFETY: the size is not zero.
            let memory = unsafe { std::alloc::alloc(layout) };
            self.lent.lock().unwrap().push((memory as usize, layout));
            Some(memory.cast())
        }

        fn free(&self, memory: *mut std::ffi::c_void) {
            let mut lent = self.lent.lock().unwrap();
            let index = lent.iter().position(|&(address, _)| address == memory as usize).expect("it was lent");
            let (_, layout) = lent.swap_remove(index);
            // SAFETY: it was allocated with this layout and is freed once.
            unsafe { std::alloc::dealloc(memory.cast(), layout) };
        }
    }

    #[test]
    fn the_hosts_memory_is_taken_as_slots_are_used_and_given_back_with_the_last_of_them() {
        let slot_bytes = 16 << 20; // two to a slab
        let lender = Arc::new(Lender::default());
        let shape = Shape { layer_count: 1, expert_count: 16 };
        let slots = SlotCount { now: 4, most: 4 };
        let policy = PolicyKind::Lru.build(shape);
        let memory = Slabs::new(slot_bytes, 0, slots.most, lender.clone());
        let mut pool = Pool::over(Box::new(memory), slot_bytes, slots, policy, shape.unit_count());
        let count = || lender.lent.lock().unwrap().len();
        assert_eq!(count(), 0);
        let placed: Vec<usize> = (0..3).map(|block| load(&mut pool, block, TakeFor::Demand).unwrap()).collect();
        assert_eq!((placed, count()), (vec![0, 1, 2], 2));
        assert_eq!(pool.address(1) as usize - pool.address(0) as usize, slot_bytes);
        // SAFETY: the slot has that much memory, and nobody else uses it.
        unsafe { pool.address(2).add(slot_bytes - 1).write(1) };
        assert_eq!((resize(&mut pool, 3), count()), (vec![], 2));
        assert_eq!((resize(&mut pool, 2), count()), (vec![2], 1));
        lender.is_empty.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!((resize(&mut pool, 4), count()), (vec![], 1));
        let own = load(&mut pool, 3, TakeFor::Demand).unwrap();
        // SAFETY: as above; where the host has none left, the memory is our own.
        unsafe { pool.address(own).add(slot_bytes - 1).write(1) };
        assert_eq!(count(), 1);
        drop(pool);
        assert_eq!(count(), 0);
    }
}
