//! The state that fetches and read threads share, behind one lock.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use typed_index_collections::{TiSlice, TiVec};

use crate::cache::policy::PolicyKind;
use crate::cache::{NewBlock, Pool, SlotCount, SlotState, TakeFor, WaiterSet};
use crate::config::PrefetchSetting;
use crate::error::{Error, Result};
use crate::index::{BlockId, PoolId, ReadToken, SlotNumber, StreamedId, WaiterId};
use crate::io::{Cancelled, Destination, DirectFile, Engine, Priority, Request, Sink};
use crate::memory::{Claim, HostMemory, Slabs, Tenant};
use crate::placement::Task;
use crate::predict::UsageProfile;
use crate::stats::Counters;

use super::dense::Order;
use super::slots::{SlotId, Slots};
use super::speculation::Speculation;
use super::tensors::StreamedTensors;
use super::timeline::{Event, Timeline};
use crate::forecast::Pace;

/// What the lock guards.
pub(super) struct State {
    pub(super) slots: Slots,
    pub(super) order: Order,
    pub(super) speculation: Speculation,
    pub(super) pace: Pace,
    /// The latest failure. Nothing is handed out until a later demand has found its cause gone.
    pub(super) failure: Option<Failure>,
    failure_count: u64,
    /// The fetches that exist.
    pub(super) fetches: WaiterSet,
    /// Those that sleep until a slot can be had.
    pub(super) want_room: WaiterSet,
    /// Slots that are being read into to warm the cache.
    pub(super) warming: Vec<SlotId>,
    /// The session ends.
    pub(super) stopping: bool,
}

/// A failure, told from those before and after it.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    number: u64,
}

impl State {
    /// Whether nothing more needs to be read.
    pub(super) fn is_over(&self) -> bool {
        self.stopping || self.failure.is_some()
    }

    /// Fails while the cause of a failure may still be there.
    pub(super) fn check(&self) -> Result<()> {
        self.failure.as_ref().map_or(Ok(()), |failure| Err(failure.error.clone()))
    }
}

/// State, the means to wait for its changes, and the counters.
pub(super) struct Core {
    pub(super) state: Mutex<State>,
    /// Signalled when a slot that it awaits becomes Ready, when it wants room and a slot becomes free, and on
    /// an error.
    pub(super) signals: TiVec<WaiterId, Condvar>,
    /// Signalled when there is something new for the keeper of the usage profile.
    pub(super) keeper: Condvar,
    /// Nobody takes this lock while holding that of the state.
    pub(super) usage_profile: Mutex<UsageProfile>,
    pub(super) counters: Counters,
    pub(super) streamed: Arc<StreamedTensors>,
    /// What divides a budget among the pools.
    task: Arc<Task>,
    pub(super) timeline: Option<Timeline>,
    /// By pool: the token of its first slot.
    first_token: TiVec<PoolId, ReadToken>,
}

impl Core {
    pub(super) fn new(
        streamed: Arc<StreamedTensors>,
        task: Arc<Task>,
        slots_per_pool: &TiSlice<PoolId, SlotCount>,
        timeline: Option<Timeline>,
        prefetch: PrefetchSetting,
        host: Option<&Arc<dyn HostMemory>>,
    ) -> Result<Arc<Self>> {
        let pools = streamed
            .classes
            .iter()
            .zip(slots_per_pool)
            .map(|(class, &slots)| {
                // Dense blocks come round in turn; which of them stay is not left to a policy.
                let kind = if class.every_pass { PolicyKind::Lru } else { PolicyKind::DEFAULT };
                let shape = streamed.policy_shape(class.every_pass);
                let (policy, unit_count, slot_bytes) =
                    (kind.build(shape), shape.unit_count(), class.slot_bytes as usize);
                let Some(host) = host else { return Pool::new(slot_bytes, slots, policy, unit_count) };
                let memory = Slabs::new(slot_bytes, slots.now, slots.most, Arc::clone(host));
                Ok(Pool::over(Box::new(memory), slot_bytes, slots, policy, unit_count))
            })
            .collect::<Result<TiVec<PoolId, Pool>>>()?;
        let next_token =
            |next: &mut ReadToken, pool: &Pool| Some(std::mem::replace(next, *next + pool.largest_slot_count()));
        let first_token = pools.iter().scan(ReadToken(0), next_token).collect();
        let state = State {
            slots: Slots::new(pools, &streamed),
            order: Order::new(&streamed.likely_order()),
            speculation: Speculation::new(prefetch == PrefetchSetting::On, streamed.expert_layers.len()),
            pace: Pace::default(),
            failure: None,
            failure_count: 0,
            fetches: WaiterSet::default(),
            want_room: WaiterSet::default(),
            warming: Vec::new(),
            stopping: false,
        };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            signals: (0..WaiterSet::COUNT).map(|_| Condvar::new()).collect(),
            keeper: Condvar::new(),
            usage_profile: Mutex::new(UsageProfile::new(
                &streamed.expert_layer_numbers(),
                streamed.policy_shape(false).expert_count,
            )),
            counters: Counters::default(),
            timeline,
            streamed,
            task,
            first_token,
        }))
    }

    /// How many tokens requests can have: one per slot.
    pub(super) fn token_count(&self) -> usize {
        self.state.lock().slots.pools.iter().map(Pool::largest_slot_count).sum()
    }

    fn pool_bytes_of(&self, state: &State) -> u64 {
        let pools = state.slots.pools.iter().zip(&self.streamed.classes);
        pools.map(|(pool, class)| pool.slot_count() as u64 * class.slot_bytes).sum()
    }

    /// The dense tensors in the order of use, once a whole pass has shown it.
    fn dense_order(&self, state: &State) -> Option<Vec<StreamedId>> {
        let is_dense = |tensor: &StreamedId| !self.streamed.tensors[*tensor].is_expert;
        let mut is_new: TiVec<StreamedId, bool> = vec![true; self.streamed.tensors.len()].into();
        // A looped model uses a tensor several times in a pass; it stays, or does not, at its first use.
        let first_use = |tensor: &StreamedId| std::mem::take(&mut is_new[*tensor]);
        let order: Vec<StreamedId> =
            state.order.learned()?.iter().copied().filter(is_dense).filter(first_use).collect();
        let dense_count = self.streamed.tensors.keys().filter(is_dense).count();
        // A pass that leaves tensors out says nothing about them.
        (order.len() == dense_count).then_some(order)
    }

    /// Gives a block a slot and adds the read that fills it to `requests`, to be submitted once the lock is released. `None`
    /// when no slot can be had at this priority now.
    pub(super) fn read(
        &self,
        slots: &mut Slots,
        files: &[DirectFile],
        pool: PoolId,
        block: BlockId,
        priority: Priority,
        requests: &mut Vec<Request>,
    ) -> Option<SlotId> {
        assert!(slots.location[block].is_none(), "a block is read that has a slot already");
        let extent = self.streamed.blocks[block];
        let range = files[extent.file].widen(extent.offset, extent.size_bytes);
        let new = self.new_block(block, range.head_padding);
        assert_eq!(self.streamed.tensor_of(block).0.pool, pool, "a block belongs into slots of its own size");
        let purpose = if priority == Priority::Demand { TakeFor::Demand } else { TakeFor::Prefetch };
        let (slot, evicted) = slots.pools[pool].take(new, slots.position, purpose)?;
        if let Some(evicted) = evicted {
            slots.location[evicted] = None;
        }
        if slots.pins.is_pinned(block) {
            slots.pools[pool].set_pinned(slot, true);
        }
        let id = SlotId { pool, slot };
        slots.location[block] = Some(id);
        slots.is_certain[block] = false;
        slots.pools[pool].set_copied(slot, slots.copies[block] > 0);
        self.count_read_time(slots);
        slots.reads_in_flight += 1;
        self.record(Event::ReadBegin, block);
        // SAFETY: the slot is as large as any widened block of its class and page-aligned; it is Loading, so by the
        // pool's invariants nobody reads it or gives it away until `finished` has marked it Ready.
        let destination = unsafe { Destination::new(slots.pools[pool].address(slot)) };
        requests.push(Request {
            token: self.token(id),
            generation: slots.pools[pool].generation(slot),
            file: extent.file,
            range,
            destination,
            priority,
        });
        Some(id)
    }

    /// Lets a read ahead of need go that is not wanted. As far as the drive has not begun with it, it is not read any more.
    pub(super) fn take_back(&self, slots: &mut Slots, engine: &dyn Engine, block: BlockId, id: SlotId) {
        let Slots { pools, location, copies, .. } = slots;
        let pool = &mut pools[id.pool];
        let Some(Cancelled { begun_bytes, is_in_flight }) = engine.cancel(self.token(id)) else {
            pool.expire(id.slot);
            self.counters.prefetch_wasted.add(1);
            return;
        };
        location[block] = None;
        if begun_bytes > 0 {
            pool.drain(id.slot, is_in_flight);
            self.counters.read_bytes.add(begun_bytes as u64);
            self.counters.prefetch_wasted.add(1);
        } else {
            if let Some(before) = pool.give_back(id.slot, |before| location[before].is_some()) {
                location[before] = Some(id);
                pool.set_copied(id.slot, copies[before] > 0);
            }
            self.counters.prefetch_cancelled.add(1);
        }
        if !is_in_flight {
            self.count_read_time(slots);
            slots.reads_in_flight -= 1;
        }
    }

    /// Gives a block a slot whose bytes come from a copy of the host's instead of the drive, if it is worth one. Returns where they go.
    pub(super) fn take_for_copy(&self, slots: &mut Slots, block: BlockId) -> Option<*mut u8> {
        let pool = self.streamed.tensor_of(block).0.pool;
        let (slot, evicted) = slots.pools[pool].take_for_copy(self.new_block(block, 0), slots.position)?;
        if let Some(evicted) = evicted {
            slots.location[evicted] = None;
        }
        slots.location[block] = Some(SlotId { pool, slot });
        self.counters.rescued_bytes.add(self.streamed.blocks[block].size_bytes as u64);
        Some(slots.pools[pool].address(slot))
    }

    /// A block as its pool gets to know it; its first byte will be `head_padding` bytes into the slot.
    fn new_block(&self, block: BlockId, head_padding: usize) -> NewBlock {
        let (tensor, expert) = self.streamed.tensor_of(block);
        NewBlock {
            block,
            unit: tensor.first_unit + expert,
            preferred_slot: SlotNumber(tensor.first_in_pool + expert.0),
            head_padding,
        }
    }

    /// Brings the time with a read in flight up to date: a busy drive may not pause for minutes.
    pub(super) fn count_read_time(&self, slots: &mut Slots) {
        let since = std::mem::replace(&mut slots.counted_until, Instant::now());
        if slots.reads_in_flight > 0 {
            self.counters.read_time.add_time(since.elapsed());
        }
    }

    /// Reads of another engine's begin, and are over: for the time with a read in flight.
    pub(super) fn reads_begin(&self) {
        let mut state = self.state.lock();
        self.count_read_time(&mut state.slots);
        state.slots.reads_in_flight += 1;
    }

    /// See [`Self::reads_begin`].
    pub(super) fn reads_end(&self) {
        let mut state = self.state.lock();
        self.count_read_time(&mut state.slots);
        state.slots.reads_in_flight -= 1;
    }

    /// Chooses anew which dense tensors stay, once there are passes to judge by and then less and less often. Returns the
    /// number of slots that the others flow through, if it has changed.
    pub(super) fn retune(&self, state: &mut State) -> Option<usize> {
        let complete = state.order.passes() - 1;
        if complete < 2 || !complete.is_power_of_two() {
            return None;
        }
        self.count_read_time(&mut state.slots);
        let bytes_per_second = self.counters.read_bytes_per_second()?;
        let order = self.dense_order(state).filter(|order| !order.is_empty())?;
        let Slots { pins, pools, location, .. } = &mut state.slots;
        pins.retune(&self.streamed, &order, bytes_per_second, pools, location).then(|| pins.ring())
    }

    pub(super) fn token(&self, id: SlotId) -> ReadToken {
        self.first_token[id.pool] + id.slot.0
    }

    fn slot_of(&self, token: ReadToken) -> SlotId {
        let pool = PoolId(self.first_token.raw.partition_point(|&first| first <= token) - 1);
        SlotId { pool, slot: SlotNumber(token - self.first_token[pool]) }
    }

    /// Notes an event of a block, if someone wants to know.
    pub(super) fn record(&self, event: Event, block: BlockId) {
        let Some(timeline) = &self.timeline else { return };
        let (tensor, expert) = self.streamed.tensor_of(block);
        let bytes = self.streamed.blocks[block].size_bytes;
        match tensor.is_expert {
            true => timeline.record(event, &format!("{}#{expert}", tensor.name), bytes),
            false => timeline.record(event, &tensor.name, bytes),
        }
    }

    /// Records a failure, and wakes everybody to see it. Neither logging nor waking is done under the lock: a host may ask
    /// for statistics in its log callback.
    pub(super) fn fail(&self, mut state: MutexGuard<'_, State>, error: Error) {
        self.counters.errors.add(1);
        let first = state.failure.is_none();
        if first {
            state.failure_count += 1;
            state.failure = Some(Failure { error: error.clone(), number: state.failure_count });
        }
        let everybody = state.fetches;
        drop(state);
        if first {
            tracing::error!("{error}");
        }
        self.wake(everybody);
        self.keeper.notify_all();
    }

    /// To be called by a new demand, without the lock: after a failure whose cause may pass, it goes on if the files are what
    /// they were.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn recover(&self, files: &[DirectFile]) -> Result<()> {
        let Some(failure) = self.state.lock().failure.clone() else { return Ok(()) };
        if !failure.error.may_pass() {
            return Err(failure.error);
        }
        let now = files.iter().try_for_each(DirectFile::reexamine);
        let mut state = self.state.lock();
        if state.failure.as_ref().is_none_or(|latest| latest.number != failure.number) {
            drop(state);
            return now; // another demand was faster
        }
        match now {
            Ok(()) => state.failure = None,
            // The same, in the words of the first time; or what is known better by now.
            Err(error) if error.code() == failure.error.code() => return Err(failure.error),
            Err(error) => {
                state.failure = Some(Failure { error: error.clone(), ..failure });
                return Err(error);
            }
        }
        drop(state);
        tracing::warn!("reading goes on after: {}", failure.error);
        Ok(())
    }

    /// Wakes fetches; to be called without the lock.
    pub(super) fn wake(&self, waiters: WaiterSet) {
        for waiter in waiters.iter() {
            self.signals[waiter].notify_all();
        }
    }
}

impl Tenant for Core {
    fn claim(&self) -> Claim {
        Claim::of(&self.streamed.classes)
    }

    fn pool_bytes(&self) -> u64 {
        self.pool_bytes_of(&self.state.lock())
    }

    fn untouched_bytes(&self) -> u64 {
        self.state.lock().slots.pools.iter().map(Pool::untouched_bytes).sum()
    }

    fn resize(&self, budget_bytes: u64) {
        let Ok(slots) = self.task.divide(budget_bytes) else { return };
        let mut state = self.state.lock();
        let slots: TiVec<PoolId, usize> =
            slots.iter().zip(&state.slots.pools).map(|(&slots, pool)| slots.min(pool.largest_slot_count())).collect();
        let order = self.dense_order(&state).unwrap_or_else(|| self.streamed.dense_in_likely_order());
        let Slots { pins, pools, location, .. } = &mut state.slots;
        pins.fit(&self.streamed, &slots, &order, pools, location);
        for (pool, &slots) in pools.iter_mut().zip(&slots) {
            pool.resize(slots, |block| location[block] = None);
        }
        let waiting = std::mem::take(&mut state.want_room);
        drop(state);
        self.wake(waiting);
    }
}

impl Sink for Core {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        let id = self.slot_of(token);
        let mut state = self.state.lock();
        self.count_read_time(&mut state.slots);
        state.slots.reads_in_flight -= 1;
        let warmed = state.warming.iter().position(|&warming| warming == id);
        warmed.map(|index| state.warming.swap_remove(index));
        let block = state.slots.pools[id.pool].block(id.slot);
        // What was broken off has been counted already, as far as it went.
        let is_draining = state.slots.pools[id.pool].state(id.slot) == SlotState::Draining;
        self.record(Event::ReadEnd, block);
        let awaited_by = match outcome {
            Ok(()) => {
                if !is_draining {
                    self.counters.read_bytes.add(self.streamed.blocks[block].size_bytes as u64);
                }
                state.slots.pools[id.pool].loaded(id.slot)
            }
            Err(_) => {
                if !is_draining {
                    state.slots.location[block] = None;
                }
                state.slots.pools[id.pool].failed(id.slot)
            }
        };
        match outcome {
            // What nobody waits for is read again should anybody want it, and then fails for that one.
            Err(error) if awaited_by != WaiterSet::default() => return self.fail(state, error),
            Err(error) => tracing::debug!("a read ahead of need failed: {error}"),
            Ok(()) => {}
        }
        let wake = if awaited_by == WaiterSet::default() { state.want_room } else { awaited_by };
        drop(state);
        self.wake(wake);
        if warmed.is_some() {
            self.keeper.notify_all();
        }
    }

    fn broken(&self, error: Error) {
        self.fail(self.state.lock(), error);
    }
}
