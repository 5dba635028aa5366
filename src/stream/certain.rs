//! Experts that a layer to come is certain to use: their numbers follow from the tokens, so they are known when a pass begins.
//!
//! They are read behind what somebody waits for and before what is only guessed, and no trial asks whether that pays.

use crate::index::{BlockId, ExpertLayer};
use crate::io::{DirectFile, Engine, Priority, Request};

use super::core::{Core, SlotId, State};

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
    experts: Vec<usize>,
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
}

impl Core {
    /// Notes which experts of a layer the coming pass will use.
    pub(super) fn announce_experts(
        &self,
        state: &mut State,
        engine: &dyn Engine,
        certain: &mut Certain,
        expert_layer: ExpertLayer,
        experts: &[usize],
    ) {
        if !std::mem::replace(&mut certain.is_announcing, true) {
            self.forget_certain(state, engine, certain);
        }
        if certain.layers.iter().all(|layer| layer.expert_layer != expert_layer) {
            let experts = experts.to_vec();
            certain.layers.push(CertainLayer { expert_layer, experts, reads: Vec::new(), is_complete: false });
        }
    }

    /// Adds reads for what is missing of the announced experts, as far as what would go for them is worth less.
    pub(super) fn read_certain(
        &self,
        state: &mut State,
        files: &[DirectFile],
        certain: &mut Certain,
        requests: &mut Vec<Request>,
    ) {
        for layer in certain.layers.iter_mut().filter(|layer| !layer.is_complete) {
            let CertainLayer { expert_layer, experts, reads, is_complete } = layer;
            *is_complete = true;
            for &index in &self.streamed.expert_layers[*expert_layer] {
                let tensor = &self.streamed.tensors[index];
                for &expert in experts.iter().filter(|&&expert| expert < tensor.block_count) {
                    let block = tensor.first_block + expert;
                    if !state.is_missing(block) {
                        continue;
                    }
                    let gains = state.pools[tensor.pool].would_gain(tensor.first_unit + expert, 1.0, state.position);
                    let read = || self.read(state, files, tensor.pool, block, Priority::Ahead, requests);
                    let Some(id) = gains.then(read).flatten() else {
                        *is_complete = false;
                        break; // this pool is full; another may not be
                    };
                    state.is_certain[block] = true;
                    self.counters.certain_reads.add(1);
                    self.counters.certain_bytes.add(self.streamed.blocks[block].size_bytes as u64);
                    reads.push((block, id));
                }
            }
        }
    }

    /// An expert layer is entered: returns what was known of it. What was read for the layer before and not used is let go.
    pub(super) fn enter_certain(
        &self,
        state: &mut State,
        engine: &dyn Engine,
        certain: &mut Certain,
        expert_layer: ExpertLayer,
    ) -> Knowledge {
        let left = std::mem::take(&mut certain.current);
        self.let_go(state, engine, &left);
        match certain.layers.iter().position(|layer| layer.expert_layer == expert_layer) {
            Some(index) => {
                certain.current = certain.layers.remove(index).reads;
                Knowledge::Complete
            }
            None if self.streamed.is_hash_routed[expert_layer] => Knowledge::Missing,
            None => Knowledge::Impossible,
        }
    }

    /// Forgets what was announced, and lets go of what was read for it and not used: the pass has failed, or is over.
    pub(super) fn forget_certain(&self, state: &mut State, engine: &dyn Engine, certain: &mut Certain) {
        let current = std::mem::take(&mut certain.current);
        self.let_go(state, engine, &current);
        for layer in std::mem::take(&mut certain.layers) {
            self.let_go(state, engine, &layer.reads);
        }
    }

    fn let_go(&self, state: &mut State, engine: &dyn Engine, reads: &[(BlockId, SlotId)]) {
        for &(block, id) in reads {
            if state.location[block] == Some(id) && state.pools[id.pool].is_prefetched(id.slot) {
                state.is_certain[block] = false;
                self.take_back(state, engine, block, id);
            }
        }
    }
}
