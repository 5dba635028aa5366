//! Recounts what a session keeps beside its slots, for tests.

use super::Session;
use super::core::State;
use crate::cache::SlotState;
use crate::index::SlotNumber;

impl State {
    /// Panics unless blocks, slots and counts agree.
    pub(super) fn check_invariants(&self) {
        self.slots.pools.iter().for_each(crate::cache::Pool::check);
        for (block, location) in self.slots.location.iter_enumerated() {
            let Some(id) = location else { continue };
            let pool = &self.slots.pools[id.pool];
            assert_eq!(pool.block(id.slot), block, "{id:?} holds another block");
            let state = pool.state(id.slot);
            assert!(
                matches!(state, SlotState::Loading | SlotState::Ready),
                "block {block} is in a slot that is {state:?}"
            );
        }
        let in_state = |states: &[SlotState]| -> usize {
            let count = |pool: &crate::cache::Pool| {
                (0..pool.largest_slot_count())
                    .map(SlotNumber)
                    .filter(|&slot| states.contains(&pool.state(slot)))
                    .count()
            };
            self.slots.pools.iter().map(count).sum()
        };
        let located = self.slots.location.iter().flatten().count();
        assert_eq!(located, in_state(&[SlotState::Loading, SlotState::Ready]), "every block in RAM can be found");
        assert_eq!(self.slots.reads_in_flight, in_state(&[SlotState::Loading, SlotState::Draining]), "reads in flight");
        for id in &self.warming {
            assert_eq!(self.slots.pools[id.pool].state(id.slot), SlotState::Loading, "{id:?} is not being warmed");
        }
    }
}

impl Session {
    /// Panics unless the running session's books agree.
    pub(crate) fn check(&self) {
        self.running().unwrap().core.state.lock().check_invariants();
    }
}
