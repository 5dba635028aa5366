//! Experts that a layer to come is certain to use: their numbers follow from the tokens, so they are known when a pass begins.
//!
//! They are read behind what somebody waits for and before what is only predicted, and no trial asks whether that pays.

use crate::index::{BlockId, ExpertId, ExpertLayer};
use crate::io::{DirectFile, Engine, Priority, Request};

use super::core::Core;
use super::slots::{SlotId, Slots};

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
                    let read = || core.read(slots, files, tensor.pool, block, Priority::Ahead, requests);
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
            core.take_back(slots, engine, block, id);
        }
    }
}
