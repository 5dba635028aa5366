//! Least recently and frequently used first: uses count less the longer they are ago.

use typed_index_collections::TiVec;

use super::heap::UnitHeap;
use super::{Policy, Position, Shape, Use};
use crate::index::UnitId;

/// Passes after which a use counts half.
pub(super) const HALF_LIFE_PASSES: f64 = 16.0;

/// Evicts what has the smallest decayed count of passes that used it.
///
/// All counts decay at the same rate, so their order does not change with time: a count `c` at pass `t` is kept as
/// `log2(c) + t / half-life`, which stays the same until the next use.
#[derive(Debug)]
pub struct Lrfu {
    /// By unit: see above; minus infinity for a unit that was never used.
    level: TiVec<UnitId, f64>,
    evictable: UnitHeap,
}

impl Lrfu {
    /// A policy that knows nothing yet.
    pub fn new(shape: Shape) -> Self {
        Self { level: vec![f64::NEG_INFINITY; shape.unit_count()].into(), evictable: UnitHeap::new(shape.unit_count()) }
    }
}

impl Policy for Lrfu {
    fn name(&self) -> &'static str {
        "LRFU"
    }

    fn used(&mut self, unit: UnitId, at: Position, _usage: Use) {
        let now = at.pass as f64 / HALF_LIFE_PASSES;
        self.level[unit] = ((self.level[unit] - now).exp2() + 1.0).log2() + now;
    }

    fn set_evictable(&mut self, unit: UnitId) {
        self.evictable.insert(unit, self.level[unit]);
    }

    fn set_in_use(&mut self, unit: UnitId) {
        self.evictable.remove(unit);
    }

    #[cfg(test)]
    fn evictable_count(&self) -> usize {
        self.evictable.len()
    }

    fn victim(&self, _at: Position) -> Option<UnitId> {
        self.evictable.first()
    }

    fn score(&self, unit: UnitId, _at: Position) -> f64 {
        self.level[unit]
    }
}
