//! What a fetch notes of the pass that it takes part in: where the computation is, how long it took, what it used, what was foreseen of
//! it. Later passes, reads ahead and whoever watches go by that; what a demand delivers does not depend on it.

use std::time::Instant;

use crate::cache::policy::{Position, Use};
use crate::config::PrefetchSetting;
use crate::index::{ExpertId, ExpertLayer, StreamedId};
use crate::io::Request;
use crate::predict::{Recent, Visit};

use super::ahead::{Certain, Knowledge, read_next};
use super::core::{Core, State};
use super::demand::Demand;
use super::dense::Walk;
use super::running::Running;
use super::session::Session;
use super::slots::Slots;
use super::speculation::{LOOK_AHEAD_ROWS_MAX, Seen};
use super::tensors::StreamedTensor;
use super::trace::Routing;

/// What is left to do for a demand's notes once the lock is released.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Notes {
    /// The number of slots that dense weights flow through from now on, if it has changed.
    new_ring: Option<usize>,
    /// There is something to learn for later runs.
    learn: bool,
}

/// The pass of a fetch.
#[derive(Default)]
pub(super) struct Pass {
    /// Which use of which tensor it has come to.
    pub(super) walk: Walk,
    /// Which experts it is certain to use in layers that it has not reached.
    pub(super) certain: Certain,
    /// The tensor of the latest demand.
    tensor: Option<StreamedId>,
    /// Since when a dense tensor is computed on, or was, until the next is wanted.
    computing_since: Option<Instant>,
    /// The expert layer that the latest demand is the first one of, if it is.
    entered: Option<ExpertLayer>,
    /// The expert layer that the pass is in, or was in last.
    expert_layer: Option<ExpertLayer>,
    /// Of that layer: whether its experts were known in advance.
    knowledge: Knowledge,
    /// The latest expert layer that was entered, and the choices of the last few tokens there.
    visit: Visit,
    routing: Vec<i32>,
    token_count: usize,
    /// What the layers used last, for the usage profile.
    recent: Recent,
}

impl Pass {
    /// A demand comes, before slots are looked for.
    pub(super) fn enter(&mut self, running: &Running, state: &mut State, demand: &Demand<'_>) -> Notes {
        let (core, now) = (&*running.core, Instant::now());
        let previous = self.tensor.replace(demand.tensor);
        let begins_pass = state.order.observe(&mut self.walk, demand.tensor);
        if let (Some(previous), Some(since)) = (previous, self.computing_since.take()) {
            state.slots.pins.computed(previous, since.elapsed());
        }
        let notes = if begins_pass { self.begin(core, state, demand.tokens, now) } else { Notes::default() };
        state.pace.demand(now, &core.counters);
        state.slots.position = Position { pass: state.order.passes(), layer: demand.streamed.policy_layer };
        self.note_layer(demand.streamed, begins_pass);
        if let Some(layer) = self.entered {
            self.record_trace(running, state, layer, demand);
            self.enter_layer(state, layer, begins_pass, demand);
            let (State { speculation, slots, .. }, engine) = (&mut *state, &*running.engine);
            speculation.settle(core, slots, engine, self.visit, demand.experts.used());
            self.knowledge = self.certain.enter(core, slots, engine, layer);
        }
        self.announce(core, state, demand);
        notes
    }

    /// The demand's reads are on their way and the lock is released.
    pub(super) fn conclude(&mut self, running: &Running, routing: &[i32], tokens: usize, notes: Notes) {
        if let Some(slots) = notes.new_ring {
            tracing::debug!("dense weights now flow through {slots} slots of each size");
        }
        if let Some(layer) = self.entered {
            running.core.usage_profile.lock().observe(&mut self.recent, layer, routing, tokens);
        }
        if notes.learn {
            running.learner.wake();
        }
    }

    /// Adds reads for what is certain to be demanded after the latest demand, which delivers these experts.
    pub(super) fn read_ahead(
        &mut self,
        core: &Core,
        slots: &mut Slots,
        session: &Session,
        experts: &[ExpertId],
        requests: &mut Vec<Request>,
    ) {
        self.certain.read(core, slots, &session.files, requests);
        self.read_next(core, slots, session, experts, requests);
    }

    /// As [`Self::read_ahead`], only for what comes next in the order of the pass.
    pub(super) fn read_next(
        &self,
        core: &Core,
        slots: &mut Slots,
        session: &Session,
        experts: &[ExpertId],
        requests: &mut Vec<Request>,
    ) {
        if let Some(tensor) = self.tensor.filter(|_| session.config.prefetch != PrefetchSetting::Off) {
            read_next(core, slots, &session.files, (tensor, &self.walk), experts, requests);
        }
    }

    fn begin(&mut self, core: &Core, state: &mut State, tokens: usize, now: Instant) -> Notes {
        core.counters.tokens.add(tokens as u64);
        state.slots.count_read_time(&core.counters);
        let learn = state.pace.begin_pass(now, tokens, &core.counters);
        let new_ring = core.retune(state);
        state.speculation.begin_pass(core.counters.stall_time.time(), tokens);
        self.certain.begin_pass();
        Notes { new_ring, learn }
    }

    /// Notes whether a demand is the first one of an expert layer.
    fn note_layer(&mut self, streamed: &StreamedTensor, is_first_of_pass: bool) {
        if is_first_of_pass {
            self.expert_layer = None; // a pass may consist of a single layer
        }
        self.entered = streamed.expert_layer.filter(|_| self.expert_layer != streamed.expert_layer);
        self.expert_layer = streamed.expert_layer.or(self.expert_layer);
    }

    /// An expert layer is entered.
    fn enter_layer(&mut self, state: &mut State, layer: ExpertLayer, is_first: bool, demand: &Demand<'_>) {
        let before = (self.visit.number > 0).then_some(self.visit.layer);
        let next = state.speculation.enter(before, layer, is_first);
        self.visit = Visit { layer, visitor: demand.waiter, number: self.visit.number + 1, is_first, next };
        self.token_count = demand.tokens;
        let (routing, tokens) = (demand.routing, demand.tokens);
        let used = routing.len() / tokens.max(1);
        self.routing.clear();
        self.routing.extend_from_slice(&routing[routing.len() - used * tokens.min(LOOK_AHEAD_ROWS_MAX)..]);
    }

    /// Tells the policies what is used: a dense tensor, experts that the layer's router does not choose, or, when a layer is
    /// entered, its experts of all matrices. Were those of the later matrices told of only in their turn, they could be evicted
    /// just before it.
    fn announce(&self, core: &Core, state: &mut State, demand: &Demand<'_>) {
        let all = &core.streamed;
        let announced: &[StreamedId] = match self.entered {
            Some(layer) => &all.expert_layers[layer],
            None if demand.streamed.expert_layer.is_none() => std::slice::from_ref(&demand.tensor),
            None => &[],
        };
        let position = state.slots.position;
        for tensor in announced.iter().map(|&tensor| &all.tensors[tensor]) {
            for &expert in demand.experts.used().iter().filter(|&&expert| tensor.has(expert)) {
                let slot = state.slots.location[tensor.first_block + expert].map(|id| id.slot);
                let usage =
                    Use { token_count: demand.tokens as u32, routed_count: demand.experts.row_counts()[expert] };
                state.slots.pools[tensor.pool].used(tensor.first_unit + expert, slot, position, usage);
            }
        }
    }

    fn record_trace(&self, running: &Running, state: &State, layer: ExpertLayer, demand: &Demand<'_>) {
        let Some(trace) = &running.trace else { return };
        let (all, streamed) = (&running.core.streamed, demand.streamed);
        let routing = Routing {
            step: state.order.passes(),
            layer: streamed.layer,
            experts: demand.routing,
            used: demand.routing.len() / demand.tokens.max(1),
            expert_bytes: all.expert_layers[layer]
                .iter()
                .map(|&tensor| all.blocks[all.tensors[tensor].first_block].size_bytes)
                .sum(),
        };
        trace.record(&routing, |expert| state.slots.location[streamed.first_block + expert].is_some());
    }

    /// What goes into the latest demand's multiplication, if that is an expert layer's first one.
    pub(super) fn look_ahead(&self, running: &Running, row_length: usize, inputs: &[f32]) {
        if let (Some(_), Some(predictor)) = (self.entered, &running.predictor) {
            let seen = Seen { row_length, inputs, routing: &self.routing, token_count: self.token_count };
            predictor.look_ahead(self.visit, seen, &self.recent);
        }
    }

    /// A dense tensor of the latest demand is being computed on.
    pub(super) fn computes(&mut self) {
        self.computing_since.get_or_insert_with(Instant::now);
    }

    /// What was known of a tensor's experts before they were demanded.
    pub(super) fn knowledge_of(&self, tensor: &StreamedTensor) -> Knowledge {
        let is_current = tensor.expert_layer.is_some() && tensor.expert_layer == self.expert_layer;
        if is_current { self.knowledge } else { Knowledge::Impossible }
    }
}
