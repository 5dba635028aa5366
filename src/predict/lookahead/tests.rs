//! Whole models whose residual hardly changes: look-ahead names what every one of them chooses, however its routers work.

use super::floats::Matrix;
use super::gate::Gate;
use super::norms::{Norm, NormName, Norms, normalise};
use super::score::{Activation, Groups, Ranking, Score};
use super::test_numbers::Numbers;
use super::*;

const WIDTH: usize = 64;
const EXPERTS: usize = 32;
const USED: usize = 4;
const LAYERS: usize = 4;

/// How a model works, as llama.cpp's graphs have it.
#[derive(Clone, Copy)]
struct Kind {
    /// The norm of what experts get.
    experts_norm: NormName,
    /// The norm of what routers get, if another.
    router_norm: Option<Option<NormName>>,
    /// A norm that comes before, in a model whose residual is what norms give.
    residual_norm: Option<NormName>,
    score: Score,
    has_bias: bool,
    groups: Option<Groups>,
    /// Layers that choose by the token's number.
    hash_layers: usize,
    /// Whether experts work in a space of their own, of which nothing is shown but the router's input.
    is_latent: bool,
}

const PLAIN: Score = Score { activation: Activation::Identity, is_biased: false, is_grouped: false };
const KIND: Kind = Kind {
    experts_norm: 1,
    router_norm: None,
    residual_norm: None,
    score: PLAIN,
    has_bias: false,
    groups: None,
    hash_layers: 0,
    is_latent: false,
};

fn biased(activation: Activation) -> Score {
    Score { activation, is_biased: true, is_grouped: false }
}

struct Model {
    kind: Kind,
    gates: Vec<Gate>,
    norms: Vec<Norms>,
    numbers: Numbers,
    lookahead: Lookahead,
}

impl Model {
    fn new(kind: Kind) -> Self {
        let gate = |layer: usize| {
            let mut numbers = Numbers::new(100 + layer as u64);
            let rows: Vec<Vec<f32>> = (0..EXPERTS).map(|_| numbers.near(0.0, 0.25, WIDTH)).collect();
            let bias = if kind.has_bias { numbers.near(0.0, 0.3, EXPERTS) } else { Vec::new() };
            Gate::new(Matrix::of_rows(&rows), Vec::new(), bias, kind.groups, None)
        };
        let norms = |layer: usize| {
            let mut numbers = Numbers::new(200 + layer as u64);
            let mut norm = |name, has_bias: bool| {
                let bias = if has_bias { numbers.near(0.0, 0.2, WIDTH) } else { Vec::new() };
                Norm::new(name, numbers.near(1.0, 0.3, WIDTH), bias)
            };
            Norms::of(vec![norm(0, false), norm(1, false), norm(2, true), norm(3, false)])
        };
        let layer = |index: usize| {
            let (gate, norms) = (gate(index), norms(index));
            let router = Some(Router { fit: fit::Fit::new(&gate, &norms), gate });
            Layer { router, norms, used: USED, ..Layer::default() }
        };
        Self {
            kind,
            gates: (0..LAYERS).map(gate).collect(),
            norms: (0..LAYERS).map(norms).collect(),
            numbers: Numbers::new(1),
            lookahead: Lookahead::of((0..LAYERS).map(layer).collect()),
        }
    }

    /// What a layer's experts get of a residual, what its router gets, and what is then the residual.
    fn inputs(&self, layer: usize, residual: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let normed = |name: Option<NormName>, values: &[f32]| {
            let mut values = values.to_vec();
            normalise(&mut values);
            name.and_then(|name| self.norms[layer].get(name)).into_iter().for_each(|norm| norm.put_in(&mut values));
            values
        };
        let Kind { experts_norm, router_norm, residual_norm, .. } = self.kind;
        let before = if residual_norm.is_some() { normed(residual_norm, residual) } else { residual.to_vec() };
        let experts = normed(Some(experts_norm), &before);
        let router = router_norm.map_or_else(|| experts.clone(), |norm| normed(norm, &before));
        let after = if residual_norm.is_some() { experts.clone() } else { residual.to_vec() };
        (experts, router, after)
    }

    /// Runs tokens; returns of what layers wanted that one comes before the share that routers named, and the layers they spoke for.
    fn run(&mut self, tokens: u64) -> (f32, f32) {
        let (mut right, mut named, mut all) = (0, 0, 0);
        let mut before = Sight::default();
        for token in 0..tokens {
            let mut residual = self.numbers.near(0.0, 1.5, WIDTH);
            let mut choices: Option<Vec<usize>> = None;
            for layer in 0..LAYERS {
                let (experts, router, after) = self.inputs(layer, &residual);
                residual = after;
                let routing = self.route(layer, token, &router);
                if layer > 0 {
                    all += routing.len();
                    named += choices.as_ref().map_or(0, |_| routing.len());
                    let choices = choices.unwrap_or_default();
                    right += routing.iter().filter(|&&expert| choices.contains(&(expert as usize))).count();
                }
                let next = Successor { layer: ExpertLayer((layer + 1) % LAYERS), is_in_pass: layer + 1 < LAYERS };
                let number = token * LAYERS as u64 + layer as u64;
                let visit = Visit {
                    layer: ExpertLayer(layer),
                    visitor: WaiterId(0),
                    number,
                    is_first: layer == 0,
                    next: Some(next),
                };
                let inputs = if self.kind.is_latent { router } else { experts };
                let sight = Sight { visit, is_part: false, row_length: WIDTH, inputs, routing, experts: Vec::new() };
                choices = self.lookahead.name(&sight).map(|named| named.iter().map(|expert| expert.0).collect());
                self.lookahead.compare([30, 31].map(ExpertId).into_iter());
                self.lookahead.learn(&before, &sight);
                before = sight;
            }
        }
        (right as f32 / named.max(1) as f32, named as f32 / all as f32)
    }

    fn route(&self, layer: usize, token: u64, input: &[f32]) -> Vec<i32> {
        if layer < self.kind.hash_layers {
            return (0..USED as u64).map(|choice| ((token * 11 + choice * 5) % EXPERTS as u64) as i32).collect();
        }
        let (mut logits, mut ranking) = (Vec::new(), Ranking::default());
        self.gates[layer].logits(input, &mut logits);
        let ranked = self.gates[layer].select(self.kind.score, &logits, USED, &mut ranking);
        ranked.iter().map(|&(expert, _)| expert.0 as i32).collect()
    }
}

#[test]
fn every_kind_of_router_is_named_nearly_wholly() {
    let groups = Some(Groups { count: 8, used: 3 });
    for (name, kind) in [
        ("the usual norm", KIND),
        ("another norm", Kind { experts_norm: 3, ..KIND }),
        ("a norm with a bias", Kind { experts_norm: 2, ..KIND }),
        ("a norm of the router's own", Kind { router_norm: Some(Some(3)), ..KIND }),
        ("a router without a norm", Kind { router_norm: Some(None), ..KIND }),
        ("a residual that norms give", Kind { residual_norm: Some(0), experts_norm: 3, ..KIND }),
        ("sigmoid", Kind { score: biased(Activation::Sigmoid), has_bias: true, ..KIND }),
        ("softmax", Kind { score: biased(Activation::Softmax), has_bias: true, ..KIND }),
        ("square root of softplus", Kind { score: biased(Activation::SqrtSoftplus), has_bias: true, ..KIND }),
        ("a bias that is not used", Kind { has_bias: true, ..KIND }),
        (
            "groups",
            Kind { score: Score { is_grouped: true, ..biased(Activation::Sigmoid) }, has_bias: true, groups, ..KIND },
        ),
        ("latent experts", Kind { is_latent: true, ..KIND }),
    ] {
        let (right, named) = Model::new(kind).run(60);
        assert!(right > 0.97 && named > 0.9, "{name}: {right} of {named}");
    }
}

#[test]
fn layers_that_choose_by_the_tokens_number_are_left_to_habits() {
    let mut model = Model::new(Kind { hash_layers: 2, ..KIND });
    model.run(40);
    let (right, named) = model.run(60);
    // One of the three layers that another comes before.
    assert!(right > 0.97 && (0.6..0.7).contains(&named), "{right} of {named}");
}

#[test]
fn of_what_has_no_relation_nothing_is_named() {
    // Router and experts see different tokens, as if memory had been used again.
    let mut model = Model::new(KIND);
    let mut before = Sight::default();
    let mut named = 0;
    for number in 0..200 {
        let layer = number as usize % LAYERS;
        let next = Some(Successor { layer: ExpertLayer((layer + 1) % LAYERS), is_in_pass: layer + 1 < LAYERS });
        let inputs = model.numbers.near(0.0, 1.0, WIDTH);
        let other = model.numbers.near(0.0, 1.0, WIDTH);
        let routing = model.route(layer, 0, &other);
        let visit = Visit { layer: ExpertLayer(layer), visitor: WaiterId(0), number, is_first: layer == 0, next };
        let sight = Sight { visit, is_part: false, row_length: WIDTH, inputs, routing, experts: Vec::new() };
        named += usize::from(model.lookahead.name(&sight).is_some());
        model.lookahead.learn(&before, &sight);
        before = sight;
    }
    assert!(named < 10, "{named}");
}

#[test]
fn rows_of_another_width_are_no_input_of_the_router() {
    let mut model = Model::new(KIND);
    model.run(8);
    let visit = Visit {
        layer: ExpertLayer(1),
        visitor: WaiterId(0),
        number: 0,
        is_first: false,
        next: Some(Successor { layer: ExpertLayer(2), is_in_pass: true }),
    };
    let sight = Sight { visit, is_part: false, row_length: 7, inputs: vec![0.5; 7], routing: vec![1], experts: vec![] };
    assert_eq!(model.lookahead.name(&sight), None);
    model.lookahead.learn(&Sight::default(), &sight);
    let known = Sight { inputs: vec![0.5; WIDTH], row_length: WIDTH, ..sight };
    assert!(model.lookahead.name(&known).is_some(), "the right width is named");
}
