//! Reading experts that may be needed, and dropping what turned out not to be.

use std::time::Duration;

use typed_index_collections::TiVec;

use crate::index::{BlockId, ExpertId, ExpertLayer};
use crate::io::{DirectFile, Engine, Priority, Request};
use crate::predict::{Confidence, Predicted, Successor, Trial, Visit};

use crate::stream::core::Core;
use crate::stream::slots::{SlotId, Slots};

/// A read in vain costs more than the drive's idle time: the demand that comes meanwhile waits for it, and an expert has lost its slot.
const PROBABILITY_MIN: f32 = 0.6;

/// What foresees a layer, and the experts that it names, the surest first.
#[derive(Clone, Copy, Debug)]
pub(in crate::stream) enum Naming<'a> {
    /// Its router, applied early.
    ByRouter(&'a [ExpertId]),
    /// The model's usage profile.
    ByProfile(&'a [Predicted]),
}

/// What was foreseen for the layer that comes next.
pub(in crate::stream) struct Speculation {
    /// Whether acting pays.
    trial: Trial,
    /// How sure routers are.
    confidence: Confidence,
    /// The expert layer that was entered last.
    current: Option<ExpertLayer>,
    /// By expert layer, what came after it last. Layers that no pass uses come after none.
    successors: TiVec<ExpertLayer, Option<Successor>>,
    /// The layer that something was foreseen for, until it is entered, and its experts.
    layer: Option<ExpertLayer>,
    named: Vec<Named>,
    /// Whether a router named them, and not the usage profile.
    by_router: bool,
    /// Blocks of it that are being read, or were.
    reads: Vec<(BlockId, SlotId)>,
    /// Waiting time in total when the pass began.
    waited_before: Duration,
    /// Whether the pass is one that looking ahead could help: of a single token.
    pass_counts: bool,
}

/// An expert that was foreseen.
#[derive(Clone, Copy)]
struct Named {
    expert: ExpertId,
    /// How likely it is used.
    probability: f32,
    /// Whether any of its blocks was not in RAM then.
    is_missing: bool,
}

impl Speculation {
    pub(in crate::stream) fn new(forced: bool, layer_count: usize) -> Self {
        Self {
            trial: Trial::new(forced),
            confidence: Confidence::new(layer_count),
            current: None,
            successors: vec![None; layer_count].into(),
            layer: None,
            named: Vec::new(),
            by_router: false,
            reads: Vec::new(),
            waited_before: Duration::ZERO,
            pass_counts: false,
        }
    }

    pub(in crate::stream) fn trial(&self) -> &Trial {
        &self.trial
    }

    /// An expert layer is entered, after another one by the same user: returns what will come next, if it was seen before.
    pub(in crate::stream) fn enter(
        &mut self,
        before: Option<ExpertLayer>,
        layer: ExpertLayer,
        is_first: bool,
    ) -> Option<Successor> {
        if let Some(before) = before {
            self.successors[before] = Some(Successor { layer, is_in_pass: !is_first });
        }
        self.successors[layer]
    }

    /// A pass of so many tokens begins, after `waited` in total; the one before it is judged, if it was a decode step.
    pub(in crate::stream) fn begin_pass(&mut self, waited: Duration, tokens: usize) {
        let before = std::mem::replace(&mut self.waited_before, waited);
        if std::mem::replace(&mut self.pass_counts, tokens == 1) {
            self.trial.pass(waited.saturating_sub(before));
        }
    }
}

impl Speculation {
    /// Notes what an expert layer is foreseen to want and, while that pays, adds reads for what is missing. The layer is the next
    /// one, or the first one for the next token.
    pub(super) fn name(
        &mut self,
        core: &Core,
        slots: &mut Slots,
        files: &[DirectFile],
        (layer, naming): (ExpertLayer, Naming<'_>),
        requests: &mut Vec<Request>,
    ) {
        // Too late when the layer is being computed already.
        let next = self.current.and_then(|current| self.successors[current]);
        if next.is_none_or(|next| next.layer != layer) {
            return;
        }
        // What is certain once the tokens are there need not be predicted before.
        if core.streamed.is_hash_routed[layer] {
            return;
        }
        let is_missing = |expert| core.streamed.blocks_of(layer, expert).any(|(_, block)| slots.is_missing(block));
        let named = |expert, probability| Named { expert, probability, is_missing: is_missing(expert) };
        self.layer = Some(layer);
        self.named.clear();
        self.by_router = matches!(naming, Naming::ByRouter(_));
        match naming {
            Naming::ByRouter(experts) => {
                let confidence = |(rank, &expert)| named(expert, self.confidence.probability(layer, rank));
                self.named.extend(experts.iter().enumerate().map(confidence));
            }
            Naming::ByProfile(predicted) => {
                self.named.extend(predicted.iter().map(|predicted| named(predicted.expert, predicted.probability)));
            }
        }
        if self.trial.is_acting() {
            self.read_likely(core, slots, files, layer, requests);
        }
    }

    /// Adds reads for what is missing of the likely ones among the experts named, as far as what would go for them is worth less.
    fn read_likely(
        &mut self,
        core: &Core,
        slots: &mut Slots,
        files: &[DirectFile],
        layer: ExpertLayer,
        requests: &mut Vec<Request>,
    ) {
        for &Named { expert, probability, is_missing } in &self.named {
            if !is_missing || probability < PROBABILITY_MIN {
                continue;
            }
            for (tensor, block) in core.streamed.blocks_of(layer, expert) {
                let unit = tensor.first_unit + expert;
                if !slots.is_missing(block) || !slots.pools[tensor.pool].would_gain(unit, probability, slots.position) {
                    continue;
                }
                let Some(id) = slots.read(core, files, block, Priority::Speculative, requests) else {
                    return;
                };
                core.counters.prefetch_issued.add(1);
                self.reads.push((block, id));
            }
        }
    }

    /// An expert layer is entered, and these are the experts that it wants: counts what was foreseen, and lets go what was
    /// read in vain, the reads that have not begun included.
    pub(in crate::stream) fn settle(
        &mut self,
        core: &Core,
        slots: &mut Slots,
        engine: &dyn Engine,
        visit: Visit,
        wanted: &[ExpertId],
    ) {
        let layer = visit.layer;
        self.current = Some(layer);
        if self.pass_counts && !visit.is_first {
            core.counters.wanted_in_steps.add(wanted.len() as u64);
        }
        if self.layer.take() == Some(layer) {
            let counters = if self.by_router { &core.counters.by_router } else { &core.counters.by_profile };
            counters.wanted.add(wanted.len() as u64);
            for (rank, named) in self.named.iter().enumerate() {
                let is_right = wanted.contains(&named.expert);
                counters.right.add(u64::from(is_right));
                if named.is_missing && self.by_router {
                    self.confidence.observe(layer, rank, is_right);
                }
            }
        }
        for (block, id) in self.reads.drain(..) {
            if !slots.is_prefetched(block, id) {
                continue; // evicted, or used
            }
            let (tensor, expert) = core.streamed.tensor_of(block);
            if tensor.expert_layer == Some(layer) && wanted.contains(&expert) {
                continue; // its matrix comes later in this layer
            }
            slots.take_back(core, engine, block, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_no_pass_uses_follows_none() {
        let mut speculation = Speculation::new(false, 4);
        let mut before = None;
        for pass in 0..2 {
            for (layer, next_layer) in
                [(0, 1), (1, 2), (2, 0)].map(|(layer, next)| (ExpertLayer(layer), ExpertLayer(next)))
            {
                let next = speculation.enter(before.replace(layer), layer, layer == ExpertLayer(0));
                let after = Successor { layer: next_layer, is_in_pass: layer != ExpertLayer(2) };
                assert_eq!(next, (pass > 0).then_some(after));
            }
        }
        assert!(speculation.successors.iter().flatten().all(|successor| successor.layer != ExpertLayer(3)));
    }

    #[test]
    fn only_the_waiting_of_decode_steps_is_judged() {
        let mut speculation = Speculation::new(false, 1);
        let mut waited = Duration::ZERO;
        // Prompts wait long while speculative prefetches are acted on, decode steps wait less then: acting pays.
        for round in 0..1000 {
            let acting = speculation.trial.is_acting();
            speculation.begin_pass(waited, 512);
            waited += Duration::from_secs(if acting { 9 } else { 0 });
            speculation.begin_pass(waited, 1);
            waited += Duration::from_millis(if acting { 10 } else { 20 });
            if speculation.trial.verdict().is_some() {
                assert!(round > 8);
                break;
            }
        }
        assert_eq!(speculation.trial.verdict(), Some(true));
    }
}
