//! The policies on recorded routing: hit rates that must not get worse. The traces lie beside the repository in
//! `shared/traces`, or in `../shared/traces`, and are not a part of it; without them the tests say so and pass.

use std::path::Path;

use hypura::cache::policy::PolicyKind;
use hypura::replay::{Belady, Trace, simulate};

/// What a trace must give, in percent of hits.
struct Floor {
    share_percent: usize,
    lru: f64,
    /// The best that is known of LRU, LRFU with slow decay, and LRFU for each layer.
    best_listed: f64,
    belady: f64,
}

const fn floor(share_percent: usize, lru: f64, best_listed: f64, belady: f64) -> Floor {
    Floor { share_percent, lru, best_listed, belady }
}

fn open(name: &str) -> Option<Trace> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = ["shared", "../shared"].map(|folder| root.join(folder).join("traces").join(name));
    let found = path.iter().find(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: {name} is in neither of {path:?}");
    }
    found.map(|path| Trace::open(path).expect("a trace"))
}

fn check(trace: &Trace, floors: &[Floor]) {
    for floor in floors {
        let slots = trace.shape.unit_count() * floor.share_percent / 100;
        let percent = |kind: PolicyKind| simulate(trace, slots, &mut *kind.build(trace.shape)).hit_percent();
        let at = format!("{} at {}%", trace.model, floor.share_percent);
        let lru = percent(PolicyKind::Lru);
        assert!((lru - floor.lru).abs() <= 0.6, "{at}: LRU has {lru}, the reference {}", floor.lru);
        let belady = simulate(trace, slots, &mut Belady::new(trace)).hit_percent();
        assert!((belady - floor.belady).abs() <= 1.2, "{at}: Belady has {belady}, the reference {}", floor.belady);
        let default = percent(PolicyKind::DEFAULT);
        assert!(default >= floor.best_listed && default <= belady, "{at}: the default has {default}");
    }
}

#[test]
fn qwen() {
    let Some(trace) = open("qwen.csv") else { return };
    check(
        &trace,
        &[
            floor(5, 38.0, 39.0, 58.0),
            floor(10, 50.0, 58.3, 76.0),
            floor(15, 65.0, 70.2, 84.0),
            floor(20, 74.0, 78.2, 90.0),
            floor(30, 88.0, 89.0, 96.0),
            floor(50, 96.0, 96.0, 97.0),
        ],
    );
}

#[test]
fn gpt_oss() {
    let Some(trace) = open("gptoss.csv") else { return };
    check(
        &trace,
        &[
            floor(5, 44.0, 47.5, 67.0),
            floor(10, 59.0, 62.0, 80.0),
            floor(15, 68.0, 70.0, 86.0),
            floor(20, 74.0, 76.0, 89.0),
            floor(30, 80.0, 82.0, 89.0),
            floor(50, 89.0, 89.0, 89.0),
        ],
    );
}

#[test]
fn minimoe() {
    let Some(trace) = open("minimoe.csv") else { return };
    check(
        &trace.without_prompts(),
        &[
            floor(10, 0.0, 33.0, 53.0),
            floor(25, 52.5, 60.5, 77.0),
            floor(50, 80.0, 83.5, 93.0),
            floor(75, 95.0, 95.3, 98.0),
        ],
    );
}
