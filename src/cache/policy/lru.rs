//! Least recently used first.

use typed_index_collections::TiVec;

use super::{Policy, Position, Shape, Use};
use crate::cache::list::{Links, List};
use crate::index::UnitId;

/// Evicts what was let go of longest ago.
#[derive(Debug)]
pub struct Lru {
    links: Links<UnitId>,
    list: List<UnitId>,
    /// By unit: when it was last offered, counted in offers from 1; 0 for never.
    offered_at: TiVec<UnitId, u64>,
    is_offered: TiVec<UnitId, bool>,
    offers: u64,
}

impl Lru {
    /// A policy that knows nothing yet.
    pub fn new(shape: Shape) -> Self {
        let count = shape.unit_count();
        Self {
            links: Links::new(count),
            list: List::new(),
            offered_at: vec![0; count].into(),
            is_offered: vec![false; count].into(),
            offers: 0,
        }
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "LRU"
    }

    fn used(&mut self, _unit: UnitId, _at: Position, _usage: Use) {}

    fn set_evictable(&mut self, unit: UnitId) {
        if std::mem::replace(&mut self.is_offered[unit], true) {
            return;
        }
        self.offers += 1;
        self.offered_at[unit] = self.offers;
        self.list.push_back(&mut self.links, unit);
    }

    fn set_in_use(&mut self, unit: UnitId) {
        if std::mem::replace(&mut self.is_offered[unit], false) {
            self.list.remove(&mut self.links, unit);
        }
    }

    #[cfg(test)]
    fn evictable_count(&self) -> usize {
        self.is_offered.iter().filter(|offered| **offered).count()
    }

    fn victim(&self, _at: Position) -> Option<UnitId> {
        self.list.front()
    }

    fn score(&self, unit: UnitId, _at: Position) -> f64 {
        self.offered_at[unit] as f64
    }
}
