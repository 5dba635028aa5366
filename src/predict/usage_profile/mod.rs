//! The usage profile of a model: which experts it uses often, and which are used together.
//!
//! Three things are counted for each expert of a layer: how many tokens used it, which experts of the following layer
//! the same token used, and which experts of its own layer the next token used. The counts of a layer are halved
//! whenever it has seen [`TOKENS_MAX`] tokens, so what is old fades and 16 bits suffice.
//!
//! *Memory.* Two square matrices of 2 bytes a pair for each layer: 3 MB for 48 layers of 128 experts, 15 MB for 58 of
//! 256. A model for which they would exceed [`PAIRS_BYTES_MAX`] has its uses counted only.
//!
//! *Work.* For a layer and a token, the square of the experts used, and nothing that grows with the number of experts,
//! but for the rare halving. Of a batch at most [`ROWS_MAX`] tokens are counted.

mod encoding;
mod profile_file;
mod recent;

pub use profile_file::ProfileFile;
pub use recent::Recent;

use typed_index_collections::TiVec;

use crate::index::{ExpertId, ExpertLayer};
use recent::{Entered, Rows};

/// Tokens that a layer's counts are of at most.
const TOKENS_MAX: u16 = 8192;

/// Tokens of a batch that are counted, evenly spread over it.
const ROWS_MAX: usize = 16;

/// What pairs may take in memory, all layers together.
const PAIRS_BYTES_MAX: usize = 32 << 20;

/// A pair's two counts.
const PAIR_BYTES: usize = 2 * size_of::<u16>();

/// An expert that may be used next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// Which.
    pub expert: ExpertId,
    /// How likely it is used, 0 to 1.
    pub probability: f32,
}

/// What is known of the layers of a model that have experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageProfile {
    expert_count: usize,
    layers: TiVec<ExpertLayer, Layer>,
    /// Whether anything was counted since [`Self::take_news`].
    has_news: bool,
}

/// The counts of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its number in the model.
    number: u32,
    tokens: u16,
    /// By expert: the tokens that used it.
    uses: TiVec<ExpertId, u16>,
    /// By expert, and by expert of the following layer; empty when pairs are not counted.
    next_layer: Vec<u16>,
    /// By expert, and by expert that the next token used here; empty when pairs are not counted.
    next_token: Vec<u16>,
}

impl UsageProfile {
    /// Knows nothing yet of these layers, given by their numbers in the model, in order; each has at most
    /// `expert_count` experts.
    pub fn new(numbers: &[u32], expert_count: usize) -> Self {
        let pairs = pair_count(numbers.len(), expert_count);
        let layer = |&number| Layer::new(number, expert_count, pairs);
        Self { expert_count, layers: numbers.iter().map(layer).collect(), has_news: false }
    }

    /// What the pairs of such a profile take in memory at most, in bytes: while it is stored, there is a copy of it and what was stored
    /// before.
    pub fn pairs_bytes_at_most(layer_count: usize, expert_count: usize) -> u64 {
        const COPIES: usize = 3;
        (COPIES * layer_count * pair_count(layer_count, expert_count) * PAIR_BYTES) as u64
    }

    /// From now on only uses are counted.
    pub fn leave_pairs_out(&mut self) {
        for layer in &mut self.layers {
            (layer.next_layer, layer.next_token) = (Vec::new(), Vec::new());
        }
    }

    /// Counts a batch: `routing` names the experts of a layer, the same number for each of `tokens` tokens, all below
    /// the number of experts. `recent` is what the same user, whose batches follow one another, did before.
    pub fn observe(&mut self, recent: &mut Recent, layer: ExpertLayer, routing: &[i32], tokens: usize) {
        let Entered { rows, layer_before, token_before } = recent.enter(layer, self.layers.len(), routing, tokens);
        if rows.experts().is_empty() {
            return;
        }
        self.has_news = true;
        let counted = &mut self.layers[layer];
        counted.make_room(rows.count());
        counted.tokens += rows.count() as u16;
        rows.experts().iter().for_each(|&expert| bump(&mut counted.uses[ExpertId(usize::from(expert))]));
        if counted.next_token.is_empty() {
            return;
        }
        if let Some(before) = token_before {
            count_pairs(&mut counted.next_token, self.expert_count, before, rows);
        }
        if let Some(before) = layer_before {
            count_pairs(&mut self.layers[ExpertLayer(layer.0 - 1)].next_layer, self.expert_count, before, rows);
        }
    }

    /// How often a token uses an expert, 0 to 1; `None` while nothing is known of the layer.
    pub fn uses_per_token(&self, layer: ExpertLayer, expert: ExpertId) -> Option<f32> {
        let layer = &self.layers[layer];
        (layer.tokens > 0).then(|| layer.frequency(expert))
    }

    /// Foresees the layer after one that used these experts: all that followed any of them, the likeliest first.
    pub fn predict_next_layer(&self, layer: ExpertLayer, experts: &[ExpertId], predicted: &mut Vec<Predicted>) {
        predicted.clear();
        if let [this, next, ..] = &self.layers.raw[layer.0..] {
            rank(this, &this.next_layer, next, experts, predicted);
        }
    }

    /// Foresees what the next token uses of a layer, of which this one used these experts.
    pub fn predict_next_token(&self, layer: ExpertLayer, experts: &[ExpertId], predicted: &mut Vec<Predicted>) {
        predicted.clear();
        let this = &self.layers[layer];
        rank(this, &this.next_token, this, experts, predicted);
    }

    /// A copy of a layer, to be put together by [`Self::of_layers`]: copying all at once would take too long under a
    /// lock.
    pub fn layer(&self, layer: ExpertLayer) -> Layer {
        self.layers[layer].clone()
    }

    /// Layers of a model with at most `expert_count` experts each.
    pub fn of_layers(expert_count: usize, layers: Vec<Layer>) -> Self {
        Self { expert_count, layers: layers.into(), has_news: false }
    }

    /// The layers, in order.
    pub fn layers(&self) -> impl Iterator<Item = ExpertLayer> + use<> {
        (0..self.layers.len()).map(ExpertLayer)
    }

    /// The experts of a layer, at most.
    pub fn experts(&self) -> impl Iterator<Item = ExpertId> + use<> {
        (0..self.expert_count).map(ExpertId)
    }

    /// How many those are.
    pub fn expert_count(&self) -> usize {
        self.expert_count
    }

    /// Whether anything was counted since the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Puts what others know into this: where both know a layer, the average, so that what both have from the same
    /// source does not count twice.
    fn merge(&mut self, others: &Self) {
        for other in others.layers.iter().filter(|other| other.tokens > 0) {
            match self.layers.iter_mut().find(|layer| layer.number == other.number) {
                Some(layer) if layer.next_layer.len() != other.next_layer.len() => {}
                Some(layer) if layer.tokens == 0 => *layer = other.clone(),
                Some(layer) => layer.average(other),
                None => {}
            }
        }
    }

    /// Adds the layers that only others know.
    fn adopt(&mut self, others: Self) {
        for other in others.layers {
            if self.layers.iter().all(|layer| layer.number != other.number) {
                self.layers.push(other);
            }
        }
    }
}

impl Layer {
    fn new(number: u32, expert_count: usize, pairs: usize) -> Self {
        let zeros = |count| vec![0; count];
        Self { number, tokens: 0, uses: zeros(expert_count).into(), next_layer: zeros(pairs), next_token: zeros(pairs) }
    }

    fn frequency(&self, expert: ExpertId) -> f32 {
        (f32::from(self.uses[expert]) / f32::from(self.tokens.max(1))).min(1.0)
    }

    /// Halves all counts when this many tokens more would be too many.
    fn make_room(&mut self, rows: usize) {
        if usize::from(self.tokens) + rows > usize::from(TOKENS_MAX) {
            self.tokens /= 2;
            self.counts().for_each(|counts| counts.iter_mut().for_each(|count| *count /= 2));
        }
    }

    fn counts(&mut self) -> impl Iterator<Item = &mut Vec<u16>> {
        [&mut self.uses.raw, &mut self.next_layer, &mut self.next_token].into_iter()
    }

    fn average(&mut self, other: &Self) {
        let average = |a: u16, b: u16| (u32::from(a) + u32::from(b)).div_ceil(2) as u16;
        self.tokens = average(self.tokens, other.tokens);
        let theirs = [&other.uses.raw, &other.next_layer, &other.next_token];
        for (mine, theirs) in self.counts().zip(theirs) {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = average(*mine, *theirs));
        }
    }
}

/// Pairs that each matrix has: none when all would take too much memory.
fn pair_count(layer_count: usize, expert_count: usize) -> usize {
    let pairs = expert_count * expert_count;
    if layer_count * pairs * PAIR_BYTES <= PAIRS_BYTES_MAX { pairs } else { 0 }
}

fn bump(count: &mut u16) {
    *count = count.saturating_add(1);
}

/// Counts, row by row, which experts came with which of the rows before.
fn count_pairs(pairs: &mut [u16], expert_count: usize, before: &Rows, rows: &Rows) {
    for (from, to) in before.iter().zip(rows.iter()) {
        for &expert in from {
            let followers = &mut pairs[usize::from(expert) * expert_count..][..expert_count];
            to.iter().for_each(|&follower| bump(&mut followers[usize::from(follower)]));
        }
    }
}

/// Ranks the experts of `to` that follow these of `from`. An expert's probability is the average over `experts` of how
/// often it followed each; an expert seen rarely is taken to be followed by what is popular.
fn rank(from: &Layer, pairs: &[u16], to: &Layer, experts: &[ExpertId], predicted: &mut Vec<Predicted>) {
    let count = to.uses.len();
    if pairs.is_empty() || experts.is_empty() || from.tokens == 0 {
        return;
    }
    let share = 1.0 / experts.len() as f32;
    predicted.extend(to.uses.keys().map(|expert| Predicted { expert, probability: 0.0 }));
    let mut popular = 0.0;
    for &expert in experts {
        let weight = share / (f32::from(from.uses[expert]) + 1.0);
        popular += weight;
        let followers = &pairs[expert.0 * count..][..count];
        for (predicted, &follower) in predicted.iter_mut().zip(followers) {
            predicted.probability += weight * f32::from(follower);
        }
    }
    for predicted in predicted.iter_mut() {
        let probability = predicted.probability + popular * to.frequency(predicted.expert);
        predicted.probability = probability.min(1.0);
    }
    predicted.sort_unstable_by(|one, other| {
        other.probability.total_cmp(&one.probability).then(one.expert.cmp(&other.expert))
    });
}

#[cfg(test)]
mod tests;
