//! The relaxed problem: fractions instead of whole tensors, and no timeline. A linear program finds its optimum, which no
//! placement can beat and from which [`super::refine`] starts.
//!
//! With C the seconds of computing, I those of reading, and O those in which a layer waits for its experts because they
//! became known too late, a token takes at least max(C + O, I). Epigraph variables make that linear: T ≥ C + O, T ≥ I, and
//! for each kind of layer o ≥ its reads less its computing, o ≥ 0. A little of I is added to the cost, so that RAM that
//! is free is used even where computing hides the reads.
//!
//! Equal items form a *class* and share their variables: which of them is where does not matter without a timeline.

use std::collections::HashMap;

use super::linear::{LinearProgram, LinearSolver};
use super::problem::{Item, Problem, Usage};
use super::simulate::Cost;

/// What a second of reading costs beyond the time that it delays the token.
pub(super) const READ_PENALTY: f64 = 1e-4;

/// Straight pieces of a miss curve at most.
const PIECES_MAX: usize = 16;

/// What may be on the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Streams {
    pub(super) dense: bool,
    pub(super) experts: bool,
}

impl Streams {
    pub(super) const ALL: [Self; 4] = [
        Self { dense: false, experts: false },
        Self { dense: false, experts: true },
        Self { dense: true, experts: false },
        Self { dense: true, experts: true },
    ];

    pub(super) fn allow(self, item: &Item) -> bool {
        item.streamable && if item.is_routed() { self.experts } else { self.dense }
    }
}

/// Items that are the same to the relaxed problem.
pub(super) struct Class {
    /// Their numbers, in order of use.
    pub(super) items: Vec<usize>,
}

/// Sorts what may be moved into classes.
pub(super) fn classes_of(problem: &Problem) -> Vec<Class> {
    let mut numbers: HashMap<Vec<u64>, usize> = HashMap::new();
    let mut classes: Vec<Class> = Vec::new();
    for (index, item) in problem.items.iter().enumerate().filter(|(_, item)| !item.on_gpu) {
        let mut key = vec![item.slot_bytes, item.reads_per_slot as u64, u64::from(item.streamable)];
        match &item.usage {
            Usage::Dense => key.push(0),
            Usage::Lookup => key.push(1),
            Usage::Row(bytes) => key.extend([3, *bytes]),
            Usage::Routed(curve) => {
                key.push(curve.used().to_bits());
                key.extend((0..=item.slot_count).map(|slots| curve.misses(slots).to_bits()));
            }
        }
        let number = *numbers.entry(key).or_insert_with(|| {
            classes.push(Class { items: Vec::new() });
            classes.len() - 1
        });
        classes[number].items.push(index);
    }
    classes
}

/// What the relaxed optimum gives a class, all its items together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share {
    /// Items on the GPU.
    pub(super) gpu_items: f64,
    /// Slots in RAM.
    pub(super) slots: f64,
}

/// The relaxed optimum.
pub(super) struct Relaxed {
    /// No placement of the problem takes less, as far as only what [`Streams`] allows is on the drive.
    pub(super) bound_seconds: f64,
    /// By class.
    pub(super) shares: Vec<Share>,
}

/// Where a class's variables are.
struct Variables {
    gpu: Option<usize>,
    /// Slots in RAM: each variable, and the misses that a slot of it saves.
    slots: Vec<(usize, f64)>,
}

/// Solves the relaxed problem. `None` when it has no solution, or none was found.
pub(super) fn relax(
    problem: &Problem,
    classes: &[Class],
    streams: Streams,
    solver: &impl LinearSolver,
) -> Option<Relaxed> {
    let machine = &problem.machine;
    let costs = Cost::of(problem, machine);
    let ring_bytes = problem.ring_bytes(streams.dense, streams.experts);
    let ram_bytes = machine.ram_bytes.checked_sub(ring_bytes)? as f64;

    // Seconds and bytes are scaled to about 1, which keeps the simplex method's numbers in its comfortable range.
    let host_seconds = |item: usize| {
        let reads = match &problem.items[item].usage {
            Usage::Routed(curve) => curve.misses(0),
            _ => 1.0,
        };
        costs[item].cpu_seconds + reads * costs[item].read_seconds
    };
    let everything: f64 = classes.iter().flat_map(|class| &class.items).map(|&item| host_seconds(item)).sum();
    let time_scale = 1.0 / everything.max(f64::MIN_POSITIVE.sqrt());
    let byte_scale = 1.0 / ram_bytes.max(1.0);

    let mut program = LinearProgram::default();
    let time = program.variable(1.0, f64::INFINITY);
    // Both begin with what no variable changes: T + constant is the time of a token.
    let fixed_seconds = machine.fixed_seconds
        + (problem.items.iter().zip(&costs).filter(|(item, _)| item.on_gpu).map(|(_, cost)| cost.gpu_seconds))
            .sum::<f64>();
    let mut compute = Sum { terms: vec![(time, -1.0)], constant: fixed_seconds * time_scale };
    let mut read = Sum { terms: vec![(time, -1.0)], constant: 0.0 };
    let (mut ram, mut gpu) = (Vec::new(), Vec::new());
    let mut read_cost_constant = 0.0;
    let mut variables = Vec::with_capacity(classes.len());
    for class in classes {
        let (first, count) = (class.items[0], class.items.len() as f64);
        let (item, cost) = (&problem.items[first], costs[first]);
        let gpu_variable = (machine.gpu_bytes > 0).then(|| program.variable(0.0, count));
        if let Some(on_gpu) = gpu_variable {
            gpu.push((on_gpu, item.bytes() as f64 / machine.gpu_bytes as f64));
        }
        let cpu = cost.cpu_seconds * time_scale;
        compute.constant += count * cpu;
        compute.terms.extend(gpu_variable.map(|on_gpu| (on_gpu, cost.gpu_seconds * time_scale - cpu)));

        // Misses of the whole class: reads · (count − gpu) − Σ saved · slots.
        let (reads, pieces) = match &item.usage {
            Usage::Routed(curve) => (curve.misses(0), curve.pieces(PIECES_MAX)),
            _ => (1.0, vec![(1.0, 1.0)]),
        };
        let may_stream = streams.allow(item);
        let mut slots = Vec::with_capacity(pieces.len());
        for (width, saved) in pieces {
            let variable = program.variable(0.0, count * width);
            ram.push((variable, item.slot_bytes as f64 * byte_scale));
            slots.push((variable, saved));
            // What is on the GPU has no slots in RAM.
            if let Some(on_gpu) = gpu_variable {
                program.at_most(vec![(variable, 1.0 / width), (on_gpu, 1.0)], count);
            }
        }
        if may_stream {
            let mut misses = Sum { terms: Vec::new(), constant: reads * count };
            misses.terms.extend(gpu_variable.map(|on_gpu| (on_gpu, -reads)));
            misses.terms.extend(slots.iter().map(|&(variable, saved)| (variable, -saved)));
            let read_seconds = cost.read_seconds * time_scale;
            read.add(&misses, read_seconds);
            for &(variable, factor) in &misses.terms {
                program.cost[variable] += READ_PENALTY * read_seconds * factor;
            }
            read_cost_constant += READ_PENALTY * read_seconds * misses.constant;
            if item.is_routed() {
                // What arrives last is computed last: at least its share for each expert that is missing.
                let late_seconds = read_seconds + cost.tail_seconds * time_scale / reads.max(1.0);
                let wait = program.variable(0.0, f64::INFINITY);
                let mut late = Sum { terms: vec![(wait, -1.0)], constant: -count * cpu };
                late.terms.extend(gpu_variable.map(|on_gpu| (on_gpu, cpu)));
                late.add(&misses, late_seconds);
                program.at_most(late.merged(), -late.constant);
                compute.terms.push((wait, 1.0));
            }
        } else {
            let mut whole: Vec<_> = slots.iter().map(|&(variable, _)| (variable, -1.0)).collect();
            whole.extend(gpu_variable.map(|on_gpu| (on_gpu, -(item.slot_count as f64))));
            program.at_most(whole, -(item.slot_count as f64) * count);
        }
        variables.push(Variables { gpu: gpu_variable, slots });
    }
    program.at_most(compute.merged(), -compute.constant);
    program.at_most(read.merged(), -read.constant);
    program.at_most(ram, ram_bytes * byte_scale);
    if machine.gpu_bytes > 0 {
        program.at_most(gpu, 1.0);
    }

    let optimum = solver.minimise(&program)?;
    let shares = variables.iter().map(|variables| Share {
        gpu_items: variables.gpu.map_or(0.0, |variable| optimum.values[variable]),
        slots: variables.slots.iter().map(|&(variable, _)| optimum.values[variable]).sum(),
    });
    // The cost holds the penalty as well, which is at most READ_PENALTY of the time.
    let bound_seconds = (optimum.cost + read_cost_constant) / (1.0 + READ_PENALTY) / time_scale;
    Some(Relaxed { bound_seconds, shares: shares.collect() })
}

/// A linear expression.
struct Sum {
    terms: Vec<(usize, f64)>,
    constant: f64,
}

impl Sum {
    fn add(&mut self, other: &Self, factor: f64) {
        self.terms.extend(other.terms.iter().map(|&(variable, value)| (variable, factor * value)));
        self.constant += factor * other.constant;
    }

    /// The terms, each variable once.
    fn merged(&self) -> Vec<(usize, f64)> {
        let mut terms = self.terms.clone();
        terms.sort_by_key(|&(variable, _)| variable);
        terms.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        terms
    }
}
