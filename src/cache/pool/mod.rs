//! The slots of one size: who is where, who may go, who goes next.

#[cfg(test)]
mod check;
mod reads;
mod resize;
mod slot;
#[cfg(test)]
mod tests;

use typed_index_collections::TiVec;

use super::list::{Links, List};
use super::policy::{Policy, Position, Use};
use crate::error::Result;
use crate::index::{BlockId, SlotNumber, UnitId, WaiterId};
use crate::memory::{Arena, Backing};
use slot::{Before, Slot};
pub use slot::{NewBlock, SlotCount, SlotState, TakeFor, WaiterSet};

/// Slots of one size. See the module's invariants.
#[derive(Debug)]
pub struct Pool {
    memory: Box<dyn Backing>,
    slot_bytes: usize,
    /// As many as there can ever be.
    slots: TiVec<SlotNumber, Slot>,
    /// As many as may be used now: those from here on are closed.
    slot_count: usize,
    links: Links<SlotNumber>,
    empty: List<SlotNumber>,
    empty_count: usize,
    /// Open slots that are not touched.
    untouched_count: usize,
    /// Closed slots that still have their memory, since they were in use or being read into.
    closing_count: usize,
    prefetched: List<SlotNumber>,
    /// In the order in which they were let go of.
    copied: List<SlotNumber>,
    policy: Box<dyn Policy>,
    /// By unit: the slot that it is in. Only that of an evictable unit is ever looked at.
    slot_of_unit: TiVec<UnitId, u32>,
}

impl Pool {
    /// Reserves addresses for `slots.most` slots of `slot_bytes`, of which `slots.now` may be used until it is resized. Blocks are
    /// given up as `policy` says; it knows `unit_count` units. Where the system is sparing with addresses, there will be no more
    /// than `slots.now`.
    ///
    /// # Errors
    /// `Resource` when the system refuses the memory.
    pub fn new(slot_bytes: usize, slots: SlotCount, policy: Box<dyn Policy>, unit_count: usize) -> Result<Self> {
        let (arena, most) = match Arena::reserve(slot_bytes * slots.most, slot_bytes * slots.now) {
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
        let (mut links, mut empty) = (Links::new(slots.most), List::new());
        (0..slots.now).map(SlotNumber).for_each(|slot| empty.push_back(&mut links, slot));
        let slot = |number: usize| Slot { returned: number >= slots.now, ..Slot::new() };
        Self {
            memory,
            slot_bytes,
            slots: (0..slots.most).map(slot).collect(),
            slot_count: slots.now,
            links,
            empty,
            empty_count: slots.now,
            untouched_count: slots.now,
            closing_count: 0,
            prefetched: List::new(),
            copied: List::new(),
            policy,
            slot_of_unit: vec![0; unit_count].into(),
        }
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// How many slots may be used.
    pub fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// How many slots there can be.
    pub fn largest_slot_count(&self) -> usize {
        self.slots.len()
    }

    /// A block is wanted, now or later in this pass; `slot` is where it is, if it is in one. To be called once for each block and
    /// pass.
    pub fn used(&mut self, unit: UnitId, slot: Option<SlotNumber>, at: Position, usage: Use) {
        // An evictable unit is ranked by what was known when it became so: it does so anew.
        let is_policys = |slot: &Slot| !slot.is_prefetched && !slot.copied;
        let is_evictable = slot.is_some_and(|slot| self.is_listed(slot) && is_policys(&self.slots[slot]));
        if is_evictable {
            self.policy.set_in_use(unit);
        }
        self.policy.used(unit, at, usage);
        if is_evictable {
            self.policy.set_evictable(unit);
        }
    }

    /// Tells the policy what earlier runs know of a unit; to be called before the first use.
    pub fn remember(&mut self, unit: UnitId, uses_per_token: f32) {
        self.policy.remember(unit, uses_per_token);
    }

    /// Whether reading a unit ahead of need is likely to gain: its layer, when its turn comes, is foreseen to use it with this
    /// probability, and what would go for it is worth less.
    pub fn would_gain(&self, unit: UnitId, probability: f32, at: Position) -> bool {
        let is_better = |victim| self.policy.predicted_score(unit, probability, at) > self.policy.score(victim, at);
        self.has_spare() || self.policy.victim(at).is_some_and(is_better)
    }

    /// How much a unit deserves a slot, in one or not: see [`Policy::score`].
    pub fn score(&self, unit: UnitId, at: Position) -> f64 {
        self.policy.score(unit, at)
    }

    /// Whether a slot can be had for which nothing would have to be read again.
    fn has_spare(&self) -> bool {
        self.empty_count > 0 || self.copied.front().is_some()
    }

    /// As [`Self::take`], for a block that comes from elsewhere than the drive and would otherwise be lost: `None` also when every block
    /// that could go for it is worth more.
    pub fn take_for_copy(&mut self, new: NewBlock, at: Position) -> Option<(SlotNumber, Option<BlockId>)> {
        let score = self.policy.score(new.unit, at);
        let is_better = |victim| score > self.policy.score(victim, at);
        match self.has_spare() || self.policy.victim(at).is_some_and(is_better) {
            true => self.take(new, at, TakeFor::Demand),
            false => None,
        }
    }

    /// Notes whether the host has a slot's block elsewhere, too: then it goes first.
    pub fn set_copied(&mut self, slot: SlotNumber, copied: bool) {
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
    pub fn take(&mut self, new: NewBlock, at: Position, purpose: TakeFor) -> Option<(SlotNumber, Option<BlockId>)> {
        let (slot, before) = match self.take_empty(new.preferred_slot) {
            Some(slot) if !self.memory.provide(self.offset_of(slot)) => {
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
        self.slots[slot] = self.slots[slot].loading(new, purpose, before);
        self.slot_of_unit[new.unit] = slot.0 as u32;
        Some((slot, before.map(|before| before.block)))
    }

    fn take_empty(&mut self, preferred_slot: SlotNumber) -> Option<SlotNumber> {
        let is_empty = |slot: &Slot| slot.state == SlotState::Empty;
        let slot = if self.is_open(preferred_slot) && is_empty(&self.slots[preferred_slot]) {
            preferred_slot
        } else {
            self.empty.front()?
        };
        self.remove_empty(slot);
        Some(slot)
    }

    fn add_empty(&mut self, slot: SlotNumber) {
        self.empty.push_back(&mut self.links, slot);
        self.empty_count += 1;
    }

    fn remove_empty(&mut self, slot: SlotNumber) {
        self.empty.remove(&mut self.links, slot);
        self.empty_count -= 1;
    }

    fn victim(&mut self, at: Position, purpose: TakeFor) -> Option<SlotNumber> {
        // Of copies, that which was let go of last stays elsewhere the longest.
        if let Some(slot) = self.copied.back() {
            self.unlist(slot);
            return Some(slot);
        }
        let slot = match self.policy.victim(at) {
            Some(unit) => SlotNumber(self.slot_of_unit[unit] as usize),
            None if purpose == TakeFor::Demand => self.prefetched.back()?,
            None => return None,
        };
        self.unlist(slot);
        Some(slot)
    }

    /// Adds a user: the slot stays until [`Self::leave`]. Says whether this is the first use of a block that was read
    /// ahead.
    pub fn join(&mut self, slot: SlotNumber, waiter: WaiterId) -> bool {
        self.unlist(slot);
        let entry = &mut self.slots[slot];
        assert!(
            matches!(entry.state, SlotState::Loading | SlotState::Ready),
            "a slot is used that is {:?}",
            entry.state
        );
        entry.users += 1;
        entry.waiters.insert(waiter);
        std::mem::replace(&mut entry.is_prefetched, false)
    }

    /// Takes a user away.
    pub fn leave(&mut self, slot: SlotNumber, waiter: WaiterId) {
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
    pub fn is_prefetched(&self, slot: SlotNumber) -> bool {
        self.slots[slot].is_prefetched
    }

    /// Keeps the slot's block for good, or no longer.
    pub fn set_pinned(&mut self, slot: SlotNumber, pinned: bool) {
        self.unlist(slot);
        self.slots[slot].pinned = pinned;
        self.settle(slot);
    }

    /// The state of a slot.
    pub fn state(&self, slot: SlotNumber) -> SlotState {
        self.slots[slot].state
    }

    /// The address of the slot's first byte: where a widened read goes.
    pub fn address(&self, slot: SlotNumber) -> *mut u8 {
        self.memory.address(self.offset_of(slot))
    }

    /// The address of the first byte of the block in a slot that is Ready and that someone holds.
    pub fn data(&self, slot: SlotNumber) -> *const u8 {
        let Slot { state, users, head_padding, .. } = self.slots[slot];
        assert!(
            state == SlotState::Ready && users > 0,
            "weights are handed out of a slot that is {state:?}, {users} users"
        );
        self.address(slot).wrapping_add(head_padding)
    }

    /// Which of the slot's reads is the latest, counted from 1.
    pub fn generation(&self, slot: SlotNumber) -> u64 {
        self.slots[slot].generation
    }

    /// The block in a slot.
    pub fn block(&self, slot: SlotNumber) -> BlockId {
        self.slots[slot].block
    }

    /// Whether a slot may be used: see the invariants.
    fn is_open(&self, slot: SlotNumber) -> bool {
        slot.0 < self.slot_count
    }

    /// Where a slot begins in the pool's memory.
    fn offset_of(&self, slot: SlotNumber) -> usize {
        slot.0 * self.slot_bytes
    }

    fn is_listed(&self, slot: SlotNumber) -> bool {
        let is_open = self.is_open(slot);
        let slot = &self.slots[slot];
        is_open && slot.state == SlotState::Ready && slot.users == 0 && !slot.pinned
    }

    fn unlist(&mut self, slot: SlotNumber) {
        if self.is_listed(slot) {
            match self.slots[slot] {
                Slot { is_prefetched: true, .. } => self.prefetched.remove(&mut self.links, slot),
                Slot { copied: true, .. } => self.copied.remove(&mut self.links, slot),
                Slot { unit, .. } => self.policy.set_in_use(unit),
            }
        }
    }

    fn settle(&mut self, slot: SlotNumber) {
        if self.is_listed(slot) {
            match self.slots[slot] {
                Slot { is_prefetched: true, .. } => self.prefetched.push_back(&mut self.links, slot),
                Slot { copied: true, .. } => self.copied.push_back(&mut self.links, slot),
                Slot { unit, .. } => self.policy.set_evictable(unit),
            }
        }
    }
}
