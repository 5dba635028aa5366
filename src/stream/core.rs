//! The state that fetches and read threads share, behind one lock.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};
use typed_index_collections::{TiSlice, TiVec};

use crate::cache::policy::PolicyKind;
use crate::cache::{Pool, SlotCount, WaiterSet};
use crate::config::PrefetchSetting;
use crate::error::{Error, Result};
use crate::forecast::Pace;
use crate::index::{BlockId, PoolId, ReadToken, StreamedId, WaiterId};
use crate::io::{DirectFile, Sink};
use crate::memory::{Claim, HostMemory, Slabs, Tenant};
use crate::placement::Task;
use crate::predict::UsageProfile;
use crate::stats::Counters;

use super::dense::Order;
use super::slots::{SlotId, Slots};
use super::speculation::Speculation;
use super::tensors::StreamedTensors;
use super::timeline::{Event, Timeline};

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
        }))
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

    /// Reads of another engine's begin, and are over: for the time with a read in flight.
    pub(super) fn reads_begin(&self) {
        let mut state = self.state.lock();
        state.slots.count_read_time(&self.counters);
        state.slots.reads_in_flight += 1;
    }

    /// See [`Self::reads_begin`].
    pub(super) fn reads_end(&self) {
        let mut state = self.state.lock();
        state.slots.count_read_time(&self.counters);
        state.slots.reads_in_flight -= 1;
    }

    /// Chooses anew which dense tensors stay, once there are passes to judge by and then less and less often. Returns the
    /// number of slots that the others flow through, if it has changed.
    pub(super) fn retune(&self, state: &mut State) -> Option<usize> {
        let complete = state.order.passes() - 1;
        if complete < 2 || !complete.is_power_of_two() {
            return None;
        }
        state.slots.count_read_time(&self.counters);
        let bytes_per_second = self.counters.read_bytes_per_second()?;
        let order = self.dense_order(state).filter(|order| !order.is_empty())?;
        let Slots { pins, pools, location, .. } = &mut state.slots;
        pins.retune(&self.streamed, &order, bytes_per_second, pools, location).then(|| pins.ring())
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
        for (pool, &slots) in pools.iter_mut().zip(&slots) {
            pool.resize(slots, |block| location[block] = None);
        }
        let opened: TiVec<PoolId, usize> = pools.iter().map(Pool::slot_count).collect();
        pins.fit(&self.streamed, &opened, &order, pools, location);
        let waiting = std::mem::take(&mut state.want_room);
        drop(state);
        self.wake(waiting);
        if opened != slots {
            let (opened, wanted): (usize, usize) = (opened.iter().sum(), slots.iter().sum());
            tracing::info!("the system refuses memory: {opened} slots for weights instead of {wanted}");
        }
    }

    fn finish_closing(&self) {
        let mut state = self.state.lock();
        let Slots { pools, location, .. } = &mut state.slots;
        for pool in pools.iter_mut() {
            pool.finish_closing(|block| location[block] = None);
        }
    }
}

impl Sink for Core {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        let mut state = self.state.lock();
        let id = state.slots.id_of(token);
        let awaited_by = state.slots.finished(self, id, outcome.is_ok());
        let warmed = state.warming.iter().position(|&warming| warming == id);
        warmed.map(|index| state.warming.swap_remove(index));
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
