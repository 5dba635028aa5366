//! Playing a trace against a policy.

use std::ops::Add;

use typed_index_collections::TiVec;

use super::trace::{LayerUse, Trace};
use crate::cache::policy::{Policy, Position};
use crate::index::UnitId;

/// What the generated tokens met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Experts that they used.
    pub uses: u64,
    /// Those of them that were in RAM.
    pub hits: u64,
}

impl Add for Outcome {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { uses: self.uses + other.uses, hits: self.hits + other.hits }
    }
}

impl Outcome {
    /// Hits among uses, in percent.
    pub fn hit_percent(&self) -> f64 {
        100.0 * self.hits as f64 / self.uses.max(1) as f64
    }
}

/// Plays a trace from an empty cache of `slot_count` slots of one size. Prompts are played, but only decode counts.
///
/// As in a fetch: what a layer finds in RAM is held first, then its missing experts take slots, and all of it is let go
/// when the layer is done, in the order of use. A batch that needs more than all slots passes through in waves: when no
/// slot can be had, what is held is let go of.
///
/// # Panics
/// When there are no slots.
pub fn simulate(trace: &Trace, slot_count: usize, policy: &mut dyn Policy) -> Outcome {
    simulate_from(trace, slot_count, policy, &[])
}

/// As [`simulate`], from a cache that holds these units, or as many of the first of them as fit.
pub(super) fn simulate_from(trace: &Trace, slot_count: usize, policy: &mut dyn Policy, cached: &[UnitId]) -> Outcome {
    assert!(slot_count > 0, "nothing can be cached in no slots");
    let mut simulation = Simulation {
        is_cached: vec![false; trace.shape.unit_count()].into(),
        free_slots: slot_count,
        held: Vec::new(),
        missing: Vec::new(),
        policy,
    };
    for &unit in cached.iter().take(slot_count) {
        simulation.is_cached[unit] = true;
        simulation.free_slots -= 1;
        simulation.policy.set_evictable(unit);
    }
    let mut outcome = Outcome::default();
    for (number, pass) in trace.passes.iter().enumerate() {
        for layer in &pass.layers {
            let hits = simulation.run(trace, Position { pass: number as u64, layer: layer.layer }, layer);
            if pass.is_decode {
                outcome.uses += layer.experts.len() as u64;
                outcome.hits += hits;
            }
        }
    }
    outcome
}

struct Simulation<'a> {
    is_cached: TiVec<UnitId, bool>,
    free_slots: usize,
    held: Vec<UnitId>,
    missing: Vec<UnitId>,
    policy: &'a mut dyn Policy,
}

impl Simulation<'_> {
    /// Runs one layer; returns how many of its experts were there.
    fn run(&mut self, trace: &Trace, at: Position, layer: &LayerUse) -> u64 {
        self.missing.clear();
        for used in &layer.experts {
            let unit = trace.shape.unit(layer.layer, used.expert);
            if self.is_cached[unit] {
                self.policy.set_in_use(unit);
                self.held.push(unit);
            } else {
                self.missing.push(unit);
            }
            self.policy.used(unit, at, layer.usage(used));
        }
        let hits = self.held.len() as u64;
        for index in 0..self.missing.len() {
            self.make_room(at);
            let unit = self.missing[index];
            self.is_cached[unit] = true;
            self.held.push(unit);
        }
        self.let_go(trace, layer);
        hits
    }

    fn make_room(&mut self, at: Position) {
        if self.free_slots > 0 {
            self.free_slots -= 1;
            return;
        }
        let victim = self.policy.victim(at).unwrap_or_else(|| {
            self.held.drain(..).for_each(|unit| self.policy.set_evictable(unit));
            self.policy.victim(at).expect("what was held is evictable")
        });
        assert!(std::mem::replace(&mut self.is_cached[victim], false), "a victim must be in RAM");
        self.policy.set_in_use(victim);
    }

    fn let_go(&mut self, trace: &Trace, layer: &LayerUse) {
        // Evictable in the order of use; what a wave has evicted again is not there.
        for used in &layer.experts {
            let unit = trace.shape.unit(layer.layer, used.expert);
            if self.is_cached[unit] {
                self.policy.set_evictable(unit);
            }
        }
        self.held.clear();
    }
}
