//! The state that fetches and read threads share, behind one lock.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::cache::Pool;
use crate::error::{Error, Result};
use crate::io::{Destination, DirectFile, Engine, Priority, Request, Sink};
use crate::predict::Order;
use crate::stats::Counters;

use super::tensors::StreamedTensors;

/// A slot: its pool and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId {
    pub(super) pool: usize,
    pub(super) slot: usize,
}

/// What the lock guards.
pub(super) struct State {
    pub(super) pools: Vec<Pool>,
    /// By block: the slot that it is in or being read into.
    pub(super) location: Vec<Option<SlotId>>,
    pub(super) order: Order,
    /// The first failure. Nothing is handed out after it.
    pub(super) error: Option<Error>,
    reads_in_flight: usize,
    reading_since: Instant,
}

/// State, the means to wait for its changes, and the counters.
pub(super) struct Core {
    pub(super) state: Mutex<State>,
    /// Signalled when a slot becomes Ready or free, and on an error.
    pub(super) changed: Condvar,
    pub(super) counters: Counters,
    pub(super) streamed: Arc<StreamedTensors>,
    /// By block: never evicted.
    permanent: Vec<bool>,
    /// By pool: the token of its first slot.
    first_token: Vec<usize>,
}

impl Core {
    pub(super) fn new(streamed: Arc<StreamedTensors>, slots_per_pool: &[usize]) -> Result<Self> {
        let pools = streamed
            .classes
            .iter()
            .zip(slots_per_pool)
            .map(|(class, &slots)| Pool::new(class.slot_bytes as usize, slots))
            .collect::<Result<Vec<_>>>()?;
        let first_token =
            slots_per_pool.iter().scan(0, |next, &slots| Some(std::mem::replace(next, *next + slots))).collect();
        let state = State {
            pools,
            location: vec![None; streamed.blocks.len()],
            order: Order::new(streamed.tensors.len()),
            error: None,
            reads_in_flight: 0,
            reading_since: Instant::now(),
        };
        Ok(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            counters: Counters::default(),
            permanent: streamed.permanent_blocks(slots_per_pool),
            streamed,
            first_token,
        })
    }

    /// Starts reading a block that has no slot. `None` when no slot can be had at this priority now.
    pub(super) fn read(
        &self,
        state: &mut State,
        engine: &dyn Engine,
        files: &[DirectFile],
        pool: usize,
        block: usize,
        priority: Priority,
    ) -> Option<SlotId> {
        debug_assert!(state.location[block].is_none());
        let extent = self.streamed.blocks[block];
        let range = files[extent.file].widen(extent.offset, extent.size_bytes);
        let (slot, evicted) = state.pools[pool].take(block, range.lead, priority)?;
        if let Some(evicted) = evicted {
            state.location[evicted] = None;
        }
        if self.permanent[block] {
            state.pools[pool].make_permanent(slot);
        }
        let id = SlotId { pool, slot };
        state.location[block] = Some(id);
        if state.reads_in_flight == 0 {
            state.reading_since = Instant::now();
        }
        state.reads_in_flight += 1;
        self.counters.read_bytes.add(range.length as u64);
        if priority == Priority::Speculative {
            self.counters.prefetch_issued.add(1);
        }
        // SAFETY: the slot is as large as any widened block of its class and page-aligned; it is Loading, so by the
        // pool's invariants nobody reads it or gives it away until `finished` has marked it Ready.
        let destination = unsafe { Destination::new(state.pools[pool].address(slot)) };
        engine.submit(Request { token: self.token(id), file: extent.file, range, destination, priority });
        Some(id)
    }

    pub(super) fn token(&self, id: SlotId) -> usize {
        self.first_token[id.pool] + id.slot
    }

    fn slot_of(&self, token: usize) -> SlotId {
        let pool = self.first_token.partition_point(|&first| first <= token) - 1;
        SlotId { pool, slot: token - self.first_token[pool] }
    }

    /// Records a failure and wakes everybody that waits.
    pub(super) fn fail(&self, state: &mut State, error: Error) {
        self.counters.errors.add(1);
        if state.error.is_none() {
            tracing::error!("{error}");
            state.error = Some(error);
        }
        self.changed.notify_all();
    }
}

impl Sink for Core {
    fn finished(&self, token: usize, outcome: Result<()>) {
        let id = self.slot_of(token);
        let mut state = self.state.lock();
        state.reads_in_flight -= 1;
        if state.reads_in_flight == 0 {
            self.counters.read_time.add_time(state.reading_since.elapsed());
        }
        match outcome {
            Ok(()) => state.pools[id.pool].loaded(id.slot),
            Err(error) => self.fail(&mut state, error),
        }
        drop(state);
        self.changed.notify_all();
    }
}
