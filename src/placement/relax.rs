//! The relaxed problem: fractions of tensors and experts instead of whole ones, and no timeline. A linear program finds its
//! optimum, which no division of the memory can beat and from which [`super::solver`] starts.
//!
//! With C the seconds of computing, I those of reading, and O those in which a layer waits for its experts because they
//! became known too late, a token takes at least max(C + O, I). Epigraph variables make that linear: T ≥ C + O, T ≥ I, and
//! for each kind of layer o ≥ its reads less its computing, o ≥ 0. A little of I is added to the cost, so that RAM that
//! is free is used even where computing hides the reads.
//!
//! Equal items form a *group* and share their variables: which of them is where does not matter without a timeline.

use std::collections::HashMap;

use super::allocate::Allocation;
use super::linear::{LinearProgram, LinearSolver};
use crate::forecast::{Cost, Problem, Usage};

/// What a second of reading costs beyond the time that it delays the token.
pub(super) const READ_PENALTY: f64 = 1e-4;

/// Straight pieces of a miss curve at most.
const PIECES_MAX: usize = 16;

/// The relaxed optimum.
pub(super) struct Relaxed {
    /// No division of so many bytes takes less.
    pub(super) bound_seconds: f64,
    /// By item: its slots in RAM, in fractions.
    pub(super) slots: Vec<f64>,
}

/// Items in pools that are the same to the relaxed problem, in the order of use.
fn groups_of(problem: &Problem, allocation: &[Allocation]) -> Vec<Vec<usize>> {
    let mut numbers: HashMap<Vec<u64>, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let in_pools = |index: &usize| matches!(allocation[*index], Allocation::Dense(_) | Allocation::Experts(_));
    for index in (0..problem.items.len()).filter(in_pools) {
        let item = &problem.items[index];
        let mut key = vec![item.slot_bytes, item.reads_per_slot as u64];
        if let Usage::Routed(curve) = &item.usage {
            key.push(curve.used().to_bits());
            key.extend((0..=item.slot_count).map(|slots| curve.misses(slots).to_bits()));
        }
        let number = *numbers.entry(key).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[number].push(index);
    }
    groups
}

/// Divides so many bytes of pools among what lives in them. `None` when no optimum was found.
pub(super) fn relax(
    problem: &Problem,
    allocation: &[Allocation],
    budget_bytes: u64,
    solver: &impl LinearSolver,
) -> Option<Relaxed> {
    let costs = Cost::of(problem, &problem.machine);
    let groups = groups_of(problem, allocation);
    let compute_seconds = |index: usize| match problem.items[index].is_elsewhere {
        true => costs[index].gpu_seconds,
        false => costs[index].cpu_seconds,
    };
    let all_compute = problem.machine.fixed_seconds
        + problem.machine.network_seconds
        + (0..costs.len()).map(compute_seconds).sum::<f64>();
    let reads_of = |index: usize| match &problem.items[index].usage {
        Usage::Routed(curve) => curve.misses(0),
        _ => 1.0,
    };
    let all_reads: f64 = groups.iter().flatten().map(|&index| reads_of(index) * costs[index].read_seconds).sum();
    // Seconds and bytes are scaled to about 1, which keeps the simplex method's numbers in its comfortable range.
    let time_scale = 1.0 / (all_compute + all_reads).max(f64::MIN_POSITIVE.sqrt());
    let byte_scale = 1.0 / budget_bytes.max(1) as f64;

    let mut program = LinearProgram::default();
    let time = program.variable(1.0, f64::INFINITY);
    // Both begin with what no variable changes: T + constant is the time of a token.
    let mut compute = Sum { terms: vec![(time, -1.0)], constant: all_compute * time_scale };
    let mut read = Sum { terms: vec![(time, -1.0)], constant: 0.0 };
    let (mut ram, mut read_cost_constant) = (Vec::new(), 0.0);
    let mut variables: Vec<Vec<usize>> = Vec::with_capacity(groups.len());
    for group in &groups {
        let (first, count) = (group[0], group.len() as f64);
        let (item, cost) = (&problem.items[first], costs[first]);
        let pieces = match &item.usage {
            Usage::Routed(curve) => curve.pieces(PIECES_MAX),
            _ => vec![(1.0, 1.0)],
        };
        // Misses of the whole group: reads − Σ saved · slots.
        let mut misses = Sum { terms: Vec::new(), constant: reads_of(first) * count };
        for (width, saved) in pieces {
            let variable = program.variable(0.0, count * width);
            ram.push((variable, item.slot_bytes as f64 * byte_scale));
            misses.terms.push((variable, -saved));
        }
        let read_seconds = cost.read_seconds * time_scale;
        read.add(&misses, read_seconds);
        for &(variable, factor) in &misses.terms {
            program.cost[variable] += READ_PENALTY * read_seconds * factor;
        }
        read_cost_constant += READ_PENALTY * read_seconds * misses.constant;
        if item.is_routed() {
            // What arrives last is computed last: at least its share for each expert that is missing.
            let late_seconds = read_seconds + cost.tail_seconds * time_scale / reads_of(first).max(1.0);
            let wait = program.variable(0.0, f64::INFINITY);
            let mut late = Sum { terms: vec![(wait, -1.0)], constant: -count * cost.cpu_seconds * time_scale };
            late.add(&misses, late_seconds);
            program.at_most(late.terms, -late.constant);
            compute.terms.push((wait, 1.0));
        }
        variables.push(misses.terms.iter().map(|&(variable, _)| variable).collect());
    }
    program.at_most(compute.terms, -compute.constant);
    program.at_most(read.terms, -read.constant);
    program.at_most(ram, budget_bytes as f64 * byte_scale);

    let optimum = solver.minimise(&program)?;
    let mut slots = vec![0.0; problem.items.len()];
    for (group, variables) in groups.iter().zip(&variables) {
        let share = variables.iter().map(|&variable| optimum.values[variable]).sum::<f64>() / group.len() as f64;
        group.iter().for_each(|&index| slots[index] = share);
    }
    // The cost holds the penalty as well, which is at most READ_PENALTY of the time.
    let bound_seconds = (optimum.cost + read_cost_constant) / (1.0 + READ_PENALTY) / time_scale;
    Some(Relaxed { bound_seconds, slots })
}

/// A linear expression; each variable once.
struct Sum {
    terms: Vec<(usize, f64)>,
    constant: f64,
}

impl Sum {
    fn add(&mut self, other: &Self, factor: f64) {
        self.terms.extend(other.terms.iter().map(|&(variable, value)| (variable, factor * value)));
        self.constant += factor * other.constant;
    }
}
