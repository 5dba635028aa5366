//! What earlier runs of a model on this machine measured, to correct the next prediction.
//!
//! Three factors, each the ratio of what was measured to what was predicted: seconds of computing, seconds per byte read,
//! and bytes read per token, which is where a cache does better or worse than the miss curves say. They are averaged
//! over runs, the latest counting most, and multiply the numbers that the problem is made of, so that the plan changes with
//! them and not only its prediction.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::problem::{Problem, Usage};
use super::simulate::Prediction;
use crate::persist;

/// Correction factors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// Seconds of computing.
    pub compute: f64,
    /// Seconds per byte read.
    pub drive: f64,
    /// Bytes read per token, of experts.
    pub misses: f64,
    /// Runs that they come from.
    pub runs: u64,
}

/// What a run measured, in steady state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Tokens that it is the average of; too few are ignored.
    pub tokens: u64,
    /// Seconds per token, all in all.
    pub seconds_per_token: f64,
    /// Of those, computing waited for the drive.
    pub stall_seconds: f64,
    /// Of those, the drive was busy.
    pub drive_seconds: f64,
    /// Bytes read per token.
    pub read_bytes: f64,
}

impl Default for Learned {
    fn default() -> Self {
        Self { compute: 1.0, drive: 1.0, misses: 1.0, runs: 0 }
    }
}

/// A run of fewer tokens measures its start more than its speed.
const TOKENS_MIN: u64 = 16;

/// How much the latest run counts.
const LATEST: f64 = 0.5;

/// A factor beyond these limits is another reason's doing: a machine that was busy, a clock that was set.
const FACTOR_MIN: f64 = 0.1;
const FACTOR_MAX: f64 = 10.0;

const FILE: &str = "learned.json";

/// Models and machines that are remembered; the longest unused are forgotten.
const ENTRIES_MAX: usize = 64;

impl Learned {
    /// What is remembered of a model, by a fingerprint of its content, on a machine, named without its host name: its
    /// processor, cores and drive. Nothing is remembered of others.
    pub fn recall(model: &str, machine: &str) -> Self {
        persist::cache_directory().map_or_else(Self::default, |directory| Self::recall_in(&directory, model, machine))
    }

    fn recall_in(directory: &Path, model: &str, machine: &str) -> Self {
        let entries = entries(directory);
        let Some(entry) = entries.get(&key(model, machine)) else { return Self::default() };
        Self::parse(entry).unwrap_or_else(|| {
            tracing::info!("what {FILE} says of this model makes no sense and is ignored");
            Self::default()
        })
    }

    fn parse(entry: &Value) -> Option<Self> {
        let factor = |name: &str| entry[name].as_f64().filter(|value| (FACTOR_MIN..=FACTOR_MAX).contains(value));
        let runs = entry["runs"].as_u64().filter(|runs| *runs > 0)?;
        Some(Self { compute: factor("compute")?, drive: factor("drive")?, misses: factor("misses")?, runs })
    }

    /// Stores what is now known.
    pub fn remember(&self, model: &str, machine: &str) {
        if let Some(directory) = persist::cache_directory() {
            self.remember_in(&directory, model, machine);
        }
    }

    fn remember_in(&self, directory: &Path, model: &str, machine: &str) {
        let mut entries = entries(directory);
        let latest = entries.values().filter_map(|entry| entry["order"].as_u64()).max().unwrap_or(0);
        let Self { compute, drive, misses, runs } = self;
        let entry = json!({
            "compute": compute, "drive": drive, "misses": misses, "runs": runs, "order": latest.saturating_add(1),
        });
        entries.insert(key(model, machine), entry);
        while entries.len() > ENTRIES_MAX {
            let age = |entry: &Value| entry["order"].as_u64().unwrap_or(0);
            let Some(oldest) = entries.iter().min_by_key(|(_, entry)| age(entry)).map(|(key, _)| key.clone()) else {
                break;
            };
            entries.remove(&oldest);
        }
        persist::write(directory, FILE, &Value::Object(entries));
    }

    /// The problem with every number corrected.
    pub fn correct(&self, problem: &mut Problem) {
        let machine = &mut problem.machine;
        machine.cpu_seconds_per_byte *= self.compute;
        machine.gpu_seconds_per_byte *= self.compute;
        machine.fixed_seconds *= self.compute;
        machine.drive_seconds_per_byte *= self.drive;
        machine.read_overhead_seconds *= self.drive;
        if self.misses == 1.0 {
            return;
        }
        // Equal curves stay one curve.
        let mut corrected = std::collections::HashMap::new();
        for item in &mut problem.items {
            if let Usage::Routed(curve) = &mut item.usage {
                let scaled = || std::sync::Arc::new(curve.scaled(self.misses));
                *curve = std::sync::Arc::clone(corrected.entry(std::sync::Arc::as_ptr(curve)).or_insert_with(scaled));
            }
        }
    }

    /// Learns from a run: `predicted` is what was expected of it, with these factors already applied, and `had_experts`
    /// whether experts were streamed. Returns whether there was anything to learn.
    pub fn learn(&mut self, predicted: &Prediction, measured: &Measured, had_experts: bool) -> bool {
        let Measured { tokens, seconds_per_token, stall_seconds, drive_seconds, read_bytes } = *measured;
        let numbers = [seconds_per_token, stall_seconds, drive_seconds, read_bytes];
        let sane = numbers.iter().all(|number| number.is_finite() && *number >= 0.0) && seconds_per_token > 0.0;
        if !sane || tokens < TOKENS_MIN {
            return false;
        }
        let first = self.runs == 0;
        let blend = |factor: &mut f64, measured: f64, predicted: f64| {
            let ratio = measured / predicted;
            if ratio.is_finite() && ratio > 0.0 {
                let found = (*factor * ratio).clamp(FACTOR_MIN, FACTOR_MAX);
                // Ratios are averaged as ratios: twice and half make one. The first run is all that is known.
                let weight = if first { 1.0 } else { LATEST };
                *factor = (factor.ln() * (1.0 - weight) + found.ln() * weight).exp().clamp(FACTOR_MIN, FACTOR_MAX);
            }
        };
        blend(&mut self.compute, (seconds_per_token - stall_seconds).max(0.0), predicted.compute_seconds);
        blend(&mut self.drive, drive_seconds / read_bytes, predicted.drive_seconds / predicted.read_bytes);
        if had_experts {
            blend(&mut self.misses, read_bytes, predicted.read_bytes);
        }
        self.runs = self.runs.saturating_add(1);
        true
    }
}

fn entries(directory: &Path) -> Map<String, Value> {
    match persist::read(directory, FILE) {
        Some(Value::Object(entries)) => entries,
        Some(_) => {
            tracing::info!("{FILE} in {} is not what was written there and is ignored", directory.display());
            Map::new()
        }
        None if directory.join(FILE).exists() => {
            tracing::info!("{FILE} in {} cannot be read and is ignored", directory.display());
            Map::new()
        }
        None => Map::new(),
    }
}

fn key(model: &str, machine: &str) -> String {
    format!("{model} on {machine}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_directory::TestDirectory;
    use crate::plan::{Item, Limit, Machine, MissCurve, solve};

    const PREDICTED: Prediction = Prediction {
        seconds_per_token: 0.3,
        compute_seconds: 0.1,
        drive_seconds: 0.25,
        stall_seconds: 0.2,
        read_bytes: 1e9,
        limit: Limit::Drive,
    };

    fn measured(factor: f64) -> Measured {
        Measured {
            tokens: 100,
            seconds_per_token: 0.3 * factor,
            stall_seconds: 0.2 * factor,
            drive_seconds: 0.25 * factor,
            read_bytes: 1e9,
        }
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found}, not {expected}");
    }

    #[test]
    fn the_first_run_is_believed_and_later_ones_are_averaged() {
        let mut learned = Learned::default();
        assert!(learned.learn(&PREDICTED, &measured(2.0), true));
        assert_close(learned.compute, 2.0);
        assert_close(learned.drive, 2.0);
        assert_close(learned.misses, 1.0);
        // The next prediction had the factors in it: half of it was needed.
        assert!(learned.learn(&PREDICTED, &measured(0.5), true));
        assert_close(learned.compute, 2f64.sqrt());
        assert_eq!(learned.runs, 2);
        for _ in 0..50 {
            learned.learn(&PREDICTED, &measured(100.0), true);
        }
        assert_close(learned.compute, FACTOR_MAX);
        assert_close(learned.drive, FACTOR_MAX);
    }

    #[test]
    fn what_makes_no_sense_teaches_nothing() {
        let mut learned = Learned::default();
        for change in [
            Measured { tokens: 3, ..measured(2.0) },
            Measured { seconds_per_token: 0.0, ..measured(2.0) },
            Measured { seconds_per_token: f64::NAN, ..measured(2.0) },
            Measured { read_bytes: -1.0, ..measured(2.0) },
            Measured { drive_seconds: f64::INFINITY, ..measured(2.0) },
        ] {
            assert!(!learned.learn(&PREDICTED, &change, true), "{change:?}");
        }
        assert_eq!(learned, Learned::default());
        // Nothing was read: the drive's factors stay.
        assert!(learned.learn(&PREDICTED, &Measured { read_bytes: 0.0, drive_seconds: 0.0, ..measured(2.0) }, true));
        assert_eq!((learned.drive, learned.misses), (1.0, 1.0));
    }

    #[test]
    fn a_corrected_prediction_meets_the_measurement() {
        let item = |usage: Usage, slot_count| Item {
            layer: None,
            role: String::new(),
            tensors: Vec::new(),
            slot_bytes: 100,
            slot_count,
            reads_per_slot: 1,
            usage,
            on_gpu: false,
            streamable: slot_count > 1,
        };
        let curve = std::sync::Arc::new(MissCurve::prior(8, 2).unwrap());
        let problem = Problem {
            items: vec![item(Usage::Dense, 1), item(Usage::Routed(curve), 8)],
            machine: Machine {
                gpu_bytes: 0,
                ram_bytes: 500,
                cpu_seconds_per_byte: 0.01,
                gpu_seconds_per_byte: 0.001,
                fixed_seconds: 0.0,
                drive_seconds_per_byte: 0.1,
                read_overhead_seconds: 0.0,
            },
            dense_ring_bytes: 0,
            expert_ring_bytes: 100,
        };
        let predicted = solve(&problem).unwrap().prediction;
        let measured = Measured {
            tokens: 100,
            seconds_per_token: 1.5 * predicted.compute_seconds + 0.6 * predicted.drive_seconds,
            stall_seconds: 0.6 * predicted.drive_seconds,
            drive_seconds: 0.6 * predicted.drive_seconds,
            read_bytes: 0.5 * predicted.read_bytes,
        };
        let mut learned = Learned::default();
        learned.learn(&predicted, &measured, true);
        let mut corrected = problem.clone();
        learned.correct(&mut corrected);
        let again = solve(&corrected).unwrap().prediction;
        assert_close(again.compute_seconds, 1.5 * predicted.compute_seconds);
        assert_close(again.read_bytes, 0.5 * predicted.read_bytes);
        assert_close(again.drive_seconds, 0.6 * predicted.drive_seconds);
    }

    #[test]
    fn models_and_machines_are_kept_apart_and_rubbish_is_ignored() {
        let directory = TestDirectory::new();
        let place = directory.path();
        let learned = Learned { compute: 2.0, drive: 0.5, misses: 1.5, runs: 3 };
        assert_eq!(Learned::recall_in(place, "model", "machine"), Learned::default());
        learned.remember_in(place, "model", "machine");
        assert_eq!(Learned::recall_in(place, "model", "machine"), learned);
        assert_eq!(Learned::recall_in(place, "model", "other"), Learned::default());
        assert_eq!(Learned::recall_in(place, "other", "machine"), Learned::default());
        for rubbish in [
            "{",
            "[1]",
            r#"{"model on machine": 7}"#,
            r#"{"model on machine": {"compute": 1e9, "drive": 1, "misses": 1, "runs": 1}}"#,
            r#"{"model on machine": {"compute": 1, "drive": 1, "runs": 1}}"#,
            r#"{"model on machine": {"compute": 1, "drive": 1, "misses": 1, "runs": -4}}"#,
        ] {
            directory.write(FILE, rubbish);
            assert_eq!(Learned::recall_in(place, "model", "machine"), Learned::default(), "{rubbish}");
            learned.remember_in(place, "model", "machine");
            assert_eq!(Learned::recall_in(place, "model", "machine"), learned, "{rubbish}");
        }
    }

    #[test]
    fn the_longest_unused_are_forgotten() {
        let directory = TestDirectory::new();
        let learned = Learned { runs: 1, ..Learned::default() };
        for number in 0..ENTRIES_MAX + 5 {
            learned.remember_in(directory.path(), &format!("model {number}"), "machine");
        }
        let known = |number: usize| Learned::recall_in(directory.path(), &format!("model {number}"), "machine").runs;
        assert_eq!((known(4), known(5), known(ENTRIES_MAX + 4)), (0, 1, 1));
    }
}
