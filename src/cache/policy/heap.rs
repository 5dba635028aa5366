//! A binary heap of units that can give up any of them, smallest key first.

use typed_index_collections::TiVec;

use crate::index::UnitId;

const ABSENT: u32 = u32::MAX;

/// Units with keys. Of equal keys the one that was inserted first comes first.
#[derive(Debug)]
pub(super) struct UnitHeap {
    /// Unit and key, no child before its parent.
    entries: Vec<(u32, Key)>,
    /// By unit: its index in `entries`.
    place: TiVec<UnitId, u32>,
    insertions: u64,
}

/// What orders units: the value, then the time of insertion.
type Key = (f64, u64);

impl UnitHeap {
    pub(super) fn new(unit_count: usize) -> Self {
        Self { entries: Vec::with_capacity(unit_count), place: vec![ABSENT; unit_count].into(), insertions: 0 }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn first(&self) -> Option<UnitId> {
        self.entries.first().map(|&(unit, _)| UnitId(unit as usize))
    }

    /// Adds a unit, unless it is there. `value` must not be NaN.
    pub(super) fn insert(&mut self, unit: UnitId, value: f64) {
        if self.place[unit] != ABSENT {
            return;
        }
        self.insertions += 1;
        self.entries.push((unit.0 as u32, (value, self.insertions)));
        self.place[unit] = self.entries.len() as u32 - 1;
        self.rise(self.entries.len() - 1);
    }

    /// Takes a unit out, if it is there.
    pub(super) fn remove(&mut self, unit: UnitId) {
        let index = std::mem::replace(&mut self.place[unit], ABSENT);
        if index == ABSENT {
            return;
        }
        let index = index as usize;
        self.entries.swap_remove(index);
        if let Some(&(moved, _)) = self.entries.get(index) {
            let moved = UnitId(moved as usize);
            self.place[moved] = index as u32;
            self.rise(index);
            self.sink(self.place[moved] as usize);
        }
    }

    fn rise(&mut self, mut index: usize) {
        while index > 0 && self.entries[index].1 < self.entries[(index - 1) / 2].1 {
            self.swap(index, (index - 1) / 2);
            index = (index - 1) / 2;
        }
    }

    fn sink(&mut self, mut index: usize) {
        loop {
            let children = 2 * index + 1..(2 * index + 3).min(self.entries.len());
            let smaller = |a: &usize, b: &usize| self.entries[*a].1.partial_cmp(&self.entries[*b].1).expect("no NaN");
            match children.min_by(smaller).filter(|&child| self.entries[child].1 < self.entries[index].1) {
                Some(child) => {
                    self.swap(index, child);
                    index = child;
                }
                None => return,
            }
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.entries.swap(a, b);
        for index in [a, b] {
            self.place[UnitId(self.entries[index].0 as usize)] = index as u32;
        }
    }
}
