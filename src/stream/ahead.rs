//! Reading ahead what is certain to be needed soon: the same experts of the layer's other matrices, the dense tensors that come next, and
//! experts of layers to come whose numbers follow from the tokens, so that they are known when a pass begins.
//!
//! All of that is read behind what somebody waits for and before what is only predicted, and no trial asks whether it pays.

use crate::index::{BlockId, ExpertId, ExpertLayer, StreamedId};
use crate::io::{DirectFile, Engine, Priority, Request};

use super::core::Core;
use super::dense::Walk;
use super::slots::{SlotId, Slots};

/// How many tensors ahead. The number of slots is what limits a ring; this only bounds the work of a call.
const REACH: usize = 48;

/// The experts of a demand are read ahead for the layer's other matrices while they take one in so many slots at most: a
/// prompt's would push each other out.
const SLOTS_PER_EXPERT: usize = 4;

/// What a fetch is certain to demand in the pass that it computes or is about to.
#[derive(Default)]
pub(super) struct Certain {
    /// The layers, in the order of the pass.
    layers: Vec<CertainLayer>,
    /// What was read for the layer that was entered last.
    current: Vec<(BlockId, SlotId)>,
    /// Experts are announced for a pass whose first demand is still to come.
    is_announcing: bool,
}

struct CertainLayer {
    expert_layer: ExpertLayer,
    experts: Vec<ExpertId>,
    /// Blocks that are being read, or were.
    reads: Vec<(BlockId, SlotId)>,
    /// Nothing of it is left to be read.
    is_complete: bool,
}

/// Whether the experts of a layer were known before its router was computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// They depend on the layer's input.
    #[default]
    Impossible,
    /// They follow from the tokens, and nobody said which they are.
    Missing,
    /// They were announced.
    Complete,
}

impl Certain {
    /// The announced pass has begun: what is announced from now on is for the next one.
    pub(super) fn begin_pass(&mut self) {
        self.is_announcing = false;
    }

    /// Notes which experts of a layer the coming pass will use.
    pub(super) fn announce(
        &mut self,
        core: &Core,
        slots: &mut Slots,
        engine: &dyn Engine,
        expert_layer: ExpertLayer,
        experts: &[ExpertId],
    ) {
        if !std::mem::replace(&mut self.is_announcing, true) {
            self.forget(core, slots, engine);
        }
        if self.layers.iter().all(|layer| layer.expert_layer != expert_layer) {
            let experts = experts.to_vec();
            self.layers.push(CertainLayer { expert_layer, experts, reads: Vec::new(), is_complete: false });
        }
    }

    /// Adds reads for what is missing of the announced experts, as far as what would go for them is worth less.
    pub(super) fn read(&mut self, core: &Core, slots: &mut Slots, files: &[DirectFile], requests: &mut Vec<Request>) {
        for layer in self.layers.iter_mut().filter(|layer| !layer.is_complete) {
            let CertainLayer { expert_layer, experts, reads, is_complete } = layer;
            *is_complete = true;
            for &index in &core.streamed.expert_layers[*expert_layer] {
                let tensor = &core.streamed.tensors[index];
                for &expert in experts.iter().filter(|&&expert| tensor.has(expert)) {
                    let block = tensor.first_block + expert;
                    if !slots.is_missing(block) {
                        continue;
                    }
                    let gains = slots.pools[tensor.pool].would_gain(tensor.first_unit + expert, 1.0, slots.position);
                    let read = || slots.read(core, files, block, Priority::Ahead, requests);
                    let Some(id) = gains.then(read).flatten() else {
                        *is_complete = false;
                        break; // this pool is full; another may not be
                    };
                    slots.is_certain[block] = true;
                    core.counters.certain_reads.add(1);
                    core.counters.certain_bytes.add(core.streamed.blocks[block].size_bytes as u64);
                    reads.push((block, id));
                }
            }
        }
    }

    /// An expert layer is entered: returns what was known of it. What was read for the layer before and not used is let go.
    pub(super) fn enter(
        &mut self,
        core: &Core,
        slots: &mut Slots,
        engine: &dyn Engine,
        expert_layer: ExpertLayer,
    ) -> Knowledge {
        let_go(core, slots, engine, &std::mem::take(&mut self.current));
        match self.layers.iter().position(|layer| layer.expert_layer == expert_layer) {
            Some(index) => {
                self.current = self.layers.remove(index).reads;
                Knowledge::Complete
            }
            None if core.streamed.is_hash_routed[expert_layer] => Knowledge::Missing,
            None => Knowledge::Impossible,
        }
    }

    /// Forgets what was announced, and lets go of what was read for it and not used: the pass has failed, or is over.
    pub(super) fn forget(&mut self, core: &Core, slots: &mut Slots, engine: &dyn Engine) {
        let_go(core, slots, engine, &std::mem::take(&mut self.current));
        for layer in std::mem::take(&mut self.layers) {
            let_go(core, slots, engine, &layer.reads);
        }
    }
}

fn let_go(core: &Core, slots: &mut Slots, engine: &dyn Engine, reads: &[(BlockId, SlotId)]) {
    for &(block, id) in reads {
        if slots.is_prefetched(block, id) {
            slots.is_certain[block] = false;
            slots.take_back(core, engine, block, id);
        }
    }
}

/// Starts reading what comes after a tensor that is used: the next dense tensors, across the end of the pass, and, behind experts of a
/// tensor, the same `experts` of the layer's other matrices.
pub(super) fn read_next(
    core: &Core,
    slots: &mut Slots,
    files: &[DirectFile],
    (after, walk): (StreamedId, &Walk),
    experts: &[ExpertId],
    requests: &mut Vec<Request>,
) {
    let tensors = &core.streamed.tensors;
    let from = &tensors[after];
    for next in walk.after().take(REACH) {
        let to = &tensors[next];
        let experts: &[ExpertId] =
            match (to.is_expert, to.expert_layer.is_some() && to.expert_layer == from.expert_layer) {
                (false, _) => &[ExpertId(0)],
                (true, true) if experts.len() * SLOTS_PER_EXPERT <= slots.pools[to.pool].slot_count() => experts,
                _ => continue,
            };
        for &expert in experts.iter().filter(|&&expert| to.has(expert)) {
            let block = to.first_block + expert;
            if slots.location[block].is_some() {
                continue;
            }
            if slots.read(core, files, block, Priority::Ahead, requests).is_none() {
                break; // this pool is full; another may not be
            }
            core.counters.prefetch_issued.add(1);
        }
    }
}
