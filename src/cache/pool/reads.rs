//! What becomes of the reads into slots.

use super::Pool;
use super::slot::{Slot, SlotState, WaiterSet};
use crate::index::{BlockId, SlotNumber};

impl Pool {
    /// The read into a Loading or Draining slot is over. Returns who waits for it; nobody means that the slot may be taken.
    pub fn loaded(&mut self, slot: SlotNumber) -> WaiterSet {
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
    pub fn failed(&mut self, slot: SlotNumber) -> WaiterSet {
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

    /// The system has given a slot's memory.
    pub(super) fn touch(&mut self, slot: SlotNumber) {
        if std::mem::replace(&mut self.slots[slot].touched, true) {
            return;
        }
        self.memory.written(self.offset_of(slot), self.slot_bytes);
        if self.is_open(slot) {
            self.untouched_count -= 1;
        }
    }

    /// A speculative prefetch was wrong: its slot may be taken like any other.
    pub fn expire(&mut self, slot: SlotNumber) {
        self.unlist(slot);
        self.slots[slot].is_prefetched = false;
        self.settle(slot);
    }

    /// The read into a Loading slot was taken back before it began: the block that lost the slot to it is still there and gets it
    /// back, unless `is_elsewhere` by now; returns it. Otherwise the slot is Empty.
    pub fn give_back(&mut self, slot: SlotNumber, is_elsewhere: impl FnOnce(BlockId) -> bool) -> Option<BlockId> {
        self.assert_idle_read(slot);
        let is_open = self.is_open(slot);
        let entry = &mut self.slots[slot];
        let Some(before) = entry.before.take().filter(|before| is_open && !is_elsewhere(before.block)) else {
            self.clear(slot);
            return None;
        };
        (entry.block, entry.unit, entry.head_padding) = (before.block, before.unit, before.head_padding);
        entry.state = SlotState::Ready;
        entry.is_prefetched = false;
        self.slot_of_unit[before.unit] = slot.0 as u32;
        self.settle(slot);
        Some(before.block)
    }

    /// The read into a Loading slot was broken off: the slot is Empty, or will be once [`Self::loaded`], if it `is_in_flight`.
    pub fn drain(&mut self, slot: SlotNumber, is_in_flight: bool) {
        self.assert_idle_read(slot);
        self.touch(slot);
        match is_in_flight {
            true => self.slots[slot].state = SlotState::Draining,
            false => self.clear(slot),
        }
    }

    /// Only a read that nobody awaits may be taken back.
    fn assert_idle_read(&self, slot: SlotNumber) {
        let Slot { state, users, .. } = self.slots[slot];
        assert!(
            state == SlotState::Loading && users == 0,
            "a read is taken back into a slot that is {state:?}, {users} users"
        );
    }

    pub(super) fn clear(&mut self, slot: SlotNumber) {
        self.slots[slot].state = SlotState::Empty;
        self.slots[slot].is_prefetched = false;
        if self.is_open(slot) {
            self.add_empty(slot);
        }
    }
}
