//! The state that fetches and read threads share, behind one lock.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::cache::{Members, Pool};
use crate::error::{Error, Result};
use crate::io::{Destination, DirectFile, Priority, Request, Sink};
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
    /// The fetches that exist.
    pub(super) fetches: Members,
    /// Those that sleep until a slot can be had.
    pub(super) want_room: Members,
    reads_in_flight: usize,
    reading_since: Instant,
}

/// State, the means to wait for its changes, and the counters.
pub(super) struct Core {
    pub(super) state: Mutex<State>,
    /// By member: signalled when a slot that it awaits becomes Ready, when it wants room and a slot becomes free, and on
    /// an error.
    pub(super) signals: Box<[Condvar]>,
    pub(super) counters: Counters,
    pub(super) streamed: Arc<StreamedTensors>,
    /// By block: never evicted.
    permanent: Vec<bool>,
    /// By pool: the token of its first slot.
    first_token: Vec<usize>,
}

/// The models that run in this process.
static RUNNING: Mutex<Vec<Weak<Core>>> = Mutex::new(Vec::new());

/// Bytes that the models of this process have reserved and not used yet. The system still counts them as available, but a
/// budget must not: they are spoken for.
pub(super) fn promised_bytes() -> u64 {
    let mut running = RUNNING.lock();
    running.retain(|core| core.strong_count() > 0);
    let untouched = |core: Arc<Core>| core.state.lock().pools.iter().map(Pool::untouched_bytes).sum::<u64>();
    running.iter().filter_map(Weak::upgrade).map(untouched).sum()
}

impl Core {
    pub(super) fn new(streamed: Arc<StreamedTensors>, slots_per_pool: &[usize]) -> Result<Arc<Self>> {
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
            fetches: Members::default(),
            want_room: Members::default(),
            reads_in_flight: 0,
            reading_since: Instant::now(),
        };
        let core = Arc::new(Self {
            state: Mutex::new(state),
            signals: (0..Members::COUNT).map(|_| Condvar::new()).collect(),
            counters: Counters::default(),
            permanent: streamed.permanent_blocks(slots_per_pool),
            streamed,
            first_token,
        });
        RUNNING.lock().push(Arc::downgrade(&core));
        Ok(core)
    }

    /// Gives a block a slot and adds the read that fills it to `requests`, to be submitted once the lock is released. `None`
    /// when no slot can be had at this priority now.
    pub(super) fn read(
        &self,
        state: &mut State,
        files: &[DirectFile],
        pool: usize,
        block: usize,
        priority: Priority,
        requests: &mut Vec<Request>,
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
        requests.push(Request { token: self.token(id), file: extent.file, range, destination, priority });
        Some(id)
    }

    pub(super) fn token(&self, id: SlotId) -> usize {
        self.first_token[id.pool] + id.slot
    }

    fn slot_of(&self, token: usize) -> SlotId {
        let pool = self.first_token.partition_point(|&first| first <= token) - 1;
        SlotId { pool, slot: token - self.first_token[pool] }
    }

    /// Records a failure, and wakes everybody to see it. Neither logging nor waking is done under the lock: a host may ask
    /// for statistics in its log callback.
    pub(super) fn fail(&self, mut state: MutexGuard<'_, State>, error: Error) {
        self.counters.errors.add(1);
        let first = state.error.is_none();
        if first {
            state.error = Some(error.clone());
        }
        let everybody = state.fetches;
        drop(state);
        if first {
            tracing::error!("{error}");
        }
        self.wake(everybody);
    }

    /// Wakes fetches; to be called without the lock.
    pub(super) fn wake(&self, members: Members) {
        for member in members.iter() {
            self.signals[member].notify_all();
        }
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
            Ok(()) => {
                let awaited_by = state.pools[id.pool].loaded(id.slot);
                let wake = if awaited_by == Members::default() { state.want_room } else { awaited_by };
                drop(state);
                self.wake(wake);
            }
            Err(error) => self.fail(state, error),
        }
    }

    fn broken(&self, error: Error) {
        self.fail(self.state.lock(), error);
    }
}
