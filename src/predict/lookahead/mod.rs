//! Router look-ahead: which experts the next layer's router would choose for what this layer sees.
//!
//! The residual changes little from one expert layer to the next, so the next router, applied one layer early, names most of the experts
//! that it will name when its turn comes. Two things differ from model to model, and both are learned from what is seen, not
//! told by a table of architectures: what a router's input is made of (`carry`, `fit`), and how it selects by its logits
//! (`score`, `fit`). Whether what is named so comes true is counted, and a layer of which the usage profile tells more is left to that.

mod carry;
mod fit;
mod floats;
mod gate;
mod norms;
mod score;
mod share;
#[cfg(test)]
mod test_numbers;
#[cfg(test)]
mod tests;
mod votes;

use typed_index_collections::TiVec;

use crate::gguf::Gguf;
use crate::index::{ExpertId, ExpertLayer, WaiterId};

use carry::Carry;
use fit::Fit;
use floats::Source;
use gate::Gate;
use norms::{NormNames, Norms};
use score::Ranking;
use share::Share;
use votes::Votes;

/// A layer's router names nothing while it does not name this share of what the layer itself chose: chance and popularity reach half.
const OWN_CHOICES_MIN: f32 = 0.5;

/// Of what a router would name of a layer that is left to the usage profile, every so manieth is looked at, in case that has changed.
const INTERVAL: u32 = 8;

/// A router that names this share is not compared with the usage profile.
const GOOD: f32 = 0.9;

/// The expert layer that follows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Which one.
    pub layer: ExpertLayer,
    /// Whether the same tokens reach it, and not those of the next pass.
    pub is_in_pass: bool,
}

/// An expert layer is entered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Visit {
    /// Which layer, counted among the expert layers.
    pub layer: ExpertLayer,
    /// Who enters it, and how many layers that one entered before: consecutive numbers belong together.
    pub visitor: WaiterId,
    /// See `visitor`.
    pub number: u64,
    /// Whether it is the first layer of a pass.
    pub is_first: bool,
    /// What it is followed by, as far as that is known.
    pub next: Option<Successor>,
}

/// What was seen of a visit.
#[derive(Debug, Default)]
pub struct Sight {
    /// Which.
    pub visit: Visit,
    /// Whether it is a part of a larger batch, good for learning only.
    pub is_part: bool,
    /// Elements of a row.
    pub row_length: usize,
    /// Rows that the experts got, or the router.
    pub inputs: Vec<f32>,
    /// The experts that these rows are sent to, the same number for each.
    pub routing: Vec<i32>,
    /// Experts that the usage profile goes by.
    pub experts: Vec<ExpertId>,
}

/// What is known of the routers of a model.
pub struct Lookahead {
    layers: TiVec<ExpertLayer, Layer>,
    /// What was foreseen last.
    predicted: Predicted,
    input: Vec<f32>,
    logits: Vec<f32>,
    ranking: Ranking,
    votes: Votes,
}

/// An expert layer.
#[derive(Default)]
struct Layer {
    router: Option<Router>,
    norms: Norms,
    /// The layer that it was reached from last, and how.
    reached: Option<(ExpertLayer, Carry)>,
    /// Experts that a token uses of it.
    used: usize,
    /// Of what it wanted, what its router named, and the usage profile.
    by_router: Share,
    by_profile: Share,
    visits: u32,
}

struct Router {
    gate: Gate,
    fit: Fit,
}

/// What was foreseen for the layer after a visit.
#[derive(Default)]
struct Predicted {
    at: Visit,
    by_router: Vec<ExpertId>,
    by_profile: Vec<ExpertId>,
}

impl Visit {
    /// Whether it comes right after another one.
    fn follows(&self, before: &Self) -> bool {
        self.visitor == before.visitor && self.number == before.number + 1
    }
}

impl Sight {
    fn row_count(&self) -> usize {
        self.inputs.len() / self.row_length.max(1)
    }

    /// The last row: of a prompt it is the one that every layer computes.
    fn last_input(&self) -> &[f32] {
        &self.inputs[self.inputs.len().saturating_sub(self.row_length)..]
    }

    fn used(&self) -> usize {
        self.routing.len() / self.row_count().max(1)
    }

    fn last_routing(&self) -> &[i32] {
        &self.routing[self.routing.len() - self.used()..]
    }
}

impl Lookahead {
    /// Reads the routers and norms of these layers, given by their numbers in the model.
    pub fn read(gguf: &Gguf, numbers: &[u32]) -> Self {
        let (source, hyper) = (Source::open(gguf), gguf.hyper_parameters());
        let mut names = NormNames::default();
        let layer = |&number: &u32| {
            let gate = Gate::read(&source, number, hyper);
            let width = gate.as_ref().map_or(hyper.embedding_length as usize, Gate::width);
            let norms = Norms::read(&source, number, width, &mut names);
            let router = gate.map(|gate| Router { fit: Fit::new(&gate, &norms), gate });
            Layer { router, norms, used: hyper.expert_used_count as usize, ..Layer::default() }
        };
        Self::of(numbers.iter().map(layer).collect())
    }

    fn of(layers: TiVec<ExpertLayer, Layer>) -> Self {
        Self {
            layers,
            predicted: Predicted::default(),
            input: Vec::new(),
            logits: Vec::new(),
            ranking: Ranking::default(),
            votes: Votes::default(),
        }
    }

    /// The experts of the next layer that its router would choose for what is seen of this one, those that most rows agree on
    /// first, then the surest. `None` when nothing tells, or the usage profile tells more.
    pub fn name(&mut self, sight: &Sight) -> Option<&[ExpertId]> {
        let Predicted { at, by_router, by_profile } = &mut self.predicted;
        *at = sight.visit;
        by_router.clear();
        by_profile.clear();
        let next = sight.visit.next?;
        if !next.is_in_pass {
            return None;
        }
        let visits = self.layers[next.layer].visits;
        let is_left_to_profile = self.layers[next.layer].is_left_to_profile();
        if is_left_to_profile && visits % INTERVAL != 0 {
            return None;
        }
        self.choose(sight, next.layer)?;
        (!is_left_to_profile).then_some(&self.predicted.by_router[..])
    }

    /// Whether the usage profile is worth being asked as well, to be compared.
    pub fn wants_profile(&self, sight: &Sight) -> bool {
        sight.visit.next.is_some_and(|next| self.layers[next.layer].by_router.value().is_none_or(|share| share < GOOD))
    }

    /// The usage profile names these experts of the next layer.
    pub fn compare(&mut self, experts: impl Iterator<Item = ExpertId>) {
        self.predicted.by_profile.clear();
        self.predicted.by_profile.extend(experts);
    }

    /// What became of what was foreseen, and what can be learned from it.
    pub fn learn(&mut self, before: &Sight, sight: &Sight) {
        self.count(sight);
        let (from, to) = (before.visit.layer, sight.visit.layer);
        let layer = &mut self.layers[to];
        layer.visits = layer.visits.wrapping_add(1);
        if sight.used() > 0 {
            layer.used = sight.used();
        }
        let is_carried = sight.visit.follows(&before.visit) && !sight.visit.is_first;
        if !is_carried || sight.row_length != before.row_length || from == to {
            return;
        }
        let (low, high) = self.layers.raw.split_at_mut(from.max(to).0);
        let (from, this) = match from < to {
            true => (&mut low[from.0], &mut high[0]),
            false => (&mut high[0], &mut low[to.0]),
        };
        let Some(Router { gate, fit }) = &mut this.router else { return };
        if gate.width() != sight.row_length || sight.inputs.is_empty() || sight.routing.is_empty() {
            return;
        }
        if this.reached.as_ref().is_none_or(|&(layer, _)| layer != before.visit.layer) {
            this.reached = Some((before.visit.layer, Carry::new(&from.norms, &this.norms)));
        }
        let Some((_, carry)) = &mut this.reached else { return };
        carry.learn(&from.norms, &this.norms, before.last_input(), sight.last_input());
        fit.learn(gate, &this.norms, carry.put_in(), sight.last_input(), sight.last_routing());
    }

    fn choose(&mut self, sight: &Sight, next: ExpertLayer) -> Option<()> {
        let Self { layers, predicted, input, logits, ranking, votes } = self;
        let (from, to) = (&layers[sight.visit.layer], &layers[next]);
        let (Some(Router { gate, fit }), Some((layer, carry))) = (&to.router, &to.reached) else { return None };
        if *layer != sight.visit.layer || gate.width() != sight.row_length || !carry.is_known() || !to.is_readable() {
            return None;
        }
        let (source, score) = fit.best(gate);
        votes.restart(gate.expert_count());
        for row in sight.inputs.chunks_exact(sight.row_length) {
            carry.foresee(&from.norms, &to.norms, row, input);
            source.of_experts(&to.norms, carry.put_in(), input);
            gate.logits(input, logits);
            votes.add(gate.select(score, logits, to.used, ranking));
        }
        predicted.by_router.extend_from_slice(votes.count());
        Some(())
    }

    /// Counts what was right of what was foreseen for a layer.
    fn count(&mut self, sight: &Sight) {
        let Predicted { at, by_router, by_profile } = &self.predicted;
        let is_foreseen = at.next.is_some_and(|next| next.layer == sight.visit.layer);
        if sight.is_part || !is_foreseen || !sight.visit.follows(at) {
            return;
        }
        let layer = &mut self.layers[sight.visit.layer];
        for (named, share) in [(by_router, &mut layer.by_router), (by_profile, &mut layer.by_profile)] {
            if !named.is_empty() {
                let right = sight
                    .routing
                    .iter()
                    .filter(|&&expert| ExpertId::of_host(expert).is_some_and(|expert| named.contains(&expert)))
                    .count();
                share.add(right, sight.routing.len());
            }
        }
    }
}

impl Layer {
    /// Whether the layer's own choices are known to follow from its router.
    fn is_readable(&self) -> bool {
        let named = self.router.as_ref().and_then(|router| router.fit.named());
        named.is_some_and(|named| named >= OWN_CHOICES_MIN)
    }

    fn is_left_to_profile(&self) -> bool {
        match (self.by_router.value(), self.by_profile.value()) {
            (Some(by_router), Some(by_profile)) => by_router < by_profile,
            _ => false,
        }
    }
}
