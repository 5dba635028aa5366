//! The policy that knows the future: what any other can be measured against.

use super::trace::Trace;
use crate::cache::policy::{Policy, Position, Shape, Use};
use std::collections::BTreeSet;

/// Evicts what is used again last, as the trace tells: Belady's MIN, the most hits that are possible.
///
/// For replay only: it allocates, and serves the one trace that it was made for, from its beginning.
#[derive(Debug)]
pub struct Belady {
    /// By unit: the times of its uses, latest first; past ones are popped.
    uses: Vec<Vec<usize>>,
    offered: BTreeSet<(usize, usize)>,
    shape: Shape,
}

impl Belady {
    /// Knows what a trace will use.
    pub fn new(trace: &Trace) -> Self {
        let mut uses = vec![Vec::new(); trace.shape.unit_count()];
        let layers = trace.passes.iter().enumerate().flat_map(|(pass, it)| it.layers.iter().map(move |l| (pass, l)));
        for (pass, layer) in layers {
            for used in &layer.experts {
                let unit = trace.shape.unit(layer.layer, used.expert);
                uses[unit].push(pass * trace.shape.layer_count + layer.layer);
            }
        }
        uses.iter_mut().for_each(|times| times.reverse());
        Self { uses, offered: BTreeSet::new(), shape: trace.shape }
    }

    fn next_use(&self, unit: usize) -> usize {
        self.uses[unit].last().copied().unwrap_or(usize::MAX)
    }
}

impl Policy for Belady {
    fn name(&self) -> &'static str {
        "Belady"
    }

    fn used(&mut self, unit: usize, at: Position, _usage: Use) {
        let time = self.uses[unit].pop();
        assert_eq!(time, Some(at.pass as usize * self.shape.layer_count + at.layer), "another trace is played");
    }

    fn set_evictable(&mut self, unit: usize) {
        self.offered.insert((self.next_use(unit), unit));
    }

    fn set_in_use(&mut self, unit: usize) {
        self.offered.remove(&(self.next_use(unit), unit));
    }

    #[cfg(test)]
    fn evictable_count(&self) -> usize {
        self.offered.len()
    }

    fn victim(&self, _at: Position) -> Option<usize> {
        self.offered.last().map(|&(_, unit)| unit)
    }

    fn score(&self, unit: usize, _at: Position) -> f64 {
        -(self.next_use(unit) as f64)
    }
}
