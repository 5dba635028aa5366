//! Slots are opened and closed as there is more memory or less.

use std::ops::Range;

use super::Pool;
use super::slot::SlotState;
use crate::index::{BlockId, SlotNumber};

impl Pool {
    /// Opens or closes slots until `slot_count` may be used, and calls `evicted` with each block that lost its slot. What is closed
    /// goes back to the system. A slot that is in use or being read into stays until [`Self::finish_closing`]; nothing new comes into it.
    /// Fewer are opened where the system refuses the memory.
    pub fn resize(&mut self, slot_count: usize, evicted: impl FnMut(BlockId)) {
        let slot_count = self.open_memory(slot_count);
        let slots = |from: usize, to: usize| (from..to).map(SlotNumber);
        let is_untouched = |slot: &SlotNumber| !self.slots[*slot].touched;
        self.untouched_count += slots(self.slot_count, slot_count).filter(is_untouched).count();
        self.untouched_count -= slots(slot_count, self.slot_count).filter(is_untouched).count();
        for slot in slots(self.slot_count, slot_count) {
            match self.slots[slot].state {
                SlotState::Empty => self.add_empty(slot),
                // It was in use when it should have been closed.
                _ => {
                    self.slot_count = slot.0 + 1;
                    self.settle(slot);
                }
            }
        }
        for slot in slots(slot_count, self.slot_count) {
            match self.slots[slot].state {
                SlotState::Empty => self.remove_empty(slot),
                _ => self.unlist(slot),
            }
        }
        self.slot_count = slot_count;
        self.close(evicted);
    }

    /// Closes what was in use, or being read into, when it should have been closed, and is not any more.
    pub fn finish_closing(&mut self, evicted: impl FnMut(BlockId)) {
        if self.closing_count > 0 {
            self.close(evicted);
        }
    }

    /// Gives back the memory of all closed slots that nobody needs.
    fn close(&mut self, mut evicted: impl FnMut(BlockId)) {
        let slot_count = self.slot_count;
        self.closing_count = 0;
        for (slot, entry) in self.slots.iter_mut_enumerated().skip(slot_count) {
            match entry.state {
                _ if entry.returned => continue,
                SlotState::Ready if entry.users == 0 => evicted(entry.block),
                SlotState::Empty => {}
                _ => {
                    self.closing_count += 1;
                    continue;
                }
            }
            entry.state = SlotState::Empty;
            entry.returned = true;
            let (offset, was_touched) = (slot.0 * self.slot_bytes, std::mem::take(&mut entry.touched));
            match was_touched {
                true => self.memory.release(offset, self.slot_bytes),
                false => self.memory.release_unwritten(offset, self.slot_bytes),
            }
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

    /// Gives memory to those of the closed slots before `slot_count` that have none. Returns before which one all have.
    fn open_memory(&mut self, slot_count: usize) -> usize {
        for slot in (self.slot_count..slot_count).map(SlotNumber) {
            if self.slots[slot].returned && !self.memory.open(self.offset_of(slot), self.slot_bytes) {
                return slot.0;
            }
            self.slots[slot].returned = false;
        }
        slot_count
    }

    /// The first untouched slots that may be used, at `from` or behind it: so many as lie side by side in `most_bytes`, or a single one.
    pub fn untouched_from(&self, from: SlotNumber, most_bytes: usize) -> Option<Range<SlotNumber>> {
        let is_untouched = |slot: &SlotNumber| !self.slots[*slot].touched;
        let mut open = (from.0..self.slot_count).map(SlotNumber).skip_while(|slot| !is_untouched(slot));
        let first = open.next()?;
        let more = open.take((most_bytes / self.slot_bytes).max(1) - 1).take_while(is_untouched).count();
        Some(first..SlotNumber(first.0 + 1 + more))
    }

    /// The system has given these slots' memory. Of those that had given theirs back meanwhile it goes back.
    pub fn touched(&mut self, slots: Range<SlotNumber>) {
        for slot in (slots.start.0..slots.end.0).map(SlotNumber) {
            match self.slots[slot].returned {
                true => self.memory.release_unwritten(self.offset_of(slot), self.slot_bytes),
                false => self.touch(slot),
            }
        }
    }

    /// Bytes of slots that nobody has touched: reserved, but not yet taken from the system. What is being read for
    /// the first time counts in full, since many reads may be waiting for the drive.
    pub fn untouched_bytes(&self) -> u64 {
        let open_bytes = self.slot_count * self.slot_bytes;
        let untouched =
            || (self.untouched_count * self.slot_bytes).saturating_sub(self.memory.taken_beside(open_bytes));
        self.memory.untaken_bytes(open_bytes).unwrap_or_else(untouched) as u64
    }
}
