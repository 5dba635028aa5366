//! Every policy beside a model of it that is plain and slow.

use typed_index_collections::TiVec;

use super::forecast::{HALF_LIFE_TOKENS, PROMPT_TOKENS_MAX, WEIGHT};
use super::*;
use crate::common::Random;

const SHAPE: Shape = Shape { layer_count: 4, expert_count: 6 };

fn unit_of(layer: usize, expert: usize) -> UnitId {
    SHAPE.unit(PolicyLayer(layer), ExpertId(expert))
}

fn position(pass: u64, layer: usize) -> Position {
    Position { pass, layer: PolicyLayer(layer) }
}

/// A policy and all that was done to it.
struct Driven {
    policy: Box<dyn Policy>,
    /// In the order in which they became evictable.
    evictable: Vec<UnitId>,
    /// By unit: the uses so far.
    uses: TiVec<UnitId, Vec<(Position, Use)>>,
    /// Tokens of each pass.
    passes: Vec<u32>,
    at: Position,
    /// Whether units also become evictable without having been used.
    evicts_unused: bool,
}

impl Driven {
    fn new(policy: Box<dyn Policy>) -> Self {
        let count = SHAPE.unit_count();
        let at = position(0, 0);
        let uses = vec![Vec::new(); count].into();
        Self { policy, evictable: Vec::new(), uses, passes: Vec::new(), at, evicts_unused: true }
    }

    /// Runs through the layers at random; calls `check` before every eviction.
    fn run(mut self, seed: u64, check: impl Fn(&Self)) {
        let mut random = Random::new(seed);
        for pass in 0..300 {
            let token_count = if random.below(12) == 0 { 1 + random.below(40) as u32 } else { 1 };
            self.passes.push(token_count);
            for layer in 0..SHAPE.layer_count {
                self.at = position(pass, layer);
                let usage = Use { token_count, routed_count: 1 + random.below(token_count as usize) as u32 };
                // Small numbers come more often.
                let unit = unit_of(layer, random.below(SHAPE.expert_count).min(random.below(SHAPE.expert_count)));
                self.set_in_use(unit);
                self.policy.used(unit, self.at, usage);
                self.uses[unit].push((self.at, usage));
                if random.below(3) == 0 {
                    check(&self);
                    let victim = self.policy.victim(self.at);
                    assert_eq!(victim.is_some(), !self.evictable.is_empty());
                    if let Some(victim) = victim {
                        assert!(self.evictable.contains(&victim), "{victim} may not be evicted");
                        self.set_in_use(victim);
                    }
                }
                let other = UnitId(random.below(SHAPE.unit_count()));
                match random.below(4) {
                    0 => self.set_in_use(other),
                    1 if self.evicts_unused => self.set_evictable(other),
                    _ => {}
                }
                self.set_evictable(unit);
            }
        }
    }

    fn set_evictable(&mut self, unit: UnitId) {
        self.policy.set_evictable(unit);
        if !self.evictable.contains(&unit) {
            self.evictable.push(unit);
        }
    }

    fn set_in_use(&mut self, unit: UnitId) {
        self.policy.set_in_use(unit);
        self.evictable.retain(|&evictable| evictable != unit);
    }

    fn victim(&self) -> Option<UnitId> {
        self.policy.victim(self.at)
    }

    /// The first of the evictable units with the smallest value.
    fn least(&self, value: impl Fn(UnitId) -> f64) -> Option<UnitId> {
        self.evictable.iter().copied().min_by(|&a, &b| value(a).total_cmp(&value(b)))
    }

    fn decayed_uses(&self, unit: UnitId, half_life_passes: f64) -> f64 {
        let since = |at: Position| (self.at.pass - at.pass) as f64;
        self.uses[unit].iter().map(|&(at, _)| (-since(at) / half_life_passes).exp2()).sum()
    }

    /// The forecast's estimate, token by token.
    fn wait(&self, unit: UnitId) -> f64 {
        let mut averages = [0.0; HALF_LIFE_TOKENS.len()];
        let kept = HALF_LIFE_TOKENS.map(|half_life| (-1.0 / half_life).exp2());
        let (layer, here) = (SHAPE.layer(unit), self.at.layer);
        let last_pass = if layer > here { self.at.pass } else { self.at.pass + 1 };
        for (pass, &token_count) in self.passes.iter().enumerate().take(last_pass as usize) {
            let of_pass = self.uses[unit].iter().find(|(at, _)| at.pass == pass as u64);
            let rate = of_pass.map_or(0.0, |(_, usage)| f64::from(usage.routed_count) / f64::from(usage.token_count));
            for _ in 0..token_count.min(PROMPT_TOKENS_MAX) {
                for (average, kept) in averages.iter_mut().zip(kept) {
                    *average = *average * kept + rate * (1.0 - kept);
                }
            }
        }
        let p: f64 = averages.iter().zip(WEIGHT).map(|(average, weight)| average * f64::from(weight)).sum();
        let layers = (layer + SHAPE.layer_count - here - 1) % SHAPE.layer_count + 1;
        1.0 / p.clamp(1e-6, 0.999) - 1.0 + layers as f64 / SHAPE.layer_count as f64
    }
}

#[test]
fn lru_is_a_queue() {
    for seed in 0..20 {
        Driven::new(PolicyKind::Lru.build(SHAPE)).run(seed, |driven| {
            assert_eq!(driven.victim(), driven.evictable.first().copied());
        });
    }
}

#[test]
fn lfu_counts_passes() {
    for seed in 0..20 {
        Driven::new(PolicyKind::Lfu.build(SHAPE)).run(seed, |driven| {
            assert_eq!(driven.victim(), driven.least(|unit| driven.uses[unit].len() as f64));
        });
    }
}

#[test]
fn lrfu_sums_decayed_uses() {
    for seed in 0..20 {
        Driven::new(PolicyKind::Lrfu.build(SHAPE)).run(seed, |driven| {
            let Some(victim) = driven.victim() else { return };
            let least = driven.least(|unit| driven.decayed_uses(unit, lrfu::HALF_LIFE_PASSES)).unwrap();
            let [found, right] = [victim, least].map(|unit| driven.decayed_uses(unit, lrfu::HALF_LIFE_PASSES));
            assert!(found <= right * (1.0 + 1e-9), "{victim} has {found}, {least} has {right}");
        });
    }
}

#[test]
fn the_forecast_is_what_the_whole_past_gives() {
    for seed in 0..3 {
        Driven::new(PolicyKind::Forecast.build(SHAPE)).run(seed, |driven| {
            for unit in SHAPE.units() {
                let (found, right) = (1.0 / driven.policy.score(unit, driven.at), driven.wait(unit));
                assert!((found / right - 1.0).abs() < 1e-3, "unit {unit}: {found} instead of {right}");
            }
        });
    }
}

#[test]
fn the_forecast_evicts_what_it_expects_last_as_far_as_classes_tell() {
    for seed in 0..3 {
        let mut driven = Driven::new(PolicyKind::Forecast.build(SHAPE));
        driven.evicts_unused = false; // within a class the order of becoming evictable stands for that of the uses
        driven.run(seed, |driven| {
            let Some(victim) = driven.victim() else { return };
            let longest = driven.evictable.iter().map(|&unit| driven.wait(unit)).fold(0.0, f64::max);
            // Units of a class share the sum of the longer averages, not each, so one may fade faster than another.
            assert!(driven.wait(victim) > 0.4 * longest - 1.0, "{} of {longest}", driven.wait(victim));
        });
    }
}

#[test]
fn of_equal_units_the_one_of_the_layer_just_computed_goes_first() {
    let mut policy = Forecast::new(SHAPE);
    let units: Vec<UnitId> = (0..SHAPE.layer_count).map(|layer| unit_of(layer, 0)).collect();
    for pass in 0..40 {
        for (layer, &unit) in units.iter().enumerate() {
            policy.used(unit, position(pass, layer), Use::DECODE);
        }
    }
    // In the middle of the next pass, layers 0 and 1 are done and 2 and 3 lie ahead.
    let at = position(40, 1);
    policy.used(units[0], position(40, 0), Use::DECODE);
    policy.used(units[1], at, Use::DECODE);
    [2, 3, 0, 1].iter().for_each(|&layer| policy.set_evictable(units[layer]));
    let scores: Vec<f64> = units.iter().map(|&unit| policy.score(unit, at)).collect();
    assert!(scores[2] > scores[3] && scores[3] > scores[0] && scores[0] > scores[1], "{scores:?}");
    assert_eq!(policy.victim(at), Some(units[1]));
}

#[test]
fn a_prompt_that_uses_everything_does_not_wash_out_what_is_hot() {
    let mut policy = Forecast::new(SHAPE);
    let hot = unit_of(2, 3);
    for pass in 0..50 {
        policy.used(hot, position(pass, 2), Use::DECODE);
    }
    for layer in 0..SHAPE.layer_count {
        for expert in 0..SHAPE.expert_count {
            let unit = unit_of(layer, expert);
            policy.used(unit, position(50, layer), Use { token_count: 512, routed_count: 64 });
            policy.set_evictable(unit);
        }
    }
    let at = position(51, 0);
    for _ in 1..SHAPE.unit_count() {
        let victim = policy.victim(at).unwrap();
        assert_ne!(victim, hot);
        policy.set_in_use(victim);
    }
    assert_eq!(policy.victim(at), Some(hot));
}

#[test]
fn what_is_foreseen_is_worth_more_the_likelier_and_the_sooner() {
    let mut policy = Forecast::new(SHAPE);
    let (hot, cold) = (unit_of(0, 0), unit_of(1, 1));
    for pass in 0..100 {
        policy.used(hot, position(pass, 0), Use::DECODE);
    }
    let at = position(100, 0);
    let foreseen = |probability| policy.predicted_score(cold, probability, at);
    assert!(foreseen(0.9) > foreseen(0.5) && foreseen(0.5) > foreseen(0.1));
    // What is used by every token, next time in a whole pass, against what may be used by the next layer.
    assert!(foreseen(0.9) > policy.score(hot, at) && policy.score(hot, at) > foreseen(0.3));
    assert!(policy.predicted_score(hot, 0.0, at) >= policy.score(hot, at), "what is known of it counts too");
    assert!(foreseen(0.5) > policy.predicted_score(unit_of(3, 1), 0.5, at), "layer 3 comes later than layer 1");
}

#[test]
fn what_earlier_runs_know_decides_until_something_is_used() {
    let mut policy = Forecast::new(SHAPE);
    let (cold, hot, unknown) = (unit_of(1, 0), unit_of(1, 1), unit_of(1, 2));
    policy.remember(cold, 0.02);
    policy.remember(hot, 0.6);
    [hot, unknown, cold].iter().for_each(|&unit| policy.set_evictable(unit));
    let at = position(0, 0);
    let order: Vec<UnitId> = (0..3)
        .map(|_| {
            let victim = policy.victim(at).unwrap();
            policy.set_in_use(victim);
            victim
        })
        .collect();
    assert_eq!(order, [unknown, cold, hot]);
}

#[test]
fn what_is_announced_stays_until_its_turn() {
    let mut policy = Forecast::new(SHAPE);
    let (popular, rare) = (unit_of(2, 0), unit_of(2, 1));
    for pass in 0..50 {
        policy.used(popular, position(pass, 2), Use::DECODE);
    }
    let entered = position(50, 1);
    policy.used(rare, entered, Use::DECODE);
    [popular, rare].iter().for_each(|&unit| policy.set_evictable(unit));
    assert_eq!(policy.victim(entered), Some(popular), "it is certain that the rare one is used next");
    assert_eq!(policy.victim(position(50, 2)), Some(rare));
    assert_eq!(policy.victim(position(51, 1)), Some(rare), "that was for one pass");
}
