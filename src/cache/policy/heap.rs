//! A binary heap of units that can give up any of them, smallest key first.

const ABSENT: u32 = u32::MAX;

/// Units with keys. Of equal keys the one that was inserted first comes first.
#[derive(Debug)]
pub(super) struct UnitHeap {
    /// Unit and key, no child before its parent.
    entries: Vec<(u32, Key)>,
    /// By unit: its index in `entries`.
    place: Vec<u32>,
    insertions: u64,
}

/// What orders units: the value, then the time of insertion.
type Key = (f64, u64);

impl UnitHeap {
    pub(super) fn new(unit_count: usize) -> Self {
        Self { entries: Vec::with_capacity(unit_count), place: vec![ABSENT; unit_count], insertions: 0 }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn first(&self) -> Option<usize> {
        self.entries.first().map(|&(unit, _)| unit as usize)
    }

    /// Adds a unit, unless it is there. `value` must not be NaN.
    pub(super) fn insert(&mut self, unit: usize, value: f64) {
        if self.place[unit] != ABSENT {
            return;
        }
        self.insertions += 1;
        self.entries.push((unit as u32, (value, self.insertions)));
        self.place[unit] = self.entries.len() as u32 - 1;
        self.rise(self.entries.len() - 1);
    }

    /// Takes a unit out, if it is there.
    pub(super) fn remove(&mut self, unit: usize) {
        let index = std::mem::replace(&mut self.place[unit], ABSENT);
        if index == ABSENT {
            return;
        }
        let index = index as usize;
        self.entries.swap_remove(index);
        if let Some(&(moved, _)) = self.entries.get(index) {
            self.place[moved as usize] = index as u32;
            self.rise(index);
            self.sink(self.place[moved as usize] as usize);
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
        self.place[self.entries[a].0 as usize] = a as u32;
        self.place[self.entries[b].0 as usize] = b as u32;
    }
}
