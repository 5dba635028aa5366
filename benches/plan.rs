//! How long planning takes: a model of 10,000 tensors, dense, of experts, and of both. `cargo bench --bench plan`

use std::sync::Arc;
use std::time::Instant;

use hypura::forecast::{Item, Machine, MissCurve, Problem, Usage, solve};

const TENSORS: usize = 10_000;
const RUNS: usize = 5;

fn item(role: &str, slot_bytes: u64) -> Item {
    Item {
        layer: None,
        role: role.to_owned(),
        tensors: Vec::new(),
        slot_bytes,
        slot_count: 1,
        reads_per_slot: 1,
        usage: Usage::Dense,
        on_gpu: false,
        streamable: true,
    }
}

/// Experts whose use differs from layer to layer.
fn experts(layer: usize) -> Item {
    let exponent = 0.3 + (layer * 7 % 100) as f64 / 150.0;
    let frequencies: Vec<f64> = (1..=128).map(|rank| f64::from(rank).powf(-exponent)).collect();
    let curve = MissCurve::from_frequencies(&frequencies, 8).expect("frequencies that make sense");
    Item { slot_count: 128, reads_per_slot: 3, usage: Usage::Routed(Arc::new(curve)), ..item("experts", 5 << 20) }
}

/// Layers of 7 tensors, every so many of them with experts in place of a feed-forward network.
fn problem(experts_every: usize, gpu_share: f64) -> Problem {
    let mut items = Vec::new();
    let mut tensors = 0;
    while tensors < TENSORS {
        let layer = tensors / 7;
        items.extend((0..4).map(|_| Item { streamable: false, ..item("attention", 10 << 20) }));
        if experts_every > 0 && layer % experts_every == 0 {
            items.push(experts(layer));
        } else {
            items.extend((0..3).map(|part| item("feed-forward", (60 << 20) + part * (8 << 20))));
        }
        tensors += 7;
    }
    let bytes =
        |streamable: bool| -> u64 { items.iter().filter(|item| item.streamable == streamable).map(Item::bytes).sum() };
    let machine = Machine {
        gpu_bytes: (bytes(true) as f64 * gpu_share) as u64,
        ram_bytes: bytes(false) + bytes(true) / 3,
        cpu_seconds_per_byte: 1.0 / 40e9,
        gpu_seconds_per_byte: 1.0 / 800e9,
        fixed_seconds: 0.001,
        drive_seconds_per_byte: 1.0 / 6e9,
        read_overhead_seconds: 20e-6,
    };
    Problem { items, machine, dense_ring_bytes: 500 << 20, expert_ring_bytes: 100 << 20 }
}

fn main() {
    println!("{TENSORS} tensors             items   ms (median of {RUNS})   above the bound");
    for (name, experts_every, gpu_share) in [
        ("dense", 0, 0.0),
        ("dense and a GPU", 0, 0.2),
        ("experts", 1, 0.0),
        ("experts and a GPU", 1, 0.2),
        ("both", 4, 0.0),
    ] {
        let problem = problem(experts_every, gpu_share);
        let mut seconds = Vec::new();
        let mut gap = None;
        for _ in 0..RUNS {
            let start = Instant::now();
            let solution = solve(&problem).expect("a problem that has a solution");
            seconds.push(start.elapsed().as_secs_f64());
            gap = solution.bound_seconds.map(|bound| solution.prediction.seconds_per_token / bound - 1.0);
        }
        seconds.sort_by(f64::total_cmp);
        let gap = gap.map_or("no bound".to_owned(), |gap| format!("{:.3}%", 100.0 * gap));
        println!("{name:25} {:6} {:22.0} {gap:>17}", problem.items.len(), 1000.0 * seconds[RUNS / 2]);
    }
}
