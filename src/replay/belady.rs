//! The policy that knows the future: what any other can be measured against.

use std::collections::BTreeSet;

use typed_index_collections::TiVec;

use super::trace::Trace;
use crate::cache::policy::{Policy, Position, Shape, Use};
use crate::index::UnitId;

/// Evicts what is used again last, as the trace tells: Belady's MIN, the most hits that are possible.
///
/// For replay only: it allocates, and serves the one trace that it was made for, from its beginning.
#[derive(Debug)]
pub struct Belady {
    /// By unit: the times of its uses, latest first; past ones are popped.
    uses: TiVec<UnitId, Vec<usize>>,
    evictable: BTreeSet<(usize, UnitId)>,
    shape: Shape,
}

impl Belady {
    /// Knows what a trace will use.
    pub fn new(trace: &Trace) -> Self {
        let mut uses: TiVec<UnitId, Vec<usize>> = vec![Vec::new(); trace.shape.unit_count()].into();
        let layers = trace.passes.iter().enumerate().flat_map(|(pass, it)| it.layers.iter().map(move |l| (pass, l)));
        for (pass, layer) in layers {
            for used in &layer.experts {
                let unit = trace.shape.unit(layer.layer, used.expert);
                uses[unit].push(pass * trace.shape.layer_count + layer.layer.0);
            }
        }
        uses.iter_mut().for_each(|times| times.reverse());
        Self { uses, evictable: BTreeSet::new(), shape: trace.shape }
    }

    fn next_use(&self, unit: UnitId) -> usize {
        self.uses[unit].last().copied().unwrap_or(usize::MAX)
    }
}

impl Policy for Belady {
    fn name(&self) -> &'static str {
        "Belady"
    }

    fn used(&mut self, unit: UnitId, at: Position, _usage: Use) {
        let time = self.uses[unit].pop();
        assert_eq!(time, Some(at.pass as usize * self.shape.layer_count + at.layer.0), "another trace is played");
    }

    fn set_evictable(&mut self, unit: UnitId) {
        self.evictable.insert((self.next_use(unit), unit));
    }

    fn set_in_use(&mut self, unit: UnitId) {
        self.evictable.remove(&(self.next_use(unit), unit));
    }

    #[cfg(test)]
    fn evictable_count(&self) -> usize {
        self.evictable.len()
    }

    fn victim(&self, _at: Position) -> Option<UnitId> {
        self.evictable.last().map(|&(_, unit)| unit)
    }

    fn score(&self, unit: UnitId, _at: Position) -> f64 {
        -(self.next_use(unit) as f64)
    }
}
