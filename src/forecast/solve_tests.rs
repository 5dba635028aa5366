//! Placements beside the best that there is, found by trying all of them.

use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;

use serde_json::json;

use super::linear::{LinearProgram, LinearSolver, Microlp, Optimum};
use super::solve::{Effort, solve_with};
use super::*;
use crate::common::Random;

/// Whether a placement is allowed, from the definition and without the solver's help.
fn check(problem: &Problem, seats: &[Seat]) -> Result<(), String> {
    if seats.len() != problem.items.len() {
        return Err(format!("{} seats for {} items", seats.len(), problem.items.len()));
    }
    let (mut gpu_bytes, mut ram_bytes) = (0, 0);
    let (mut dense_ring, mut expert_ring) = (0, 0);
    for (item, seat) in problem.items.iter().zip(seats) {
        let all = item.slot_bytes * item.slot_count as u64;
        match *seat {
            Seat::Gpu if item.on_gpu => {}
            Seat::Gpu => gpu_bytes += all,
            Seat::Host { .. } if item.on_gpu => return Err(format!("{} was taken off its GPU", item.role)),
            Seat::Host { slots } if slots > item.slot_count => return Err(format!("{slots} slots in {}", item.role)),
            Seat::Host { slots } => {
                ram_bytes += item.slot_bytes * slots as u64;
                if slots < item.slot_count {
                    if !item.streamable {
                        return Err(format!("{} is on the drive", item.role));
                    }
                    match item.usage {
                        Usage::Routed(_) => expert_ring = problem.expert_ring_bytes,
                        _ => dense_ring = problem.dense_ring_bytes,
                    }
                }
            }
        }
    }
    let ram_bytes = ram_bytes + dense_ring + expert_ring;
    if gpu_bytes > problem.machine.gpu_bytes {
        return Err(format!("{gpu_bytes} on a GPU with room for {}", problem.machine.gpu_bytes));
    }
    if ram_bytes > problem.machine.ram_bytes {
        return Err(format!("{ram_bytes} in RAM for {}", problem.machine.ram_bytes));
    }
    Ok(())
}

/// Where an item could be, allowed or not.
fn options(problem: &Problem, item: &Item) -> Vec<Seat> {
    let gpu = (item.on_gpu || item.bytes() <= problem.machine.gpu_bytes).then_some(Seat::Gpu);
    (0..=item.slot_count).map(|slots| Seat::Host { slots }).chain(gpu).collect()
}

/// No pass takes less than its drive is busy, or its processors are.
fn busy_seconds(problem: &Problem, seats: &[Seat]) -> f64 {
    let machine = &problem.machine;
    let (mut drive, mut compute) = (0.0, machine.fixed_seconds);
    for (item, seat) in problem.items.iter().zip(seats) {
        let (used, missing) = match (&item.usage, *seat) {
            (Usage::Lookup | Usage::Row(_), _) => (0.0, 0.0),
            (Usage::Dense, Seat::Host { slots: 0 }) => (1.0, 1.0),
            (Usage::Routed(curve), Seat::Host { slots }) => (curve.misses(0), curve.misses(slots)),
            (Usage::Routed(curve), Seat::Gpu) => (curve.misses(0), 0.0),
            (Usage::Dense, _) => (1.0, 0.0),
        };
        let on_gpu = *seat == Seat::Gpu;
        let seconds_per_byte = if on_gpu { machine.gpu_seconds_per_byte } else { machine.cpu_seconds_per_byte };
        compute += used * item.slot_bytes as f64 * seconds_per_byte;
        drive += missing * item.slot_bytes as f64 * machine.drive_seconds_per_byte;
    }
    f64::max(drive, compute)
}

/// What placements are compared by: with as many misses as are expected of each layer.
fn judged_seconds(problem: &Problem, seats: &[Seat]) -> f64 {
    simulate::Simulator::new(problem).pass(seats).seconds
}

/// The least time of all placements that are allowed; `None` when none is.
fn exhaustive(problem: &Problem) -> Option<(f64, Vec<Seat>)> {
    let options: Vec<Vec<Seat>> = problem.items.iter().map(|item| options(problem, item)).collect();
    let mut best: Option<(f64, Vec<Seat>)> = None;
    let mut choice = vec![0; options.len()];
    loop {
        let seats: Vec<Seat> = choice.iter().zip(&options).map(|(&chosen, options)| options[chosen]).collect();
        let hopeless = best.as_ref().is_some_and(|(least, _)| busy_seconds(problem, &seats) >= *least);
        if !hopeless && check(problem, &seats).is_ok() {
            let seconds = judged_seconds(problem, &seats);
            if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                best = Some((seconds, seats));
            }
        }
        let Some(position) = (0..choice.len()).find(|&position| choice[position] + 1 < options[position].len()) else {
            return best;
        };
        choice[..position].fill(0);
        choice[position] += 1;
    }
}

fn machine(gpu_bytes: u64, ram_bytes: u64) -> Machine {
    Machine {
        gpu_bytes,
        ram_bytes,
        cpu_seconds_per_byte: 0.1,
        gpu_seconds_per_byte: 0.01,
        fixed_seconds: 1.0,
        drive_seconds_per_byte: 1.0,
        read_overhead_seconds: 0.0,
    }
}

fn dense(slot_bytes: u64) -> Item {
    Item {
        layer: None,
        role: "dense".to_owned(),
        tensors: Vec::new(),
        slot_bytes,
        slot_count: 1,
        reads_per_slot: 1,
        usage: Usage::Dense,
        on_gpu: false,
        streamable: true,
    }
}

fn experts(slot_bytes: u64, curve: MissCurve) -> Item {
    Item {
        role: "experts".to_owned(),
        slot_count: curve.slot_count(),
        reads_per_slot: 3,
        usage: Usage::Routed(Arc::new(curve)),
        ..dense(slot_bytes)
    }
}

fn random_curve(random: &mut Random, count: usize) -> MissCurve {
    let frequencies: Vec<f64> = (0..count).map(|_| 1.0 + random.below(20) as f64).collect();
    MissCurve::from_frequencies(&frequencies, 1 + random.below(count)).unwrap()
}

/// A small problem of any kind: sizes alike or not, drives fast or slow, rooms wide or narrow.
fn random_problem(random: &mut Random, arrangements_max: usize) -> Problem {
    let mut items: Vec<Item> = Vec::new();
    let mut arrangements = 1;
    let sizes = [5 + random.below(60) as u64, 5 + random.below(60) as u64, 5 + random.below(60) as u64];
    let (of_few_sizes, with_gpu) = (random.below(2) == 0, random.below(3) == 0);
    let item_count = 2 + random.below(16);
    for _ in 0..item_count {
        let size = if of_few_sizes { sizes[random.below(3)] } else { 1 + random.below(80) as u64 };
        let mut item = match random.below(3) {
            0 => {
                let count = 2 + random.below(3);
                experts(size.div_ceil(2), random_curve(random, count))
            }
            _ => dense(size),
        };
        item.on_gpu = random.below(12) == 0;
        item.streamable = random.below(6) > 0;
        if !item.is_routed() && !item.streamable && random.below(3) == 0 {
            item.usage = Usage::Lookup;
        }
        arrangements *= item.slot_count + 1 + usize::from(with_gpu);
        if arrangements > arrangements_max {
            break;
        }
        items.push(item);
    }
    let total: u64 = items.iter().map(Item::bytes).sum();
    let largest = items.iter().map(|item| item.slot_bytes).max().unwrap_or(0);
    let gpu_bytes = if with_gpu { random.below(total as usize / 2 + 1) as u64 } else { 0 };
    let share = |random: &mut Random| (1 + random.below(40)) as f64 / 100.0;
    Problem {
        machine: Machine {
            cpu_seconds_per_byte: share(random),
            gpu_seconds_per_byte: share(random) / 10.0,
            fixed_seconds: share(random) * total as f64 / 4.0,
            drive_seconds_per_byte: share(random),
            read_overhead_seconds: if random.below(2) == 0 { 0.0 } else { share(random) },
            ..machine(gpu_bytes, random.below(total as usize + 20) as u64 + largest)
        },
        dense_ring_bytes: largest + random.below(2 * largest as usize + 1) as u64,
        expert_ring_bytes: largest,
        items,
    }
}

/// Compares many random problems with exhaustive search.
#[track_caller]
fn compare(seed: u64, count: usize, arrangements_max: usize) {
    let (mut solved, mut refused) = (0, 0);
    let mut misses = Vec::new();
    for case in 0..count {
        let mut random = Random::new(seed + case as u64);
        let problem = random_problem(&mut random, arrangements_max);
        match (exhaustive(&problem), solve(&problem)) {
            (Some((least, _)), Ok(solution)) => {
                check(&problem, &solution.seats).unwrap_or_else(|why| panic!("case {case}: {why}\n{problem:#?}"));
                assert!(problem.is_feasible(&solution.seats));
                let found = judged_seconds(&problem, &solution.seats);
                if let Some(bound) = solution.bound_seconds {
                    assert!(bound <= least * (1.0 + 1e-6), "case {case}: the bound {bound} is above {least}");
                }
                if found > least * 1.01 {
                    misses.push((case, found / least));
                }
                solved += 1;
            }
            (None, Err(_)) => refused += 1,
            (Some(best), Err(error)) => panic!("case {case}: {error}, but {best:?} works\n{problem:#?}"),
            (None, Ok(solution)) => panic!("case {case}: {solution:?} cannot be\n{problem:#?}"),
        }
    }
    assert!(misses.is_empty(), "{} of {solved} are more than 1% from the optimum: {misses:?}", misses.len());
    assert!(solved > count / 2 && refused > 0, "{solved} solved, {refused} refused");
}

#[test]
fn thousands_of_small_problems_are_solved_within_a_hundredth_of_the_optimum() {
    compare(0, 4000, 400);
}

#[test]
fn problems_beyond_one_window_are_solved_within_a_hundredth_of_the_optimum() {
    compare(1 << 32, 80, 1 << 14);
}

/// A model of many layers: attention and a feed-forward network or experts in each.
fn large_problem(layers: usize, random: &mut Random) -> Problem {
    let mut items = vec![Item { usage: Usage::Lookup, streamable: false, ..dense(500) }];
    let curves: Vec<MissCurve> = (0..12).map(|_| random_curve(random, 64)).collect();
    for layer in 0..layers {
        // As quantisations do it: a few layers in another format.
        let size = if layer % 8 == 0 { 130 } else { 100 };
        items.extend([60, 12, 12, 60].map(|size| Item { streamable: false, ..dense(size) }));
        if layer % 4 == 3 {
            items.push(experts(30, curves[random.below(curves.len())].clone()));
        } else {
            items.extend([dense(size), dense(size), dense(size + 20)]);
        }
    }
    let total: u64 = items.iter().map(Item::bytes).sum();
    let resident: u64 = items.iter().filter(|item| !item.streamable).map(Item::bytes).sum();
    let ram_bytes = resident + (total - resident) / 3;
    Problem { items, machine: machine(0, ram_bytes), dense_ring_bytes: 900, expert_ring_bytes: 400 }
}

#[test]
fn ten_thousand_tensors_come_close_to_the_bound() {
    let mut random = Random::new(7);
    let problem = large_problem(1540, &mut random);
    assert!(problem.items.len() >= 10_000, "{}", problem.items.len());
    let solution = solve(&problem).unwrap();
    check(&problem, &solution.seats).unwrap();
    let (found, bound) = (judged_seconds(&problem, &solution.seats), solution.bound_seconds.unwrap());
    assert!(bound <= found && found <= bound * 1.01, "{found} seconds, no less than {bound}");
}

#[test]
fn free_ram_is_never_left_idle() {
    // Computing hides the reads of any placement: time alone would not care.
    let mut problem = large_problem(30, &mut Random::new(8));
    problem.machine.drive_seconds_per_byte = 1e-6;
    let solution = solve(&problem).unwrap();
    let smallest = problem.items.iter().filter(|item| item.streamable).map(|item| item.slot_bytes).min().unwrap();
    let free = problem.machine.ram_bytes - solution.tiers.ram - solution.tiers.ring;
    assert!(free < smallest, "{free} bytes are idle: {:?}", solution.tiers);

    let mut random = Random::new(9);
    for case in 0..300 {
        let problem = random_problem(&mut random, 200);
        let Ok(solution) = solve(&problem) else { continue };
        for index in 0..problem.items.len() {
            let mut seats = solution.seats.clone();
            if let Seat::Host { slots } = &mut seats[index] {
                *slots += 1;
                assert!(check(&problem, &seats).is_err(), "case {case}: there is room for more of item {index}");
            }
        }
    }
}

#[test]
fn a_model_that_fits_is_resident() {
    let mut problem = large_problem(10, &mut Random::new(10));
    problem.machine.ram_bytes = problem.items.iter().map(Item::bytes).sum();
    let solution = solve(&problem).unwrap();
    assert_eq!((solution.tiers.drive, solution.tiers.ring), (0, 0), "no ring is needed either");
    assert_eq!(solution.prediction.limit, Limit::Memory);
    assert_eq!(solution.prediction.stall_seconds, 0.0);
}

#[test]
fn slots_go_to_the_layers_whose_experts_are_used_least_evenly() {
    let even = MissCurve::from_frequencies(&[1.0; 16], 2).unwrap();
    let skewed = MissCurve::from_frequencies(&[64., 32., 16., 8., 4., 2., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.], 2);
    let items = vec![experts(100, even), experts(100, skewed.unwrap())];
    let problem = Problem { items, machine: machine(0, 1600), dense_ring_bytes: 0, expert_ring_bytes: 200 };
    let solution = solve(&problem).unwrap();
    let [Seat::Host { slots: even }, Seat::Host { slots: skewed }] = solution.seats[..] else {
        panic!("{:?}", solution.seats)
    };
    // Three experts stand out; beyond them a slot is worth more where all are alike.
    assert_eq!((even, skewed), (11, 3));
}

#[test]
fn what_was_put_on_a_gpu_stays_and_what_cannot_stream_is_resident() {
    let mut problem = large_problem(12, &mut Random::new(11));
    for item in problem.items.iter_mut().skip(1).step_by(2) {
        item.on_gpu = true;
    }
    let solution = solve(&problem).unwrap();
    check(&problem, &solution.seats).unwrap();
    assert!(solution.tiers.drive > 0 && solution.tiers.gpu > 0 && solution.tiers.gpu_chosen == 0);
}

#[test]
fn too_little_ram_is_refused_with_what_would_do() {
    let items = vec![Item { streamable: false, ..dense(100 << 20) }, dense(50 << 20), dense(50 << 20)];
    let machine = machine(0, 120 << 20);
    let mut problem = Problem { items, machine, dense_ring_bytes: 60 << 20, expert_ring_bytes: 0 };
    let error = solve(&problem).unwrap_err();
    assert_eq!(error.code(), crate::error::ErrorCode::Budget);
    assert!(error.message().contains("160.0 MiB must be there"), "{error}");
    problem.machine.ram_bytes = 160 << 20;
    solve(&problem).unwrap();
    problem.machine.cpu_seconds_per_byte = f64::NAN;
    assert_eq!(solve(&problem).unwrap_err().code(), crate::error::ErrorCode::InvalidArgument);
}

#[test]
fn speed_grows_with_ram_up_to_what_a_resident_model_reaches() {
    let problem = large_problem(20, &mut Random::new(12));
    let points = speed_by_ram(&problem, 8).unwrap();
    assert_eq!(points.len(), 8);
    for pair in points.windows(2) {
        assert!(pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1 * 1.001, "{points:?}");
    }
    let compute: f64 = 1.0 + problem.items.iter().map(|item| item.used_bytes() * 0.1).sum::<f64>();
    assert!((points[7].1 - 1.0 / compute).abs() < 1e-9, "{points:?}");
    assert!(points[7].1 > 2.0 * points[0].1, "{points:?}");
    assert_eq!(speed_by_ram(&problem, 1).unwrap().len(), 1);
    assert!(speed_by_ram(&problem, 0).unwrap().is_empty());
}

/// Solves by microlp and notes every program with its optimum, a line of JSON each.
struct Recorder(RefCell<Vec<u8>>);

impl LinearSolver for Recorder {
    fn minimise(&self, program: &LinearProgram) -> Option<Optimum> {
        let optimum = Microlp.minimise(program);
        let rows: Vec<_> = program.rows.iter().map(|row| json!({"terms": row.terms, "bound": row.bound})).collect();
        let cost = optimum.as_ref().map(|optimum| optimum.cost);
        // An infinite bound becomes null.
        let line = json!({"cost": program.cost, "upper": program.upper, "rows": rows, "optimum": cost});
        writeln!(self.0.borrow_mut(), "{line}").unwrap();
        optimum
    }
}

/// Another solver's input: `make check-solver` compares the optima.
#[test]
#[ignore = "writes to HYPURA_TEST_PROGRAMS what scripts/check_programs.py reads"]
fn write_linear_programs() {
    let path = std::env::var_os("HYPURA_TEST_PROGRAMS").expect("HYPURA_TEST_PROGRAMS names the file to write");
    let recorder = Recorder(RefCell::default());
    for case in 0..1000 {
        // A problem that nothing fits has no program that counts.
        let _ = solve_with(&random_problem(&mut Random::new(case), 400), &recorder, Effort::Rounded);
    }
    for layers in [20, 200] {
        solve_with(&large_problem(layers, &mut Random::new(layers as u64)), &recorder, Effort::Rounded).unwrap();
    }
    std::fs::write(path, recorder.0.take()).unwrap();
}
