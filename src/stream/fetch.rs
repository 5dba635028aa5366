//! One multiplication's demand: which blocks, and their delivery in waves as they become ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use typed_index_collections::TiVec;

use crate::cache::{SlotState, WaiterSet};
use crate::config::PrefetchSetting;
use crate::error::{Error, ErrorCode, Result};
use crate::index::{BlockId, ExpertId, ReadToken, StreamedId, WaiterId};
use crate::io::{Priority, Request};

use super::ahead::Knowledge;
use super::core::{Core, State};
use super::demand::{Demand, Experts, no_table, not_streamed};
use super::pass::Pass;
use super::running::Running;
use super::session::Session;
use super::slots::SlotId;
use super::tensors::StreamedTensor;
use super::timeline::Event;

/// Weights that are ready, and stay so until the fetch goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Which expert it is; 0 for a dense tensor.
    pub expert: ExpertId,
    /// Its first byte.
    pub data: *const u8,
}

/// A demand for a tensor, or for some experts of one.
///
/// [`Self::begin`] starts all reads that find room; [`Self::next`] delivers what is ready, what was in RAM first, and
/// waits only when nothing is. What one call delivered is given back by the next, so a demand of any size passes through
/// any number of slots, and every block is delivered exactly once.
///
/// A thread must hold at most one fetch that is not finished: two could each wait for slots that the other holds.
pub struct Fetch {
    session: Arc<Session>,
    /// The tensor of the latest demand.
    tensor: StreamedId,
    /// Demanded blocks without a slot, the first one last.
    missing: Vec<BlockId>,
    /// Slots of demanded blocks that are not delivered yet; this fetch is a user of each.
    awaited: Vec<SlotId>,
    /// Slots of what the latest `next` or `early` delivered.
    held: Vec<SlotId>,
    /// Slots of what was delivered before and is kept until `release`.
    kept: Vec<SlotId>,
    /// The experts of the latest demand.
    experts: Experts,
    /// What is noted of the pass.
    pass: Pass,
    /// Between a successful `begin` and `end`.
    begun: bool,
    /// Our number among the session's fetches, from the first demand on.
    waiter: Option<WaiterId>,
    /// Reads to submit, and tokens to promote with their generations, once the lock is released.
    requests: Vec<Request>,
    promotions: Vec<(ReadToken, u64)>,
}

// SAFETY: slots are plain numbers, and the memory behind delivered pointers belongs to the session, which `self` keeps
// alive; nothing is tied to a thread.
unsafe impl Send for Fetch {}

impl Fetch {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            tensor: StreamedId(0),
            missing: Vec::new(),
            awaited: Vec::new(),
            held: Vec::new(),
            kept: Vec::new(),
            experts: Experts::default(),
            pass: Pass::default(),
            begun: false,
            waiter: None,
            requests: Vec::new(),
            promotions: Vec::new(),
        }
    }

    /// Demands a dense tensor (`routing` empty) or experts of a tensor (`routing`: ids, the same number for each of
    /// `tokens` tokens, repetitions welcome). Ends an earlier demand that was not finished.
    ///
    /// # Errors
    /// `InvalidArgument` for a tensor that is not streamed or an expert that does not exist, `Budget` and `Resource` when
    /// the pools cannot be made; the reason of an earlier failure that has not passed.
    pub fn begin(&mut self, tensor: usize, routing: &[i32], tokens: usize) -> Result<()> {
        self.begin_some(tensor, routing, tokens, None)
    }

    /// As [`Self::begin`], for a host that has copies of some experts: of the experts that are used, only `wanted` are delivered, all of
    /// them if there is no list.
    ///
    /// # Errors
    /// As [`Self::begin`]; `InvalidArgument` also when something is wanted that is not used.
    pub fn begin_some(&mut self, tensor: usize, routing: &[i32], tokens: usize, wanted: Option<&[i32]>) -> Result<()> {
        self.end();
        let session = Arc::clone(&self.session);
        let running = session.running()?;
        let core = &*running.core;
        let index = core.streamed.find(tensor).ok_or_else(|| not_streamed(tensor, &session))?;
        let streamed = &core.streamed.tensors[index];
        self.experts.collect(streamed, routing, tokens, wanted)?;
        core.recover(&session.files)?;
        let mut state = core.state.lock();
        state.check()?;
        let waiter = *self.waiter.get_or_insert_with(|| state.fetches.first_free());
        state.fetches.insert(waiter);

        // What the pass notes: order, pace, pins, what was foreseen. Nothing that is delivered depends on it.
        let Self { pass, experts, .. } = self;
        let demand = Demand { tensor: index, streamed, experts, routing, tokens, waiter };
        let notes = pass.enter(running, &mut state, &demand);
        // What is demanded.
        self.tensor = index;
        self.look_up(core, &mut state, streamed, waiter);
        self.request_missing(core, &mut state, waiter);
        // What is certain to be demanded next.
        let Self { pass, experts, requests, .. } = self;
        pass.read_ahead(core, &mut state.slots, &session, experts.wanted(), requests);
        drop(state);
        self.submit(running);
        self.pass.conclude(running, routing, tokens, notes);
        self.begun = true;
        Ok(())
    }

    /// Finds what of the demand is in a slot, and what is missing.
    fn look_up(&mut self, core: &Core, state: &mut State, streamed: &StreamedTensor, waiter: WaiterId) {
        let (used, wanted) = (self.experts.used().len(), self.experts.wanted().len());
        core.counters.device_hits.add((used - wanted) as u64);
        for index in 0..wanted {
            let block = streamed.first_block + self.experts.wanted()[index];
            let hit = match state.slots.location[block] {
                Some(id) => {
                    self.awaited.push(id);
                    self.join(core, state, id, waiter)
                }
                None => {
                    self.missing.push(block);
                    self.count_missing(core, streamed);
                    false
                }
            };
            if streamed.is_expert {
                let counter = if hit { &core.counters.expert_hits } else { &core.counters.expert_misses };
                counter.add(1);
            }
        }
        self.missing.reverse();
    }

    /// Tells which experts of a layer the coming pass will use, of which `tensor` holds some, as soon as that follows from the tokens; or
    /// which rows of a table, in the order in which it will look them up.
    /// To be called before the pass begins, for one layer after the other; makes no difference but in time.
    pub fn expect(&mut self, tensor: usize, routing: &[i32]) {
        let session = Arc::clone(&self.session);
        if session.config.prefetch == PrefetchSetting::Off {
            return;
        }
        // What is wrong here is told by the demand.
        let Ok(running) = session.running() else { return };
        let core = &running.core;
        if let (Some(table), Some(rows)) = (core.streamed.table(tensor), &running.rows) {
            return rows.announce(table, routing);
        }
        let streamed = core.streamed.find(tensor).map(|index| &core.streamed.tensors[index]);
        let Some((streamed, layer)) = streamed.and_then(|tensor| Some((tensor, tensor.expert_layer?))) else { return };
        let mut experts: Vec<ExpertId> = Vec::new();
        let mut is_new: TiVec<ExpertId, bool> = vec![true; streamed.block_count].into();
        for expert in routing.iter().filter_map(|&id| ExpertId::of_host(id)) {
            if is_new.get_mut(expert).is_some_and(std::mem::take) {
                experts.push(expert);
            }
        }
        let mut state = core.state.lock();
        if state.failure.is_some() {
            return;
        }
        self.pass.certain.announce(core, &mut state.slots, &*running.engine, layer, &experts);
        self.pass.certain.read(core, &mut state.slots, &session.files, &mut self.requests);
        drop(state);
        self.submit(running);
    }

    /// The next demand is the first of a pass: of what is computed for a batch of tokens, once for all of them, however often
    /// a tensor is used in it. Where nobody says so, a pass begins whenever the tensor is used that was demanded first of all.
    pub fn begin_pass(&mut self) {
        self.pass.walk.begin_pass();
    }

    /// Tells what goes into the multiplication that the demand is for, as rows of `row_length`, so that the experts of the next
    /// layer can be foreseen; of a larger batch its last rows, to learn from. Optional; makes no difference but in time.
    pub fn look_ahead(&self, row_length: usize, inputs: &[f32]) {
        if let Some(running) = self.session.started().filter(|_| self.begun) {
            self.pass.look_ahead(running, row_length, inputs);
        }
    }

    /// Gives back what the last call delivered and delivers what is ready now, waiting until something is. Nothing
    /// delivered means that the demand is met.
    ///
    /// # Errors
    /// The error of a demand's read, of this fetch or another, since the latest demand that found all well.
    pub fn next(&mut self, deliver: &mut Vec<Block>) -> Result<()> {
        deliver.clear();
        let session = Arc::clone(&self.session);
        let running = session.running()?;
        let core = &running.core;
        let Some(waiter) = self.waiter.filter(|_| self.begun) else {
            return Err(Error::new(ErrorCode::InvalidArgument, "no demand has begun"));
        };
        let streamed = &core.streamed.tensors[self.tensor];
        let first_block = streamed.first_block;
        let mut state = core.state.lock();
        let mut freed = self.release_held(core, &mut state, waiter);
        let mut waiting_since: Option<Instant> = None;
        loop {
            state.check()?;
            freed.extend(self.drop_failed(&mut state, waiter));
            self.request_missing(core, &mut state, waiter);
            self.hold_ready(&state);
            if !self.requests.is_empty() || freed != WaiterSet::default() {
                // Neither submitting nor waking others is done under the lock; much may have changed afterwards.
                drop(state);
                self.submit(running);
                core.wake(std::mem::take(&mut freed));
                state = core.state.lock();
                continue;
            }
            if !self.held.is_empty() || (self.awaited.is_empty() && self.missing.is_empty()) {
                break;
            }
            if !self.missing.is_empty() {
                state.want_room.insert(waiter);
            }
            if waiting_since.is_none() {
                waiting_since = Some(Instant::now());
                core.record(Event::WaitBegin, first_block);
            }
            core.signals[waiter].wait(&mut state);
        }
        if let Some(since) = waiting_since {
            self.count_waiting(core, streamed, since.elapsed());
            core.record(Event::WaitEnd, first_block);
        }
        if !streamed.is_expert {
            self.pass.computes();
        }
        for &SlotId { pool, slot } in &self.held {
            core.record(Event::ComputeBegin, state.slots.pools[pool].block(slot));
        }
        deliver.extend(self.held.iter().map(|&SlotId { pool, slot }| {
            let pool = &state.slots.pools[pool];
            Block { expert: ExpertId(pool.block(slot) - first_block), data: pool.data(slot) }
        }));
        drop(state);
        verify(running, first_block, deliver)
    }

    /// Copies rows of a table to `destination`, one after the other. What a demand delivered stays as it is.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no streamed table, for a row that it has not, and for a destination of another size than the
    /// rows have together; the first error of any read of this model.
    pub fn rows(&mut self, tensor: usize, ids: &[i32], destination: &mut [u8]) -> Result<()> {
        let session = Arc::clone(&self.session);
        let running = session.running()?;
        running.core.recover(&session.files)?;
        let table = running.core.streamed.table(tensor);
        let (Some(table), Some(rows)) = (table, &running.rows) else {
            return Err(no_table(tensor, &session));
        };
        rows.read(running.verifier.as_ref(), table, ids, destination)
    }

    /// Whether [`Self::next`] would return at once.
    pub fn is_ready(&self) -> bool {
        let Some(running) = self.session.started() else { return true };
        let state = running.core.state.lock();
        let is_over = self.awaited.is_empty() && self.missing.is_empty();
        let is_ready = |id: &SlotId| state.slots.pools[id.pool].state(id.slot) == SlotState::Ready;
        is_over || state.failure.is_some() || self.awaited.iter().any(is_ready)
    }

    /// Delivers, of another tensor of the same layer, what is in RAM of the experts that are demanded now: something to compute on
    /// while [`Self::next`] would wait. Never waits. What was delivered before is given back. It is no demand: the tensor's own delivers
    /// all of its experts.
    ///
    /// # Errors
    /// `InvalidArgument` without a demand, or for a tensor that has no experts; the error of a demand's read.
    pub fn early(&mut self, tensor: usize, deliver: &mut Vec<Block>) -> Result<()> {
        deliver.clear();
        let session = Arc::clone(&self.session);
        let running = session.running()?;
        let core = &running.core;
        let streamed = core.streamed.find(tensor).map(|index| &core.streamed.tensors[index]);
        let (Some(streamed), Some(waiter)) =
            (streamed.filter(|tensor| tensor.is_expert), self.waiter.filter(|_| self.begun))
        else {
            let message = format!("tensor {tensor} has no experts that are streamed, or no demand has begun");
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        };
        let mut state = core.state.lock();
        state.check()?;
        let freed = self.release_held(core, &mut state, waiter);
        // First of all the drive: there may be room now for what is missing.
        self.request_missing(core, &mut state, waiter);
        for &expert in self.experts.used().iter().filter(|&&expert| streamed.has(expert)) {
            let block = streamed.first_block + expert;
            let Some(id) = state.slots.location[block] else { continue };
            let pool = &mut state.slots.pools[id.pool];
            // What was read ahead is left to the demand that it was read for, which counts it.
            if pool.state(id.slot) != SlotState::Ready || pool.is_prefetched(id.slot) {
                continue;
            }
            pool.join(id.slot, waiter);
            deliver.push(Block { expert, data: pool.data(id.slot) });
            self.held.push(id);
            core.record(Event::ComputeBegin, block);
        }
        drop(state);
        self.submit(running);
        core.wake(freed);
        verify(running, streamed.first_block, deliver)
    }

    /// Fails with the error of a demand's read, of this fetch or another, unless a later demand has found its cause gone.
    ///
    /// # Errors
    /// That error.
    pub fn check(&self) -> Result<()> {
        self.session.started().map_or(Ok(()), |running| running.core.state.lock().check())
    }

    /// Keeps what the last call delivered until [`Self::release`]: whatever is demanded in the meantime, those bytes stay. Nobody else gets
    /// these slots, so a demand that would wait must be preceded by a release.
    pub fn keep(&mut self) {
        self.kept.append(&mut self.held);
    }

    /// Gives back what was kept.
    pub fn release(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let session = Arc::clone(&self.session);
        if let (Ok(running), Some(waiter)) = (session.running(), self.waiter) {
            let mut state = running.core.state.lock();
            std::mem::swap(&mut self.held, &mut self.kept);
            let freed = self.release_held(&running.core, &mut state, waiter);
            std::mem::swap(&mut self.held, &mut self.kept);
            drop(state);
            running.core.wake(freed);
        }
    }

    /// Gives everything back but what is kept, finished or not.
    pub fn end(&mut self) {
        self.begun = false;
        if self.held.is_empty() && self.awaited.is_empty() && self.missing.is_empty() {
            return;
        }
        let session = Arc::clone(&self.session);
        if let (Some(running), Some(waiter)) = (session.started(), self.waiter) {
            let mut state = running.core.state.lock();
            self.held.append(&mut self.awaited);
            let freed = self.release_held(&running.core, &mut state, waiter);
            if !running.core.streamed.tensors[self.tensor].is_expert {
                self.pass.read_next(&running.core, &mut state.slots, &session, &[], &mut self.requests);
            }
            drop(state);
            self.submit(running);
            running.core.wake(freed);
        }
        self.missing.clear();
    }

    /// Gives the engine what was collected under the lock.
    fn submit(&mut self, running: &Running) {
        for (token, generation) in self.promotions.drain(..) {
            running.engine.promote(token, generation);
        }
        if !self.requests.is_empty() {
            running.engine.submit(&mut self.requests);
        }
    }

    /// Makes this fetch a user of a slot. Says whether its block was in RAM through earlier use, not because it was read ahead.
    fn join(&mut self, core: &Core, state: &mut State, id: SlotId, waiter: WaiterId) -> bool {
        let loading = state.slots.pools[id.pool].state(id.slot) == SlotState::Loading;
        let was_prefetched = state.slots.pools[id.pool].join(id.slot, waiter);
        if was_prefetched {
            let block = state.slots.pools[id.pool].block(id.slot);
            let was_certain = std::mem::take(&mut state.slots.is_certain[block]);
            let counter = if was_certain { &core.counters.certain_used } else { &core.counters.prefetch_used };
            counter.add(1);
        }
        if loading && (was_prefetched || state.warming.contains(&id)) {
            self.promotions.push((state.slots.token(id), state.slots.pools[id.pool].generation(id.slot)));
        }
        !was_prefetched && !loading
    }

    fn count_missing(&self, core: &Core, tensor: &StreamedTensor) {
        match self.pass.knowledge_of(tensor) {
            Knowledge::Impossible => {}
            Knowledge::Missing => core.counters.certain_unknown.add(1),
            Knowledge::Complete => core.counters.certain_without_room.add(1),
        }
    }

    fn count_waiting(&self, core: &Core, tensor: &StreamedTensor, time: Duration) {
        core.counters.stall_time.add_time(time);
        if self.pass.knowledge_of(tensor) != Knowledge::Impossible {
            core.counters.certain_stall_time.add_time(time);
        }
    }

    /// Moves what has become ready from what is awaited to what is held.
    fn hold_ready(&mut self, state: &State) {
        let Self { awaited, held, .. } = self;
        awaited.retain(|&id| {
            let is_ready = state.slots.pools[id.pool].state(id.slot) == SlotState::Ready;
            if is_ready {
                held.push(id);
            }
            !is_ready
        });
    }

    /// Starts reads for what has no slot, as far as slots can be had.
    fn request_missing(&mut self, core: &Core, state: &mut State, waiter: WaiterId) {
        while let Some(&block) = self.missing.last() {
            let id = match state.slots.location[block] {
                // Another fetch has asked for it since, or it was read ahead.
                Some(id) => id,
                None => {
                    let (files, requests) = (&self.session.files, &mut self.requests);
                    let Some(id) = state.slots.read(core, files, block, Priority::Demand, requests) else { return };
                    id
                }
            };
            self.missing.pop();
            self.join(core, state, id, waiter);
            self.awaited.push(id);
        }
    }

    /// Misses again what is awaited and whose read has failed: another fetch, which failed with it, may have found the cause gone.
    /// Returns who may want the slots.
    fn drop_failed(&mut self, state: &mut State, waiter: WaiterId) -> WaiterSet {
        let Self { awaited, missing, .. } = self;
        let before = awaited.len();
        awaited.retain(|id| {
            let pool = &mut state.slots.pools[id.pool];
            let has_failed = pool.state(id.slot) == SlotState::Failed;
            if has_failed {
                missing.push(pool.block(id.slot));
                pool.leave(id.slot, waiter);
            }
            !has_failed
        });
        if awaited.len() == before { WaiterSet::default() } else { std::mem::take(&mut state.want_room) }
    }

    /// Gives slots back; returns who may want them.
    fn release_held(&mut self, core: &Core, state: &mut State, waiter: WaiterId) -> WaiterSet {
        if self.held.is_empty() {
            return WaiterSet::default();
        }
        for id in self.held.drain(..) {
            core.record(Event::ComputeEnd, state.slots.pools[id.pool].block(id.slot));
            state.slots.pools[id.pool].leave(id.slot, waiter);
        }
        std::mem::take(&mut state.want_room)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.release();
        self.end();
        if let (Some(running), Some(waiter)) = (self.session.started(), self.waiter) {
            let mut state = running.core.state.lock();
            self.pass.certain.forget(&running.core, &mut state.slots, &*running.engine);
            state.fetches.remove(waiter);
        }
    }
}

/// Compares what is delivered with the file, if that is wanted. What is wrong is not delivered, nor is anything else with it.
fn verify(running: &Running, first_block: BlockId, delivered: &mut Vec<Block>) -> Result<()> {
    let Some(verifier) = &running.verifier else { return Ok(()) };
    let verified = delivered.iter().try_for_each(|block| {
        let extent = running.core.streamed.blocks[first_block + block.expert];
        // SAFETY: the block is in a Ready slot that its fetch holds, so all its bytes are written and stay put.
        let memory = unsafe { std::slice::from_raw_parts(block.data, extent.size_bytes) };
        verifier.check(extent, memory)
    });
    if let Err(error) = &verified {
        running.core.fail(running.core.state.lock(), error.clone());
        delivered.clear();
    }
    verified
}
