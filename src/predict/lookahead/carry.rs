//! What an expert layer's input becomes by the time the next one sees it.
//!
//! Between two expert layers the residual hardly changes; what does is the scaling by the norms of both. Which norms those are
//! differs from model to model, so every way that the layers' vectors allow is tried on what the second layer then gets, and the one
//! whose result points the same way is gone by.

use super::norms::{NormName, Norms, normalise, root_mean_square};

/// Inputs from which on a way is chosen for good, but for a look now and then.
const LEARNING: u32 = 64;

/// Of the inputs after that, every so manieth is looked at.
const INTERVAL: u32 = 16;

/// A way from one layer's input to the next one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Way {
    /// The norm of the first layer that is undone.
    taken_out: Option<NormName>,
    /// A norm of the second layer that comes before its last one, in models whose residual is what a norm gives.
    between: Option<NormName>,
    /// The last one.
    put_in: Option<NormName>,
}

impl Way {
    /// All of them, those that most models have first.
    fn possible(from: &Norms, to: &Norms) -> Vec<Self> {
        let shared = to.names().filter(|&name| from.get(name).is_some());
        let same = |name| Self { taken_out: Some(name), put_in: Some(name), between: None };
        let mut ways: Vec<Self> = shared.map(same).collect();
        ways.push(Self::default());
        ways.extend(to.names().map(|name| Self { put_in: Some(name), ..Self::default() }));
        for first in to.names() {
            // A product knows no order.
            let last = to.names().filter(|&last| last > first);
            ways.extend(last.map(|last| Self { between: Some(first), put_in: Some(last), taken_out: None }));
        }
        ways
    }

    fn carry(self, from: &Norms, to: &Norms, input: &[f32], output: &mut Vec<f32>) {
        output.clear();
        output.extend_from_slice(input);
        if let Some(norm) = self.taken_out.and_then(|name| from.get(name)) {
            norm.take_out(output);
        }
        normalise(output);
        if let Some(norm) = self.between.and_then(|name| to.get(name)) {
            norm.put_in(output);
            normalise(output);
        }
        if let Some(norm) = self.put_in.and_then(|name| to.get(name)) {
            norm.put_in(output);
        }
    }
}

/// What is known of one layer's way to the next.
#[derive(Debug)]
pub struct Carry {
    ways: Vec<Way>,
    /// By way: the mean cosine between what it foresaw and what came.
    likeness: Vec<f32>,
    best: usize,
    /// The mean magnitude of what came, by that of what the best way gives.
    magnitude: f32,
    seen: u32,
    scratch: Vec<f32>,
}

impl Carry {
    /// Knows nothing yet of the way between layers with these norms.
    pub fn new(from: &Norms, to: &Norms) -> Self {
        let ways = Way::possible(from, to);
        let likeness = vec![0.0; ways.len()];
        Self { ways, likeness, best: 0, magnitude: 1.0, seen: 0, scratch: Vec::new() }
    }

    /// Whether something was learned.
    pub fn is_known(&self) -> bool {
        self.seen > 0
    }

    /// The norm that the second layer's input was scaled with.
    pub fn put_in(&self) -> Option<NormName> {
        self.ways[self.best].put_in
    }

    /// The second layer's input, as far as it can be told from the first one's.
    pub fn foresee(&self, from: &Norms, to: &Norms, input: &[f32], output: &mut Vec<f32>) {
        self.ways[self.best].carry(from, to, input, output);
        output.iter_mut().for_each(|value| *value *= self.magnitude);
    }

    /// The first layer got one vector, and the second one then the other.
    pub fn learn(&mut self, from: &Norms, to: &Norms, before: &[f32], after: &[f32]) {
        self.seen = self.seen.saturating_add(1);
        let magnitude = root_mean_square(after);
        if magnitude == 0.0 || !magnitude.is_finite() || (self.seen > LEARNING && self.seen % INTERVAL != 0) {
            return;
        }
        let weight = 1.0 / self.seen.min(LEARNING) as f32;
        for (way, likeness) in self.ways.iter().zip(&mut self.likeness) {
            way.carry(from, to, before, &mut self.scratch);
            *likeness += weight * (cosine(&self.scratch, after) - *likeness);
        }
        let best =
            (0..self.ways.len()).rev().max_by(|&one, &other| self.likeness[one].total_cmp(&self.likeness[other]));
        let is_other = std::mem::replace(&mut self.best, best.unwrap_or(0)) != self.best;
        self.ways[self.best].carry(from, to, before, &mut self.scratch);
        let ratio = magnitude / root_mean_square(&self.scratch).max(f32::MIN_POSITIVE);
        self.magnitude =
            if is_other || self.seen == 1 { ratio } else { self.magnitude + weight * (ratio - self.magnitude) };
    }
}

/// The cosine of the angle between two vectors; 0 for what has no direction.
fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let product: f32 = one.iter().zip(other).map(|(a, b)| a * b).sum();
    let cosine = product / (root_mean_square(one) * root_mean_square(other) * one.len() as f32);
    if cosine.is_finite() { cosine } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::norms::Norm;
    use super::super::test_numbers::Numbers;
    use super::*;

    const WIDTH: usize = 64;

    fn norms(numbers: &mut Numbers) -> Norms {
        let mut norm = |name, has_bias: bool| {
            let bias = if has_bias { numbers.near(0.0, 0.3, WIDTH) } else { Vec::new() };
            Norm::new(name, numbers.near(1.0, 0.3, WIDTH), bias)
        };
        Norms::of(vec![norm(0, false), norm(1, true), norm(2, false)])
    }

    /// Runs a residual that hardly changes through both layers; returns how unlike what is foreseen and what comes are at most.
    fn unlikeness(make: impl Fn(&Norms, &[f32]) -> Vec<f32>, next: impl Fn(&Norms, &[f32], &[f32]) -> Vec<f32>) -> f32 {
        let mut numbers = Numbers::new(7);
        let (from, to) = (norms(&mut numbers), norms(&mut numbers));
        let mut carry = Carry::new(&from, &to);
        assert!(!carry.is_known());
        let mut predicted = Vec::new();
        let mut most = 0.0_f32;
        for token in 0..40 {
            let residual = numbers.near(0.0, 2.0, WIDTH);
            let before = make(&from, &residual);
            let after = next(&to, &residual, &before);
            carry.foresee(&from, &to, &before, &mut predicted);
            if token > 0 {
                let distance: Vec<f32> = predicted.iter().zip(&after).map(|(a, b)| a - b).collect();
                most = most.max(root_mean_square(&distance) / root_mean_square(&after));
            }
            carry.learn(&from, &to, &before, &after);
        }
        most
    }

    fn normed(norms: &Norms, name: NormName, residual: &[f32]) -> Vec<f32> {
        let mut values = residual.to_vec();
        normalise(&mut values);
        norms.get(name).unwrap().put_in(&mut values);
        values
    }

    #[test]
    fn the_norm_of_both_layers_is_found_with_its_bias() {
        for name in 0..3 {
            let most =
                unlikeness(|from, residual| normed(from, name, residual), |to, residual, _| normed(to, name, residual));
            assert!(most < 1e-3, "norm {name}: {most}");
        }
    }

    #[test]
    fn a_residual_that_a_norm_gives_is_carried_through_both_norms() {
        let most = unlikeness(
            |from, residual| normed(from, 2, residual),
            |to, _, before| normed(to, 2, &normed(to, 0, before)),
        );
        assert!(most < 1e-3, "{most}");
    }

    #[test]
    fn inputs_that_are_not_normalised_keep_their_magnitude() {
        let scaled = |factor: f32| {
            move |_: &Norms, residual: &[f32]| {
                let mut values = residual.to_vec();
                normalise(&mut values);
                values.iter_mut().for_each(|value| *value *= factor);
                values
            }
        };
        let most = unlikeness(scaled(0.25), |to, residual, _| scaled(0.125)(to, residual));
        assert!(most < 1e-3, "{most}");
    }

    #[test]
    fn what_has_no_direction_is_like_nothing() {
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        assert!((cosine(&[3.0, 4.0], &[6.0, 8.0]) - 1.0).abs() < 1e-6);
        assert_eq!(cosine(&[f32::NAN, 0.0], &[1.0, 0.0]), 0.0);
    }
}
