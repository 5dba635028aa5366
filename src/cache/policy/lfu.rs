//! Least frequently used first.

use super::heap::UnitHeap;
use super::{Policy, Position, Shape, Use};

/// Evicts what was used in the fewest passes; of equals, what was let go of longest ago. It never forgets.
#[derive(Debug)]
pub struct Lfu {
    /// By unit: the passes that used it.
    uses: Vec<u64>,
    offered: UnitHeap,
}

impl Lfu {
    /// A policy that knows nothing yet.
    pub fn new(shape: Shape) -> Self {
        Self { uses: vec![0; shape.unit_count()], offered: UnitHeap::new(shape.unit_count()) }
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "LFU"
    }

    fn used(&mut self, unit: usize, _at: Position, _usage: Use) {
        self.uses[unit] += 1;
    }

    fn set_evictable(&mut self, unit: usize) {
        self.offered.insert(unit, self.uses[unit] as f64);
    }

    fn set_in_use(&mut self, unit: usize) {
        self.offered.remove(unit);
    }

    #[cfg(test)]
    fn evictable_count(&self) -> usize {
        self.offered.len()
    }

    fn victim(&self, _at: Position) -> Option<usize> {
        self.offered.first()
    }

    fn score(&self, unit: usize, _at: Position) -> f64 {
        self.uses[unit] as f64
    }
}
