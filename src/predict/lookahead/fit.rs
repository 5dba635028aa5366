//! What a layer's router is applied to, and how it selects: learned from the choices that are seen.
//!
//! A layer's choices come with the input of its experts. Most routers get the same; some have a norm of their own; some select in a
//! way that nothing in the file tells, or not by themselves at all (by the token's number, say). Every possibility is tried on
//! what the layer itself got, where a right one names exactly what was chosen.

use super::gate::Gate;
use super::norms::{NormName, Norms, normalise};
use super::score::{Ranking, Score};
use super::share::Share;

/// A possibility that names less than this is not the right one.
const RIGHT: f32 = 0.99;

/// Tokens at the start on which all possibilities are tried, unless the likeliest is right.
const TOKENS_FOR_ALL: u32 = 4;

/// Tokens after which a possibility may be settled on.
const TOKENS_MIN: u32 = 24;

/// Tokens that are looked at while none is right, and then every so manieth one.
const TOKENS_OF_LEARNING: u32 = 64;
const INTERVAL: u32 = 16;

/// What a router is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// What the experts get.
    Shared,
    /// The same residual, scaled with another norm, or with none.
    Instead(Option<NormName>),
}

/// What was tried on one input.
#[derive(Debug)]
struct Candidate {
    input: Input,
    tokens: u32,
    /// By way of selecting.
    named: Vec<Share>,
}

impl Candidate {
    fn is_right(&self) -> bool {
        self.named.iter().any(|named| named.value().is_some_and(|share| share >= RIGHT))
    }

    fn forget(&mut self) {
        self.tokens = 0;
        self.named.fill(Share::default());
    }
}

/// See the module.
#[derive(Debug)]
pub struct Fit {
    candidates: Vec<Candidate>,
    best: (usize, usize),
    /// The norm of the experts' input that was gone by.
    norm: Option<NormName>,
    tokens: u32,
    is_settled: bool,
    logits: Vec<f32>,
    rescaled: Vec<f32>,
    ranking: Ranking,
}

impl Fit {
    /// Knows nothing yet of a layer with this router and these norms.
    pub fn new(gate: &Gate, norms: &Norms) -> Self {
        let others = norms.names().map(Some).chain([None]).map(Input::Instead);
        let candidate = |input| Candidate { input, tokens: 0, named: vec![Share::default(); gate.scores().len()] };
        Self {
            candidates: [Input::Shared].into_iter().chain(others).map(candidate).collect(),
            best: (0, 0),
            norm: None,
            tokens: 0,
            is_settled: false,
            logits: Vec::new(),
            rescaled: Vec::new(),
            ranking: Ranking::default(),
        }
    }

    /// What the router is applied to and how it selects, as far as is known.
    pub fn best(&self, gate: &Gate) -> (Input, Score) {
        (self.candidates[self.best.0].input, gate.scores()[self.best.1])
    }

    /// The share of a layer's own choices that is named so; `None` before any was seen.
    pub fn named(&self) -> Option<f32> {
        self.candidates[self.best.0].named[self.best.1].value()
    }

    /// A layer's experts got an input that was scaled with `norm`, and these were chosen.
    pub fn learn(&mut self, gate: &Gate, norms: &Norms, norm: Option<NormName>, input: &[f32], chosen: &[i32]) {
        self.tokens = self.tokens.saturating_add(1);
        if self.is_settled || (self.tokens > TOKENS_OF_LEARNING && self.tokens % INTERVAL != 0) {
            return;
        }
        if std::mem::replace(&mut self.norm, norm) != norm {
            // Other inputs than the experts' own were made with the wrong norm.
            self.candidates[1..].iter_mut().for_each(Candidate::forget);
        }
        self.try_on(0, gate, norms, norm, input, chosen);
        let others = self.candidates.len() - 1;
        let tried = match self.candidates[0].is_right() {
            true => 0..0,
            false if self.tokens <= TOKENS_FOR_ALL => 0..others,
            // In turn, so that a token costs no more than two multiplications.
            false => self.tokens as usize % others..self.tokens as usize % others + 1,
        };
        for other in tried {
            self.try_on(1 + other, gate, norms, norm, input, chosen);
        }
        self.choose();
    }

    fn try_on(
        &mut self,
        index: usize,
        gate: &Gate,
        norms: &Norms,
        norm: Option<NormName>,
        input: &[f32],
        chosen: &[i32],
    ) {
        let Self { candidates, logits, rescaled, ranking, .. } = self;
        let candidate = &mut candidates[index];
        rescaled.clear();
        rescaled.extend_from_slice(input);
        candidate.input.of_experts(norms, norm, rescaled);
        gate.logits(rescaled, logits);
        candidate.tokens += 1;
        for (&score, named) in gate.scores().iter().zip(&mut candidate.named) {
            let ranked = gate.select(score, logits, chosen.len(), ranking);
            let right = ranked.iter().filter(|&&(expert, _)| chosen.contains(&(expert.0 as i32))).count();
            named.add(right, chosen.len());
        }
    }

    /// Goes by what names most; of equals, by the likeliest.
    fn choose(&mut self) {
        let mut most = f32::NEG_INFINITY;
        for (index, candidate) in self.candidates.iter().enumerate() {
            for (score, named) in candidate.named.iter().enumerate() {
                if named.value().is_some_and(|named| named > most) {
                    most = named.value().unwrap_or(most);
                    self.best = (index, score);
                }
            }
        }
        self.is_settled = most >= RIGHT && self.candidates[self.best.0].tokens >= TOKENS_MIN;
    }
}

impl Input {
    /// Makes what a router gets of what the experts get, which was scaled with `norm`.
    pub fn of_experts(self, norms: &Norms, norm: Option<NormName>, values: &mut [f32]) {
        let Self::Instead(own) = self else { return };
        if let Some(norm) = norm.and_then(|name| norms.get(name)) {
            norm.take_out(values);
        }
        normalise(values);
        if let Some(own) = own.and_then(|name| norms.get(name)) {
            own.put_in(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::floats::Matrix;
    use super::super::norms::Norm;
    use super::super::score::{Activation, Groups};
    use super::super::test_numbers::Numbers;
    use super::*;

    const WIDTH: usize = 32;
    const EXPERTS: usize = 24;
    const USED: usize = 4;

    /// Learns from a router that works in a given way; returns what is found, and how much of the choices of other tokens it names.
    fn found(gate: &Gate, input: Input, score: Score) -> (Input, Score, f32) {
        let mut numbers = Numbers::new(11);
        let mut norm = |name| Norm::new(name, numbers.near(1.0, 0.4, WIDTH), Vec::new());
        let norms = Norms::of(vec![norm(0), norm(1), norm(2)]);
        let mut fit = Fit::new(gate, &norms);
        assert_eq!(fit.named(), None);
        let choose = |input: Input, score: Score, experts_input: &[f32]| -> Vec<i32> {
            let (mut router_input, mut logits, mut ranking) = (experts_input.to_vec(), Vec::new(), Ranking::default());
            input.of_experts(&norms, Some(1), &mut router_input);
            gate.logits(&router_input, &mut logits);
            gate.select(score, &logits, USED, &mut ranking).iter().map(|&(expert, _)| expert.0 as i32).collect()
        };
        let mut right = 0;
        for token in 0..250 {
            let mut experts_input = numbers.near(0.0, 1.0, WIDTH);
            normalise(&mut experts_input);
            norms.get(1).unwrap().put_in(&mut experts_input);
            let chosen = choose(input, score, &experts_input);
            if token < 150 {
                fit.learn(gate, &norms, Some(1), &experts_input, &chosen);
            } else {
                let (input, score) = fit.best(gate);
                let named = choose(input, score, &experts_input);
                right += chosen.iter().filter(|expert| named.contains(expert)).count();
            }
        }
        let (input, score) = fit.best(gate);
        (input, score, right as f32 / (100 * USED) as f32)
    }

    fn gate(has_bias: bool, groups: Option<Groups>) -> Gate {
        let mut numbers = Numbers::new(5);
        let rows: Vec<Vec<f32>> = (0..EXPERTS).map(|_| numbers.near(0.0, 0.3, WIDTH)).collect();
        let bias = if has_bias { numbers.near(0.0, 0.4, EXPERTS) } else { Vec::new() };
        Gate::new(Matrix::of_rows(&rows), Vec::new(), bias, groups, None)
    }

    #[test]
    fn the_way_of_selecting_is_found() {
        for groups in [None, Some(Groups { count: 6, used: 3 })] {
            let gate = gate(true, groups);
            for &score in gate.scores() {
                let (input, found, named) = found(&gate, Input::Shared, score);
                assert_eq!(input, Input::Shared);
                assert!(named > 0.97, "{score:?} is taken for {found:?}: {named}");
            }
        }
    }

    #[test]
    fn a_norm_of_the_routers_own_is_found() {
        for own in [Some(0), Some(2), None] {
            let gate = gate(false, None);
            let (input, _, named) = found(&gate, Input::Instead(own), gate.scores()[0]);
            assert_eq!(input, Input::Instead(own));
            assert_eq!(named, 1.0);
        }
    }

    #[test]
    fn choices_that_are_not_the_routers_are_not_named() {
        let gate = gate(false, None);
        let norms = Norms::default();
        let mut fit = Fit::new(&gate, &norms);
        let mut numbers = Numbers::new(3);
        for token in 0..200 {
            let chosen = [0, 5, 11, 17].map(|expert| (expert + token * 7) % EXPERTS as i32);
            fit.learn(&gate, &norms, None, &numbers.near(0.0, 1.0, WIDTH), &chosen);
        }
        assert!(!fit.is_settled && fit.named().unwrap() < 0.4, "{:?}", fit.named());
    }

    #[test]
    fn what_the_file_says_is_gone_by_before_anything_is_seen() {
        let rows = vec![vec![1.0; WIDTH]; EXPERTS];
        let gate = Gate::new(Matrix::of_rows(&rows), vec![], vec![0.1; EXPERTS], None, Some(Activation::Softmax));
        let (input, score) = Fit::new(&gate, &Norms::default()).best(&gate);
        assert_eq!(input, Input::Shared);
        assert_eq!((score.activation, score.is_biased), (Activation::Softmax, true));
    }
}
