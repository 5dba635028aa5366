//! Least frequently used first.

use typed_index_collections::TiVec;

use super::heap::UnitHeap;
use super::{Policy, Position, Shape, Use};
use crate::index::UnitId;

/// Evicts what was used in the fewest passes; of equals, what was let go of longest ago. It never forgets.
#[derive(Debug)]
pub struct Lfu {
    /// By unit: the passes that used it.
    uses: TiVec<UnitId, u64>,
    evictable: UnitHeap,
}

impl Lfu {
    /// A policy that knows nothing yet.
    pub fn new(shape: Shape) -> Self {
        Self { uses: vec![0; shape.unit_count()].into(), evictable: UnitHeap::new(shape.unit_count()) }
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "LFU"
    }

    fn used(&mut self, unit: UnitId, _at: Position, _usage: Use) {
        self.uses[unit] += 1;
    }

    fn set_evictable(&mut self, unit: UnitId) {
        self.evictable.insert(unit, self.uses[unit] as f64);
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
        self.uses[unit] as f64
    }
}
