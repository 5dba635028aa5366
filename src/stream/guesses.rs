//! Reading experts that may be needed, and dropping what turned out not to be.

use std::time::Duration;

use crate::io::{DirectFile, Engine, Priority, Request};
use crate::predict::{Foreseen, Trial};

use super::core::{Core, SlotId, State};

/// A read that is more likely in vain than not costs a busy drive more than it gains.
const PROBABILITY_MIN: f32 = 0.5;

/// What a layer is foreseen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Its router.
    Router,
    /// The model's habits.
    Habits,
}

/// What was foreseen for the layer that comes next.
pub(super) struct Guesses {
    /// Whether acting pays.
    trial: Trial,
    /// The expert layer that was entered last.
    current: Option<usize>,
    /// The layer that something was foreseen for, and its experts.
    layer: usize,
    experts: Vec<usize>,
    source: Source,
    /// Blocks of it that are being read, or were.
    reads: Vec<(usize, SlotId)>,
    /// Waiting time in total when the pass began.
    waited_before: Duration,
    /// Whether the pass is one that looking ahead could help: of a single token.
    pass_counts: bool,
}

impl Guesses {
    pub(super) fn new(forced: bool) -> Self {
        Self {
            trial: Trial::new(forced),
            current: None,
            layer: usize::MAX,
            experts: Vec::new(),
            source: Source::Router,
            reads: Vec::new(),
            waited_before: Duration::ZERO,
            pass_counts: false,
        }
    }

    pub(super) fn trial(&self) -> &Trial {
        &self.trial
    }

    /// A pass of so many tokens begins, after `waited` in total; the one before it is judged, if it was a decode step.
    pub(super) fn begin_pass(&mut self, waited: Duration, tokens: usize) {
        let before = std::mem::replace(&mut self.waited_before, waited);
        if std::mem::replace(&mut self.pass_counts, tokens == 1) {
            self.trial.pass(waited.saturating_sub(before));
        }
    }
}

impl Core {
    /// Notes what an expert layer is foreseen to want, the surest first, and, while that pays, adds reads for what is missing.
    /// The layer is the next one, or the first one for the next token.
    pub(super) fn guess(
        &self,
        files: &[DirectFile],
        layer: usize,
        source: Source,
        foreseen: &[Foreseen],
        requests: &mut Vec<Request>,
    ) {
        let layer_count = self.streamed.expert_layers.len();
        let mut state = self.state.lock();
        let state = &mut *state;
        let guesses = &mut state.guesses;
        // Too late when the layer is being computed already.
        if state.error.is_some() || guesses.current.is_none_or(|current| (current + 1) % layer_count != layer) {
            return;
        }
        guesses.layer = layer;
        guesses.experts.clear();
        guesses.experts.extend(foreseen.iter().map(|foreseen| foreseen.expert));
        guesses.source = source;
        if !guesses.trial.is_acting() {
            return;
        }
        let likely = foreseen.iter().take_while(|foreseen| foreseen.probability >= PROBABILITY_MIN);
        for &Foreseen { expert, probability } in likely {
            for &index in &self.streamed.expert_layers[layer] {
                let tensor = &self.streamed.tensors[index];
                let block = tensor.first_block + expert;
                if expert >= tensor.block_count || state.location[block].is_some() {
                    continue;
                }
                let unit = tensor.first_unit + expert;
                if !state.pools[tensor.pool].would_gain(unit, probability, state.position) {
                    continue;
                }
                let Some(id) = self.read(state, files, tensor.pool, block, Priority::Guess, requests) else {
                    return;
                };
                self.counters.prefetch_issued.add(1);
                state.guesses.reads.push((block, id));
            }
        }
    }

    /// An expert layer is entered, and these are the experts that it wants: counts what was foreseen, and lets go what was
    /// read in vain, the reads that have not begun included.
    pub(super) fn settle_guesses(&self, state: &mut State, engine: &dyn Engine, layer: usize, wanted: &[usize]) {
        let guesses = &mut state.guesses;
        guesses.current = Some(layer);
        if guesses.layer == layer {
            let right = wanted.iter().filter(|expert| guesses.experts.contains(expert)).count();
            let counters = match guesses.source {
                Source::Router => &self.counters.by_router,
                Source::Habits => &self.counters.by_habit,
            };
            counters.right.add(right as u64);
            counters.wanted.add(wanted.len() as u64);
        }
        guesses.layer = usize::MAX;
        let reads = std::mem::take(&mut guesses.reads);
        for &(block, id) in &reads {
            if state.location[block] != Some(id) || !state.pools[id.pool].is_guess(id.slot) {
                continue; // evicted, or used
            }
            let (tensor, expert) = self.streamed.tensor_of(block);
            if tensor.expert_layer == Some(layer) && wanted.contains(&expert) {
                continue; // its matrix comes later in this layer
            }
            if engine.cancel(self.token(id)) {
                self.count_read_time(state);
                state.reads_in_flight -= 1;
                state.location[block] = None;
                state.pools[id.pool].abandon(id.slot);
                self.counters.prefetch_cancelled.add(1);
            } else {
                state.pools[id.pool].expire(id.slot);
                self.counters.prefetch_wasted.add(1);
            }
        }
        state.guesses.reads = reads;
        state.guesses.reads.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_waiting_of_decode_steps_is_judged() {
        let mut guesses = Guesses::new(false);
        let mut waited = Duration::ZERO;
        // Prompts wait long while guesses are acted on, decode steps wait less then: acting pays.
        for round in 0..1000 {
            let acting = guesses.trial.is_acting();
            guesses.begin_pass(waited, 512);
            waited += Duration::from_secs(if acting { 9 } else { 0 });
            guesses.begin_pass(waited, 1);
            waited += Duration::from_millis(if acting { 10 } else { 20 });
            if guesses.trial.verdict().is_some() {
                assert!(round > 8);
                break;
            }
        }
        assert_eq!(guesses.trial.verdict(), Some(true));
    }
}
