//! How well a trace's experts are predicted by a usage profile that is learned while it runs.

use super::trace::{LayerUse, Trace};
use crate::index::{ExpertId, ExpertLayer};
use crate::predict::{Predicted, Recent, UsageProfile};

/// What the generated tokens used of their layers, and how much of it was foreseen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recall {
    /// Experts used.
    pub uses: u64,
    /// Foreseen by as many speculative prefetches as experts were used.
    pub by_as_many: u64,
    /// Foreseen by twice as many.
    pub by_twice_as_many: u64,
}

/// How well the usage profile predicts, by what it goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProfileRecall {
    /// By the layer before, of the same token.
    pub next_layer: Recall,
    /// By the token before, in the same layer.
    pub next_token: Recall,
    /// By popularity in the layer alone.
    pub popularity: Recall,
    /// Naming simply what the token before used in the same layer: no more speculative prefetches than that.
    pub repetition: Recall,
}

impl Recall {
    /// Foreseen among used, in percent, by as many speculative prefetches as experts were used and by twice as many.
    pub fn percents(&self) -> [f64; 2] {
        [self.by_as_many, self.by_twice_as_many].map(|right| 100.0 * right as f64 / self.uses.max(1) as f64)
    }

    fn count(&mut self, used: &[ExpertId], guesses: impl Iterator<Item = ExpertId>) {
        self.uses += used.len() as u64;
        for (rank, guess) in guesses.take(2 * used.len()).enumerate() {
            if used.contains(&guess) {
                self.by_as_many += u64::from(rank < used.len());
                self.by_twice_as_many += 1;
            }
        }
    }
}

/// Plays a trace to a usage profile that knows nothing at first. Before each layer of a generated token it predicts the layer; what is
/// right counts. Prompts teach it nothing, since a trace does not tell which of a prompt's tokens used which expert.
pub fn profile_recall(trace: &Trace) -> ProfileRecall {
    let numbers: Vec<u32> = (0..trace.shape.layer_count as u32).collect();
    let mut usage_profile = UsageProfile::new(&numbers, trace.shape.expert_count);
    let mut recall = ProfileRecall::default();
    let mut predicted = Vec::new();
    for turn in trace.passes.chunk_by(|one, other| one.turn == other.turn) {
        let mut recent = Recent::default();
        for pass in turn.iter().filter(|pass| pass.is_decode) {
            let mut layer_before: Option<(ExpertLayer, Vec<ExpertId>)> = None;
            for layer in &pass.layers {
                let (number, used) = (ExpertLayer(layer.layer.0), experts(layer));
                if let Some((before, experts)) = &layer_before {
                    usage_profile.predict_next_layer(*before, experts, &mut predicted);
                    recall.next_layer.count(&used, experts_of(&predicted));
                }
                let token_before: Vec<ExpertId> = recent.experts(number).collect();
                if !token_before.is_empty() {
                    usage_profile.predict_next_token(number, &token_before, &mut predicted);
                    recall.next_token.count(&used, experts_of(&predicted));
                    recall.repetition.count(&used, token_before.iter().copied());
                }
                recall.popularity.count(&used, popular(&usage_profile, number).into_iter());
                let routing: Vec<i32> = used.iter().map(|expert| expert.0 as i32).collect();
                usage_profile.observe(&mut recent, number, &routing, 1);
                layer_before = Some((number, used));
            }
        }
    }
    recall
}

fn experts(layer: &LayerUse) -> Vec<ExpertId> {
    layer.experts.iter().map(|used| used.expert).collect()
}

fn experts_of(predicted: &[Predicted]) -> impl Iterator<Item = ExpertId> + '_ {
    predicted.iter().map(|predicted| predicted.expert)
}

fn popular(usage_profile: &UsageProfile, layer: ExpertLayer) -> Vec<ExpertId> {
    let mut experts: Vec<ExpertId> = usage_profile.experts().collect();
    let frequency = |expert: ExpertId| usage_profile.uses_per_token(layer, expert).unwrap_or(0.0);
    experts.sort_by(|&one, &other| frequency(other).total_cmp(&frequency(one)));
    experts
}
