//! What the pools of a session amount to, as a placement: how many slots each layer will have in them.
//!
//! A pool of experts is shared by all layers, and its policy keeps the experts that will be used soonest, whatever their
//! layer. Slots of one size that go where they save most are what the best division among the layers is, too, so that nobody
//! has to impose one. Dense tensors stay or flow through the ring by [`pinned`].

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use typed_index_collections::{TiSlice, TiVec};

use super::Task;
use crate::forecast::{Cost, Problem, Residency, Usage};
use crate::index::PoolId;
use crate::plan::{FIRST_RING, Pass, SlotClass, Step, pinned};

/// How a session holds an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// On a GPU, or in the host's own memory.
    Fixed,
    /// In a slot of a pool, or flowing through some of that pool's.
    Dense(PoolId),
    /// In slots of these pools: one for each matrix of an expert.
    Experts(Vec<PoolId>),
    /// On the drive, but for rows.
    Table,
}

/// The residencies that pools with these slots amount to, by item; and sets the ring of the problem to what the pools have for it.
pub(super) fn residencies(problem: &mut Problem, task: &Task, slots: &TiSlice<PoolId, usize>) -> Vec<Residency> {
    let allocation = &task.allocation;
    let dense: Vec<usize> =
        (0..allocation.len()).filter(|&item| matches!(allocation[item], Allocation::Dense(_))).collect();
    let pool_of = |&item: &usize| match allocation[item] {
        Allocation::Dense(pool) => pool,
        _ => unreachable!("only dense items were collected"),
    };
    let ring = likely_ring(problem, &dense, &pool_of, slots);
    let stays = pinned(dense.iter().map(pool_of), slots, ring);
    let mut is_short: TiVec<PoolId, bool> = vec![false; slots.len()].into();
    dense.iter().zip(&stays).filter(|(_, stays)| !**stays).for_each(|(item, _)| is_short[pool_of(item)] = true);
    problem.dense_ring_bytes = slots
        .keys()
        .filter(|&pool| is_short[pool])
        .map(|pool| task.classes[pool].slot_bytes * ring.min(slots[pool]) as u64)
        .sum();

    let whole = |item: &crate::forecast::Item| match (item.is_elsewhere, item.is_remote) {
        (_, true) => Residency::Remote,
        (true, false) => Residency::Gpu,
        (false, false) => Residency::Host { slots: item.slot_count },
    };
    let mut residencies: Vec<Residency> = problem.items.iter().map(whole).collect();
    for (residency, _) in residencies.iter_mut().zip(allocation).filter(|(_, held)| **held == Allocation::Table) {
        *residency = Residency::Host { slots: 0 };
    }
    for (&item, stays) in dense.iter().zip(stays) {
        residencies[item] = Residency::Host { slots: usize::from(stays) };
    }
    for (item, count) in share_experts(problem, allocation, &with_vram(task, slots)) {
        residencies[item] = Residency::Host { slots: count };
    }
    residencies
}

/// Slots, and what a GPU's memory holds beside them: no expert is in both, so that they add up. It is shared among the pools of
/// experts by their bytes.
fn with_vram(task: &Task, slots: &TiSlice<PoolId, usize>) -> TiVec<PoolId, usize> {
    let bytes = |class: &SlotClass| if class.every_pass { 0 } else { class.slot_bytes * class.block_count as u64 };
    let all: u64 = task.classes.iter().map(bytes).sum();
    let share = |class: &SlotClass| bytes(class) as f64 / all.max(1) as f64 * task.problem.vram_bytes as f64;
    let held = |(&slots, class): (&usize, &SlotClass)| slots + (share(class) / class.slot_bytes as f64) as usize;
    slots.iter().zip(&task.classes).map(held).collect()
}

/// The ring that a session is likely to end up with, since it, too, plays through passes.
fn likely_ring(
    problem: &Problem,
    dense: &[usize],
    pool_of: &dyn Fn(&usize) -> PoolId,
    slots: &TiSlice<PoolId, usize>,
) -> usize {
    /// By how much a pass must be shorter for the session to change its ring.
    const WORTH_A_CHANGE: f64 = 0.98;
    let costs = Cost::of(problem, &problem.machine);
    // From one dense tensor to the next, whatever is computed in between.
    let compute_seconds = |from: usize, to: usize| costs[from..to].iter().map(|cost| cost.cpu_seconds).sum::<f64>();
    let ends = dense.iter().skip(1).copied().chain([problem.items.len()]);
    let steps: Vec<Step> = dense
        .iter()
        .zip(ends)
        .map(|(&item, end)| Step {
            pool: pool_of(&item),
            read_seconds: costs[item].read_seconds,
            compute_seconds: compute_seconds(item, end),
        })
        .collect();
    if steps.is_empty() {
        return FIRST_RING;
    }
    let pass = Pass { steps: &steps, slots };
    let best = pass.best_ring();
    if pass.seconds(best) > WORTH_A_CHANGE * pass.seconds(FIRST_RING) { FIRST_RING } else { best }
}

/// What one more slot is worth to an item.
struct Bid {
    saved_misses: f64,
    /// Slots that it has.
    count: usize,
    item: usize,
}

impl Ord for Bid {
    fn cmp(&self, other: &Self) -> Ordering {
        // Of equal ones who has least, so that layers take turns.
        let order = self.saved_misses.total_cmp(&other.saved_misses);
        order.then(other.count.cmp(&self.count)).then(other.item.cmp(&self.item))
    }
}
impl PartialOrd for Bid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Bid {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Bid {}

/// Gives the slots of experts to the layers, each where it saves most: by item, how many experts have one.
fn share_experts(problem: &Problem, allocation: &[Allocation], slots: &TiSlice<PoolId, usize>) -> Vec<(usize, usize)> {
    let mut left = slots.to_owned();
    let mut counts: Vec<(usize, usize)> = Vec::new();
    let mut bids = BinaryHeap::new();
    let bid = |item: usize, count: usize| match &problem.items[item].usage {
        Usage::Routed(curve) if count < curve.slot_count() => {
            Some(Bid { saved_misses: curve.misses(count) - curve.misses(count + 1), count, item })
        }
        _ => None,
    };
    let mut place = vec![0; allocation.len()];
    for item in (0..allocation.len()).filter(|&item| matches!(allocation[item], Allocation::Experts(_))) {
        place[item] = counts.len();
        counts.push((item, 0));
        bids.extend(bid(item, 0));
    }
    while let Some(Bid { item, .. }) = bids.pop() {
        let Allocation::Experts(pools) = &allocation[item] else { continue };
        // An expert of which a matrix is missing has to be read; such an item gets no more.
        let wanted = |pool: PoolId| pools.iter().filter(|&&other| other == pool).count();
        if pools.iter().all(|&pool| left[pool] >= wanted(pool)) {
            pools.iter().for_each(|&pool| left[pool] -= 1);
            let count = &mut counts[place[item]].1;
            *count += 1;
            bids.extend(bid(item, *count));
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::solver_tests::{dense, experts, task};

    fn slots(residencies: &[Residency]) -> Vec<usize> {
        residencies
            .iter()
            .map(|residency| if let Residency::Host { slots } = residency { *slots } else { 99 })
            .collect()
    }

    #[test]
    fn slots_of_experts_go_where_they_save_most() {
        let items =
            [experts(1000, &[1.0; 8], &[0, 0]), experts(1000, &[50.0, 50.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], &[0, 0])];
        let task = task(items.into(), &[(500, false)]);
        let residencies = residencies(&mut task.problem.clone(), &task, TiSlice::from_ref(&[12]));
        assert_eq!(slots(&residencies), [4, 2]);
    }

    #[test]
    fn an_expert_needs_a_slot_for_each_of_its_matrices() {
        let pools = [vec![0, 1], vec![0, 0], vec![1, 1]];
        let items = pools.iter().map(|pools| experts(1000, &[1.0; 8], pools)).collect();
        let task = task(items, &[(500, false), (500, false)]);
        let residencies = slots(&residencies(&mut task.problem.clone(), &task, TiSlice::from_ref(&[9, 7])));
        let used = |pool: usize| -> usize {
            let of = |index: usize| pools[index].iter().filter(|&&other| other == pool).count();
            (0..3).map(|index| residencies[index] * of(index)).sum()
        };
        assert!(used(0) <= 9 && used(1) <= 7, "{residencies:?}");
        assert!(residencies.iter().all(|&count| count >= 2), "{residencies:?}");
    }

    #[test]
    fn what_a_gpu_holds_counts_beside_the_slots() {
        let mut task = task(vec![experts(1000, &[1.0; 8], &[0, 0])], &[(500, false)]);
        assert_eq!(slots(&residencies(&mut task.problem.clone(), &task, TiSlice::from_ref(&[6]))), [3]);
        task.problem.vram_bytes = 2000;
        let residencies = residencies(&mut task.problem.clone(), &task, TiSlice::from_ref(&[6]));
        assert_eq!(slots(&residencies), [5]);
        let tiers = task.problem.tiers(&residencies);
        assert_eq!((tiers.gpu, tiers.ram, tiers.drive), (2000, 3000, 3000));
    }

    #[test]
    fn dense_items_stay_but_for_a_ring() {
        let mut items: Vec<_> = (0..20).map(|_| dense(1 << 20, 0)).collect();
        items[3].0.is_elsewhere = true;
        items[3].1 = Allocation::Fixed;
        items.push(dense(1 << 10, 0));
        items[20].1 = Allocation::Fixed;
        let task = task(items, &[(1 << 20, true)]);
        let mut problem = task.problem.clone();
        let found = residencies(&mut problem, &task, TiSlice::from_ref(&[10]));
        let staying = slots(&found)[..20].iter().filter(|&&slots| slots == 1).count() as u64;
        assert!((6..=8).contains(&staying), "{found:?}");
        assert_eq!(problem.dense_ring_bytes, (10 - staying) << 20);
        assert_eq!((found[3], found[20]), (Residency::Gpu, Residency::Host { slots: 1 }));
        // With room for all there is no ring.
        let found = residencies(&mut problem, &task, TiSlice::from_ref(&[19]));
        assert_eq!(problem.dense_ring_bytes, 0);
        assert!(found.iter().all(|residency| *residency != Residency::Host { slots: 0 }));
    }
}
