//! Divides memory among pools so that a token takes least time.
//!
//! Two starts: the rule's division, and the optimum of the linear program ([`super::relax`]), rounded to whole slots.
//! From the better one bytes are moved greedily from pool to pool while the simulated pass gets shorter. The rule stays
//! unless the result is clearly better: equal shares forgive what is not known of a model.

use typed_index_collections::{TiSlice, TiVec};

use super::linear::Microlp;
use super::relax::{READ_PENALTY, relax};
use super::{Allocation, Task, allocate};
use crate::forecast::{Problem, simulated_pass};
use crate::index::PoolId;
use crate::plan::SlotClass;

/// The rule stays unless a pass is shorter than this share of its own.
const CLEARLY_BETTER: f64 = 0.98;

/// A move of bytes is kept when a pass is shorter than this share of the one before.
const BETTER: f64 = 0.999;

/// Divisions that are simulated at most: a model's start, or whoever wants memory, waits for them.
const SIMULATIONS_MAX: usize = 96;

/// A start within this share of the bound is not worth refining.
const NEAR_BOUND: f64 = 1.01;

/// A division that is clearly faster than the rule's, if there is one.
pub(super) fn better_than(
    rule: &TiSlice<PoolId, usize>,
    task: &Task,
    problem: &mut Problem,
    budget_bytes: u64,
) -> Option<TiVec<PoolId, usize>> {
    let is_whole = |(&slots, class): (&usize, &SlotClass)| slots >= class.block_count;
    if task.classes.len() < 2 || rule.iter().zip(&task.classes).all(is_whole) {
        return None;
    }
    let mut search = Search { task, problem, budget_bytes, simulations_left: SIMULATIONS_MAX };
    let by_rule = search.score(rule);
    let relaxed = relax(search.problem, &task.allocation, budget_bytes, &Microlp);
    if relaxed.as_ref().is_some_and(|relaxed| by_rule <= relaxed.bound_seconds * NEAR_BOUND) {
        return None;
    }
    let (mut best, mut score) = (rule.to_owned(), by_rule);
    if let Some(relaxed) = relaxed {
        let rounded = search.rounded(&relaxed.slots);
        let by_program = search.score(&rounded);
        if by_program < score {
            (best, score) = (rounded, by_program);
        }
    }
    search.refine(&mut best, &mut score);
    (score < CLEARLY_BETTER * by_rule).then_some(best)
}

struct Search<'a> {
    task: &'a Task,
    problem: &'a mut Problem,
    budget_bytes: u64,
    simulations_left: usize,
}

impl Search<'_> {
    /// Seconds of a simulated pass, and the penalty for reads.
    fn score(&mut self, slots: &TiSlice<PoolId, usize>) -> f64 {
        self.simulations_left = self.simulations_left.saturating_sub(1);
        let residencies = allocate::residencies(self.problem, self.task, slots);
        let (seconds, drive_seconds) = simulated_pass(self.problem, &residencies);
        seconds + READ_PENALTY * drive_seconds
    }

    /// Whole slots for fractions of items, within the budget and not below any pool's least.
    fn rounded(&self, wished: &[f64]) -> TiVec<PoolId, usize> {
        let mut wishes: TiVec<PoolId, f64> = vec![0.0; self.task.classes.len()].into();
        for (allocation, wish) in self.task.allocation.iter().zip(wished) {
            match allocation {
                Allocation::Dense(pool) => wishes[*pool] += wish,
                Allocation::Experts(pools) => pools.iter().for_each(|&pool| wishes[pool] += wish),
                Allocation::Fixed | Allocation::Table => {}
            }
        }
        let floor =
            |(wish, class): (&f64, &SlotClass)| (*wish as usize).clamp(class.minimum_slots(), class.block_count);
        let mut slots: TiVec<PoolId, usize> = wishes.iter().zip(&self.task.classes).map(floor).collect();
        self.cut_to_budget(&mut slots);
        self.fill(&mut slots, &wishes);
        slots
    }

    /// Bytes that the slots leave of the budget; below 0 when they are too many.
    fn left(&self, slots: &TiSlice<PoolId, usize>) -> i64 {
        let bytes = slots.iter().zip(&self.task.classes).map(|(&count, class)| count as u64 * class.slot_bytes);
        self.budget_bytes as i64 - bytes.sum::<u64>() as i64
    }

    /// Takes from each pool what it has above its least, in proportion, until the budget is kept: slots are larger than what lies
    /// in them, and every pool has its least.
    fn cut_to_budget(&self, slots: &mut TiSlice<PoolId, usize>) {
        let excess = -self.left(slots);
        if excess <= 0 {
            return;
        }
        let spare = |slots: &TiSlice<PoolId, usize>, pool: PoolId| {
            (slots[pool] - self.task.classes[pool].minimum_slots()) as u64 * self.task.classes[pool].slot_bytes
        };
        let all: u64 = slots.keys().map(|pool| spare(slots, pool)).sum();
        for pool in slots.keys() {
            let bytes = excess as f64 * spare(slots, pool) as f64 / all.max(1) as f64;
            let count = (bytes / self.task.classes[pool].slot_bytes as f64).ceil() as usize;
            slots[pool] -= count.min(slots[pool] - self.task.classes[pool].minimum_slots());
        }
    }

    /// Gives what is left to the pools that are furthest from what they wish.
    fn fill(&self, slots: &mut TiSlice<PoolId, usize>, wishes: &TiSlice<PoolId, f64>) {
        let mut left = self.left(slots).max(0) as u64;
        let missing = |slots: &TiSlice<PoolId, usize>, pool: PoolId| {
            (wishes[pool] - slots[pool] as f64) / self.task.classes[pool].block_count as f64
        };
        loop {
            let has_use = |&pool: &PoolId| {
                slots[pool] < self.task.classes[pool].block_count && self.task.classes[pool].slot_bytes <= left
            };
            let furthest = slots
                .keys()
                .filter(has_use)
                .max_by(|&one, &other| missing(slots, one).total_cmp(&missing(slots, other)));
            let Some(pool) = furthest else { return };
            slots[pool] += 1;
            left -= self.task.classes[pool].slot_bytes;
        }
    }

    /// Moves ever smaller parts of one pool to another while that makes a pass shorter.
    fn refine(&mut self, best: &mut TiVec<PoolId, usize>, score: &mut f64) {
        const SMALLEST_PART: usize = 16;
        let pools = self.task.classes.keys();
        let pairs: Vec<(PoolId, PoolId)> =
            pools.clone().flat_map(|from| pools.clone().map(move |to| (from, to))).collect();
        let mut part = 2;
        while part <= SMALLEST_PART {
            let mut gained = false;
            for (from, to) in pairs.iter().copied() {
                if from == to || self.simulations_left == 0 {
                    continue;
                }
                let Some(moved) = self.moved(best, from, to, part) else { continue };
                let found = self.score(&moved);
                if found < BETTER * *score {
                    (*best, *score, gained) = (moved, found, true);
                }
            }
            part = if gained { part } else { 2 * part };
        }
    }

    /// A part of what one pool has above its least given to another; `None` when that changes nothing.
    fn moved(
        &self,
        slots: &TiSlice<PoolId, usize>,
        from: PoolId,
        to: PoolId,
        part: usize,
    ) -> Option<TiVec<PoolId, usize>> {
        let (giver, taker) = (self.task.classes[from], self.task.classes[to]);
        let given = (slots[from] - giver.minimum_slots()) / part;
        let bytes = given as u64 * giver.slot_bytes + self.left(slots).max(0) as u64;
        let taken = ((bytes / taker.slot_bytes) as usize).min(taker.block_count - slots[to]);
        if given == 0 || taken == 0 {
            return None;
        }
        let mut moved = slots.to_owned();
        // No more than the taker has use for.
        let used = taken as u64 * taker.slot_bytes;
        let given = given.min(used.div_ceil(giver.slot_bytes) as usize);
        (moved[from], moved[to]) = (moved[from] - given, moved[to] + taken);
        (self.left(&moved) >= 0).then_some(moved)
    }
}
