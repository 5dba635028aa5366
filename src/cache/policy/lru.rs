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
    /// By unit: when it last became evictable, counted in such events from 1; 0 for never.
    evictable_since: TiVec<UnitId, u64>,
    is_evictable: TiVec<UnitId, bool>,
    event_count: u64,
}

impl Lru {
    /// A policy that knows nothing yet.
    pub fn new(shape: Shape) -> Self {
        let count = shape.unit_count();
        Self {
            links: Links::new(count),
            list: List::new(),
            evictable_since: vec![0; count].into(),
            is_evictable: vec![false; count].into(),
            event_count: 0,
        }
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "LRU"
    }

    fn used(&mut self, _unit: UnitId, _at: Position, _usage: Use) {}

    fn set_evictable(&mut self, unit: UnitId) {
        if std::mem::replace(&mut self.is_evictable[unit], true) {
            return;
        }
        self.event_count += 1;
        self.evictable_since[unit] = self.event_count;
        self.list.push_back(&mut self.links, unit);
    }

    fn set_in_use(&mut self, unit: UnitId) {
        if std::mem::replace(&mut self.is_evictable[unit], false) {
            self.list.remove(&mut self.links, unit);
        }
    }

    #[cfg(test)]
    fn evictable_count(&self) -> usize {
        self.is_evictable.iter().filter(|evictable| **evictable).count()
    }

    fn victim(&self, _at: Position) -> Option<UnitId> {
        self.list.front()
    }

    fn score(&self, unit: UnitId, _at: Position) -> f64 {
        self.evictable_since[unit] as f64
    }
}
