//! `HYPURA_STATS` and the plan: what is told, and how it is written.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{F32, MODELS, TestDirectory, dense_model, expert_model, number, stats, within};

/// The keys that tools rely on.
fn stats_keys() -> BTreeSet<String> {
    let all = serde_json::to_value(hypura::stats::Statistics::default()).unwrap();
    all.as_object().unwrap().keys().cloned().collect()
}

fn keys(stats: &serde_json::Value) -> BTreeSet<String> {
    stats.as_object().unwrap().keys().cloned().collect()
}

fn read_stats_file(path: &Path) -> serde_json::Value {
    let started = Instant::now();
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) => return serde_json::from_str(&text).unwrap(),
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "no statistics: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn statistics_are_written_with_the_keys_that_tools_rely_on() {
    within(300, || {
        for (make, mode) in [(MODELS[0], "expert-streaming"), (MODELS[1], "dense-streaming")] {
            let model = make(TestDirectory::new(), 73, 1);
            let output = TestDirectory::new();
            let path = output.path().join("stats.json");
            let session = model.session(&[("HYPURA_RAM", "64M"), ("HYPURA_STATS", path.to_str().unwrap())]).unwrap();
            assert_eq!(keys(&stats(&session)), stats_keys(), "before the first demand");
            model.sweep(&session).unwrap();
            assert_eq!(keys(&read_stats_file(&path)), stats_keys());

            model.sweep(&session).unwrap();
            let last = session.stats_json();
            drop(session);
            let written = read_stats_file(&path);
            assert_eq!(written["mode"], mode);
            assert_eq!(written["errors"], 0);
            assert!(written["io_engine"].is_string() && written["direct_io"].is_boolean());
            // Guesses may still have been in flight when `last` was taken; everything else is final.
            let last: serde_json::Value = serde_json::from_str(&last).unwrap();
            for key in stats_keys().iter().filter(|key| *key != "read_seconds") {
                assert_eq!(written[key], last[key], "{key}");
            }
            let files: Vec<_> = std::fs::read_dir(output.path()).unwrap().collect();
            assert_eq!(files.len(), 1, "no draft is left behind: {files:?}");
        }
    });
}

/// What is told of a plan adds up, for experts and dense weights, from the smallest budget to one for everything.
#[test]
fn the_plan_is_told_once_the_memory_is_divided() {
    within(300, || {
        for make in MODELS {
            let model = make(TestDirectory::new(), 89, 1);
            let minimum = model.session(&[("HYPURA_RAM", "64M")]).unwrap().minimum_bytes();
            for ram_bytes in [minimum, 3 * minimum, model.everything_bytes()] {
                let session = model.session(&[("HYPURA_RAM", &ram_bytes.to_string())]).unwrap();
                assert_eq!(session.plan_json(), "null");
                assert_eq!(stats(&session)["plan"], serde_json::Value::Null);
                model.sweep(&session).unwrap();
                let plan: serde_json::Value = serde_json::from_str(&session.plan_json()).unwrap();
                let placed = ["gpu_bytes", "remote_bytes", "ram_bytes", "drive_bytes"]
                    .map(|tier| number(&plan, tier))
                    .iter()
                    .sum::<u64>();
                assert_eq!(placed, model.gguf.model_bytes(), "{plan}");
                assert!(number(&plan, "slots_bytes") <= ram_bytes, "{plan}");
                let in_slots = number(&plan, "ram_bytes") + number(&plan, "ring_bytes");
                assert!(in_slots <= number(&plan, "ram_budget_bytes"), "{plan}");
                let tensors: usize = plan["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| item["tensors"].as_array().unwrap().len())
                    .sum();
                assert_eq!(tensors, model.gguf.tensors().len(), "{plan}");
                let speed = |plan: &serde_json::Value| plan["tokens_per_second"].as_f64().unwrap();
                assert!(speed(&plan["prediction"]) > 0.0, "{plan}");
                assert!(plan["machine"]["cores"]["parallel"].as_u64().unwrap() > 0, "{plan}");
                let stats = stats(&session);
                assert_eq!(stats["plan"]["mode"], plan["mode"]);
                assert_eq!(stats["predicted_tokens_per_second"], plan["prediction"]["tokens_per_second"]);
                assert!(ram_bytes > minimum || number(&plan, "drive_bytes") > 0, "{plan}");
                assert!(ram_bytes < model.everything_bytes() || number(&plan, "drive_bytes") == 0, "{plan}");
            }
        }
    });
}

/// A toy is not worth measuring anything for.
#[test]
fn no_speed_is_asked_for_when_it_does_not_matter() {
    let model = expert_model(TestDirectory::new(), 97, 1);
    let session = model.session(&[("HYPURA_RAM", "64M")]).unwrap();
    assert_eq!(session.next_unmeasured(2, 1 << 20), None);
    // Told all the same: no harm.
    session.set_speed(F32, 2, 1e9);
    model.sweep(&session).unwrap();
    assert_eq!(session.next_unmeasured(2, 1 << 20), None);
}

/// Two models of one process, as with `--model-draft`, have figures of their own: the first in the file that
/// the environment names, others beside it.
#[test]
fn sessions_with_one_statistics_file_write_side_by_side_and_never_half_of_one() {
    within(300, || {
        let model = dense_model(TestDirectory::new(), 79, 1);
        let output = TestDirectory::new();
        let path = output.path().join("stats.json");
        let settings = [("HYPURA_RAM", "64M"), ("HYPURA_STATS", path.to_str().unwrap())];
        let running = AtomicU32::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let session = model.session(&settings).unwrap();
                        model.fetch_all(&mut session.new_fetch(), model.streamed(&session)[0], &[], 1).unwrap();
                    }
                    running.fetch_sub(1, Ordering::Relaxed);
                });
            }
            while running.load(Ordering::Relaxed) > 0 {
                assert_eq!(keys(&read_stats_file(&path)), stats_keys());
            }
        });
        for file in std::fs::read_dir(output.path()).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(["stats.json", "stats.json.2", "stats.json.3", "stats.json.4"].contains(&&*name), "{name}");
            assert_eq!(keys(&read_stats_file(&output.path().join(name))), stats_keys());
        }
    });
}
