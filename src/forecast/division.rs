//! What the pools of a session amount to, as a placement: how many slots each layer will have in them.
//!
//! A pool of experts is shared by all layers, and its policy keeps the experts that will be used soonest, whatever their
//! layer. Slots of one size that go where they save most are what the best division among the layers is, too, so that nobody
//! has to impose one. Dense tensors stay or flow through the ring by [`pinned`].

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::problem::{Problem, Seat, Usage};
use super::simulate::Cost;
use crate::plan::{Pass, Step, pinned};

/// How a session keeps an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// On a GPU, or in the host's own memory.
    Fixed,
    /// In a slot of a class, or flowing through some of that class's.
    Dense(usize),
    /// In slots of these classes: one for each matrix of an expert.
    Experts(Vec<usize>),
    /// On the drive, but for rows.
    Table,
}

/// The seats that pools with these slots amount to, by item; and sets the rings of the problem to what the pools have for them.
/// `slot_bytes` and `slots` are by class, `first_ring` is the ring with which a session begins.
pub fn divide(
    problem: &mut Problem,
    keeping: &[Keeping],
    slot_bytes: &[u64],
    slots: &[usize],
    first_ring: usize,
) -> Vec<Seat> {
    let dense: Vec<usize> = (0..keeping.len()).filter(|&item| matches!(keeping[item], Keeping::Dense(_))).collect();
    let class_of = |&item: &usize| match keeping[item] {
        Keeping::Dense(class) => class,
        _ => unreachable!("only dense items were collected"),
    };
    let ring = likely_ring(problem, &dense, &class_of, slots, first_ring);
    let stays = pinned(dense.iter().map(class_of), slots, ring);
    let mut is_short = vec![false; slots.len()];
    dense.iter().zip(&stays).filter(|(_, stays)| !**stays).for_each(|(item, _)| is_short[class_of(item)] = true);
    problem.dense_ring_bytes = (0..slots.len())
        .filter(|&class| is_short[class])
        .map(|class| slot_bytes[class] * ring.min(slots[class]) as u64)
        .sum();
    // The slots of experts are counted by the layer that they serve on average, those that pass through included.
    problem.expert_ring_bytes = 0;

    let mut seats: Vec<Seat> = problem
        .items
        .iter()
        .map(|item| if item.on_gpu { Seat::Gpu } else { Seat::Host { slots: item.slot_count } })
        .collect();
    for (seat, _) in seats.iter_mut().zip(keeping).filter(|(_, keeping)| **keeping == Keeping::Table) {
        *seat = Seat::Host { slots: 0 };
    }
    for (&item, stays) in dense.iter().zip(stays) {
        seats[item] = Seat::Host { slots: usize::from(stays) };
    }
    for (item, count) in share_experts(problem, keeping, slots) {
        seats[item] = Seat::Host { slots: count };
    }
    seats
}

/// The ring that a session is likely to end up with, since it, too, plays through passes.
fn likely_ring(
    problem: &Problem,
    dense: &[usize],
    class_of: &dyn Fn(&usize) -> usize,
    slots: &[usize],
    first_ring: usize,
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
            class: class_of(&item),
            read_seconds: costs[item].read_seconds,
            compute_seconds: compute_seconds(item, end),
        })
        .collect();
    if steps.is_empty() {
        return first_ring;
    }
    let pass = Pass { steps: &steps, slots };
    let best = pass.best_ring();
    if pass.seconds(best) > WORTH_A_CHANGE * pass.seconds(first_ring) { first_ring } else { best }
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
fn share_experts(problem: &Problem, keeping: &[Keeping], slots: &[usize]) -> Vec<(usize, usize)> {
    let mut left = slots.to_vec();
    let mut counts: Vec<(usize, usize)> = Vec::new();
    let mut bids = BinaryHeap::new();
    let bid = |item: usize, count: usize| match &problem.items[item].usage {
        Usage::Routed(curve) if count < curve.slot_count() => {
            Some(Bid { saved_misses: curve.misses(count) - curve.misses(count + 1), count, item })
        }
        _ => None,
    };
    let mut place = vec![0; keeping.len()];
    for item in (0..keeping.len()).filter(|&item| matches!(keeping[item], Keeping::Experts(_))) {
        place[item] = counts.len();
        counts.push((item, 0));
        bids.extend(bid(item, 0));
    }
    while let Some(Bid { item, .. }) = bids.pop() {
        let Keeping::Experts(classes) = &keeping[item] else { continue };
        // An expert of which a matrix is missing has to be read; such an item gets no more.
        let wanted = |class: usize| classes.iter().filter(|&&other| other == class).count();
        if classes.iter().all(|&class| left[class] >= wanted(class)) {
            classes.iter().for_each(|&class| left[class] -= 1);
            let count = &mut counts[place[item]].1;
            *count += 1;
            bids.extend(bid(item, *count));
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::forecast::{Item, Machine, MissCurve, solve};

    fn machine(ram_bytes: u64) -> Machine {
        Machine {
            gpu_bytes: 0,
            ram_bytes,
            cpu_seconds_per_byte: 1e-10,
            gpu_seconds_per_byte: 1e-12,
            fixed_seconds: 0.0,
            drive_seconds_per_byte: 1e-9,
            read_overhead_seconds: 0.0,
        }
    }

    fn item(slot_bytes: u64, usage: Usage, streamable: bool) -> Item {
        let slot_count = match &usage {
            Usage::Routed(curve) => curve.slot_count(),
            _ => 1,
        };
        Item {
            layer: None,
            role: String::new(),
            tensors: Vec::new(),
            slot_bytes,
            slot_count,
            reads_per_slot: 1,
            usage,
            on_gpu: false,
            streamable,
        }
    }

    fn experts(frequencies: &[f64]) -> Usage {
        Usage::Routed(Arc::new(MissCurve::from_frequencies(frequencies, 2).unwrap()))
    }

    fn problem(items: Vec<Item>, ram_bytes: u64) -> Problem {
        Problem { items, machine: machine(ram_bytes), dense_ring_bytes: 0, expert_ring_bytes: 0 }
    }

    fn slots(seats: &[Seat]) -> Vec<usize> {
        seats.iter().map(|seat| if let Seat::Host { slots } = seat { *slots } else { 99 }).collect()
    }

    #[test]
    fn slots_of_experts_go_where_they_save_most() {
        let even = experts(&[1.0; 8]);
        let skewed = experts(&[50.0, 50.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let mut problem = problem(vec![item(1000, even, true), item(1000, skewed, true)], 6000);
        let keeping = [Keeping::Experts(vec![0, 0]), Keeping::Experts(vec![0, 0])];
        let seats = divide(&mut problem, &keeping, &[500], &[12], 4);
        assert_eq!(slots(&seats), [4, 2]);
        // The solver, which divides among the layers, finds nothing better.
        let best = solve(&problem).unwrap();
        assert!(
            crate::forecast::simulate(&problem, &seats).seconds_per_token <= best.prediction.seconds_per_token * 1.0001
        );
    }

    #[test]
    fn an_expert_needs_a_slot_for_each_of_its_matrices() {
        let mut problem = problem(vec![item(1000, experts(&[1.0; 8]), true); 3], 0);
        let keeping = [Keeping::Experts(vec![0, 1]), Keeping::Experts(vec![0, 0]), Keeping::Experts(vec![1, 1])];
        let seats = slots(&divide(&mut problem, &keeping, &[500, 500], &[9, 7], 4));
        let used = |class: usize| -> usize {
            let Keeping::Experts(first) = &keeping[0] else { unreachable!() };
            let mut used = seats[0] * first.iter().filter(|&&other| other == class).count();
            used += 2 * seats[1 + class];
            used
        };
        assert!(used(0) <= 9 && used(1) <= 7, "{seats:?}");
        assert!(seats.iter().all(|&count| count >= 2), "{seats:?}");
    }

    #[test]
    fn dense_items_stay_but_for_a_ring() {
        let mut items = vec![item(1 << 20, Usage::Dense, true); 20];
        items.push(item(1 << 10, Usage::Dense, false));
        items[3].on_gpu = true;
        let mut keeping = vec![Keeping::Dense(0); 20];
        keeping.push(Keeping::Fixed);
        keeping[3] = Keeping::Fixed;
        let mut problem = problem(items, 0);
        let seats = divide(&mut problem, &keeping, &[1 << 20], &[10], 4);
        let staying = slots(&seats)[..20].iter().filter(|&&slots| slots == 1).count() as u64;
        assert!((6..=8).contains(&staying), "{seats:?}");
        assert_eq!(problem.dense_ring_bytes, (10 - staying) << 20);
        assert_eq!((seats[3], seats[20]), (Seat::Gpu, Seat::Host { slots: 1 }));
        // With room for all there is no ring.
        let seats = divide(&mut problem, &keeping, &[1 << 20], &[19], 4);
        assert_eq!(problem.dense_ring_bytes, 0);
        assert!(seats.iter().all(|seat| *seat != Seat::Host { slots: 0 }));
    }
}
