//! How far a router applied one layer early can be trusted: its first choice comes true more often than its last, and
//! some layers are foreseen well, others hardly at all. Both differ from model to model, so it is counted what became
//! of the choices.
//!
//! Only experts that were not in RAM count. Those that are there are used often and foreseen well, and they need no
//! reading.

use typed_index_collections::TiVec;

use crate::index::ExpertLayer;

/// The prior of a (layer, rank) that was never seen: a mean of 0.6, with the weight of 4 observations.
const ASSUMED: f32 = 0.6;
const ASSUMED_WEIGHT: f32 = 4.0;

/// The weight of the mean over all layers, in observations of one layer.
const OVERALL_WEIGHT: f32 = 8.0;

/// A count is halved when it reaches this many observations, so that it follows a change of text.
const OBSERVATIONS_MAX: f32 = 512.0;

/// See the module.
#[derive(Debug)]
pub struct Confidence {
    /// By rank, all layers together.
    overall: Ranks,
    by_layer: TiVec<ExpertLayer, Ranks>,
}

/// By rank, 0 the surest: what became of the choices.
type Ranks = Vec<Tally>;

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    named: f32,
    used: f32,
}

impl Tally {
    fn of(ranks: &Ranks, rank: usize) -> Self {
        ranks.get(rank).copied().unwrap_or_default()
    }

    /// The share that was used, given a belief and its weight.
    fn share(self, belief: f32, weight: f32) -> f32 {
        (self.used + belief * weight) / (self.named + weight)
    }

    fn count(ranks: &mut Ranks, rank: usize, is_used: bool) {
        if ranks.len() <= rank {
            ranks.resize(rank + 1, Self::default());
        }
        let Self { named, used } = &mut ranks[rank];
        *named += 1.0;
        *used += f32::from(u8::from(is_used));
        if *named >= OBSERVATIONS_MAX {
            *named /= 2.0;
            *used /= 2.0;
        }
    }
}

impl Confidence {
    /// Knows nothing yet.
    pub fn new(layer_count: usize) -> Self {
        Self { overall: Ranks::new(), by_layer: vec![Ranks::new(); layer_count].into() }
    }

    /// How likely an expert layer uses the choice of a rank that its router made early.
    pub fn probability(&self, layer: ExpertLayer, rank: usize) -> f32 {
        let overall = Tally::of(&self.overall, rank).share(ASSUMED, ASSUMED_WEIGHT);
        Tally::of(&self.by_layer[layer], rank).share(overall, OVERALL_WEIGHT)
    }

    /// A choice was not in RAM, and was then used by its layer or not.
    pub fn observe(&mut self, layer: ExpertLayer, rank: usize, is_used: bool) {
        Tally::count(&mut self.overall, rank, is_used);
        Tally::count(&mut self.by_layer[layer], rank, is_used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_of_every_layer_is_judged_by_what_became_of_it() {
        let mut confidence = Confidence::new(3);
        assert_eq!(confidence.probability(ExpertLayer(0), 3), ASSUMED);
        for observation in 0..100 {
            confidence.observe(ExpertLayer(0), 0, true);
            confidence.observe(ExpertLayer(0), 3, observation % 4 == 0);
            confidence.observe(ExpertLayer(1), 0, false);
        }
        assert!(confidence.probability(ExpertLayer(0), 0) > 0.95);
        assert!((confidence.probability(ExpertLayer(0), 3) - 0.25).abs() < 0.03);
        assert!(confidence.probability(ExpertLayer(1), 0) < 0.05);
        assert!((confidence.probability(ExpertLayer(2), 0) - 0.5).abs() < 0.02, "an unknown layer is like the others");
        assert_eq!(confidence.probability(ExpertLayer(2), 1), ASSUMED);
    }

    #[test]
    fn what_is_long_past_fades() {
        let mut confidence = Confidence::new(1);
        (0..10_000).for_each(|_| confidence.observe(ExpertLayer(0), 0, true));
        (0..1_000).for_each(|_| confidence.observe(ExpertLayer(0), 0, false));
        assert!(confidence.probability(ExpertLayer(0), 0) < 0.3);
    }
}
