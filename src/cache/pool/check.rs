//! Recounts, for tests, what is kept beside the slots' own states.

use super::Pool;
use super::slot::SlotState;
use crate::cache::WaiterSet;
use crate::index::SlotNumber;

impl Pool {
    /// Recounts all that is kept beside the slots' own states; for tests.
    pub fn check(&self) {
        let open = |wanted: &dyn Fn(SlotNumber) -> bool| {
            (0..self.slot_count).map(SlotNumber).filter(|&slot| wanted(slot)).count()
        };
        let is_empty = |slot: SlotNumber| self.slots[slot].state == SlotState::Empty;
        let listed_prefetch = |slot: SlotNumber| self.is_listed(slot) && self.slots[slot].is_prefetched;
        let empty: Vec<SlotNumber> = self.empty.iter(&self.links).collect();
        assert_eq!((empty.len(), self.empty_count), (open(&is_empty), open(&is_empty)), "empty slots");
        assert!(empty.iter().all(|&slot| self.is_open(slot) && is_empty(slot)), "{empty:?}");
        let prefetched: Vec<SlotNumber> = self.prefetched.iter(&self.links).collect();
        assert_eq!(prefetched.len(), open(&listed_prefetch), "read ahead");
        assert!(prefetched.iter().all(|&slot| listed_prefetch(slot)), "{prefetched:?}");
        let evictable =
            open(&|slot| self.is_listed(slot) && !self.slots[slot].is_prefetched && !self.slots[slot].copied);
        let copied = open(&|slot| self.is_listed(slot) && !self.slots[slot].is_prefetched && self.slots[slot].copied);
        assert_eq!(self.copied.iter(&self.links).count(), copied, "copies");
        assert_eq!(self.policy.evictable_count(), evictable, "what the policy may give up");
        assert_eq!(self.untouched_count, open(&|slot| !self.slots[slot].touched), "untouched slots");
        let closed = self.slots.iter().skip(self.slot_count);
        assert_eq!(self.closing_count, closed.filter(|slot| !slot.returned).count(), "closed slots with memory");
        for (index, slot) in self.slots.iter_enumerated() {
            let has_users = slot.users > 0;
            let is_idle = slot.state == SlotState::Empty && !slot.touched && !self.is_open(index);
            assert!(is_idle || !slot.returned, "{index}: its memory is gone: {slot:?}");
            assert!(has_users || slot.waiters == WaiterSet::default(), "{index}: waiters without users");
            match slot.state {
                SlotState::Empty | SlotState::Draining => assert!(!has_users, "{index}: {slot:?}"),
                SlotState::Failed => assert!(has_users, "{index}: {slot:?}"),
                SlotState::Loading => {}
                SlotState::Ready => assert_eq!(self.slot_of_unit[slot.unit] as usize, index.0, "{slot:?}"),
            }
        }
    }
}
