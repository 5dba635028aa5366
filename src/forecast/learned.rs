//! What earlier runs of a model on this machine measured, to correct the next prediction.
//!
//! Factors, each the ratio of what was measured to what was predicted: seconds of computing, seconds per byte read, and
//! bytes read per token, which is where a cache does better or worse than the miss curves say. They are averaged
//! over runs, the latest counting most, and multiply the numbers that the problem is made of, so that the plan changes with
//! them and not only its prediction. A last one corrects what is then still wrong with the seconds of a token: how well
//! computing and reading overlap.

use serde_json::{Map, Value, json};

use super::problem::{Item, Problem, Residency, Usage};
use super::simulate::{Prediction, simulate};
use crate::persist::Store;

/// Correction factors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// Seconds of computing.
    pub compute: f64,
    /// Seconds per byte read.
    pub drive: f64,
    /// Bytes read per token, of experts.
    pub misses: f64,
    /// Seconds per token, all in all, beyond what the others explain.
    pub overlap: f64,
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
        Self { compute: 1.0, drive: 1.0, misses: 1.0, overlap: 1.0, runs: 0 }
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
    pub fn recall(store: &Store, model: &str, machine: &str) -> Self {
        let entries = store.facts(FILE);
        let Some(entry) = entries.get(&key(model, machine)) else { return Self::default() };
        Self::parse(entry).unwrap_or_else(|| {
            tracing::info!("what {FILE} says of this model makes no sense and is ignored");
            Self::default()
        })
    }

    fn parse(entry: &Value) -> Option<Self> {
        let factor = |name: &str| entry[name].as_f64().filter(|value| (FACTOR_MIN..=FACTOR_MAX).contains(value));
        let runs = entry["runs"].as_u64().filter(|runs| *runs > 0)?;
        Some(Self {
            compute: factor("compute")?,
            drive: factor("drive")?,
            misses: factor("misses")?,
            overlap: factor("overlap")?,
            runs,
        })
    }

    /// Stores what is now known.
    pub fn remember(&self, store: &Store, model: &str, machine: &str) {
        store.change(FILE, |entries| self.put_among(entries, key(model, machine)));
    }

    fn put_among(&self, entries: &mut Map<String, Value>, key: String) {
        let latest = entries.values().filter_map(|entry| entry["order"].as_u64()).max().unwrap_or(0);
        let mut entry = self.to_json();
        entry["order"] = json!(latest.saturating_add(1));
        entries.insert(key, entry);
        while entries.len() > ENTRIES_MAX {
            let age = |entry: &Value| entry["order"].as_u64().unwrap_or(0);
            let Some(oldest) = entries.iter().min_by_key(|(_, entry)| age(entry)).map(|(key, _)| key.clone()) else {
                break;
            };
            entries.remove(&oldest);
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let Self { compute, drive, misses, overlap, runs } = self;
        json!({"compute": compute, "drive": drive, "misses": misses, "overlap": overlap, "runs": runs})
    }

    /// The problem with every number corrected.
    pub fn correct(&self, problem: &mut Problem) {
        let machine = &mut problem.machine;
        machine.cpu_seconds_per_byte *= self.compute;
        machine.gpu_seconds_per_byte *= self.compute;
        machine.remote_seconds_per_byte *= self.compute;
        machine.network_seconds *= self.compute;
        machine.upload_seconds_per_byte *= self.compute;
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

    /// What a placement does, everything corrected; `problem` is so already.
    pub fn predict(&self, problem: &Problem, residencies: &[Residency]) -> Prediction {
        let simulated = simulate(problem, residencies);
        let seconds_per_token = simulated.seconds_per_token * self.overlap;
        let stall_seconds = (seconds_per_token - simulated.compute_seconds).max(0.0);
        Prediction { seconds_per_token, stall_seconds, ..simulated }
    }

    /// Learns from a run of a placement of `problem`, which is as it was before any correction. `self` is what was known when the
    /// run began. Returns what is known now; `None` when there was nothing to learn.
    pub fn after(&self, problem: &Problem, residencies: &[Residency], measured: &Measured) -> Option<Self> {
        let Measured { tokens, seconds_per_token, stall_seconds, drive_seconds, read_bytes } = *measured;
        let numbers = [seconds_per_token, stall_seconds, drive_seconds, read_bytes];
        let sane = numbers.iter().all(|number| number.is_finite() && *number >= 0.0) && seconds_per_token > 0.0;
        if !sane || tokens < TOKENS_MIN {
            return None;
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
        let corrected = |learned: &Self| {
            let mut corrected = problem.clone();
            learned.correct(&mut corrected);
            learned.predict(&corrected, residencies)
        };
        let mut learned = *self;
        let predicted = corrected(self);
        blend(&mut learned.compute, (seconds_per_token - stall_seconds).max(0.0), predicted.compute_seconds);
        blend(&mut learned.drive, drive_seconds / read_bytes, predicted.drive_seconds / predicted.read_bytes);
        let misses = |(item, residency): (&Item, &Residency)| {
            item.is_routed() && matches!(residency, Residency::Host { slots } if *slots < item.slot_count)
        };
        if problem.items.iter().zip(residencies).any(misses) {
            blend(&mut learned.misses, read_bytes, predicted.read_bytes);
        }
        let predicted = corrected(&learned);
        blend(&mut learned.overlap, seconds_per_token, predicted.seconds_per_token);
        learned.runs = self.runs.saturating_add(1);
        Some(learned)
    }
}

fn key(model: &str, machine: &str) -> String {
    format!("{model} on {machine}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::forecast::{Machine, MissCurve};

    /// Some experts on the drive, and a dense tensor that stays.
    fn problem() -> (Problem, [Residency; 2]) {
        let item = |usage: Usage, slot_count| Item {
            layer: None,
            role: String::new(),
            tensors: Vec::new(),
            slot_bytes: 100,
            slot_count,
            reads_per_slot: 1,
            usage,
            is_elsewhere: false,
            is_remote: false,
            streamable: slot_count > 1,
        };
        let curve = std::sync::Arc::new(MissCurve::prior(8, 2).unwrap());
        let machine = Machine {
            cpu_seconds_per_byte: 0.01,
            gpu_seconds_per_byte: 0.001,
            remote_seconds_per_byte: 0.001,
            network_seconds: 0.0,
            upload_seconds_per_byte: 0.001,
            fixed_seconds: 0.0,
            drive_seconds_per_byte: 0.1,
            read_overhead_seconds: 0.0,
        };
        let items = vec![item(Usage::Dense, 1), item(Usage::Routed(curve), 8)];
        let problem = Problem { items, machine, dense_ring_bytes: 0, vram_bytes: 0 };
        (problem, [Residency::Host { slots: 1 }, Residency::Host { slots: 3 }])
    }

    fn predicted(learned: &Learned) -> Prediction {
        let (mut problem, residencies) = problem();
        learned.correct(&mut problem);
        learned.predict(&problem, &residencies)
    }

    /// What is measured when computing and reading take `factor` times what was predicted.
    fn measured(factor: f64) -> Measured {
        let predicted = predicted(&Learned::default());
        Measured {
            tokens: 100,
            seconds_per_token: predicted.seconds_per_token * factor,
            stall_seconds: predicted.stall_seconds * factor,
            drive_seconds: predicted.drive_seconds * factor,
            read_bytes: predicted.read_bytes,
        }
    }

    fn after(learned: &Learned, measured: &Measured) -> Option<Learned> {
        let (problem, residencies) = problem();
        learned.after(&problem, &residencies, measured)
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found}, not {expected}");
    }

    #[test]
    fn the_first_run_is_believed_and_later_ones_are_averaged() {
        let mut learned = after(&Learned::default(), &measured(2.0)).unwrap();
        assert_close(learned.compute, 2.0);
        assert_close(learned.drive, 2.0);
        assert_close(learned.misses, 1.0);
        assert_close(learned.overlap, 1.0);
        // Half of what was expected by now.
        learned = after(&learned, &measured(1.0)).unwrap();
        assert_close(learned.compute, 2f64.sqrt());
        assert_eq!(learned.runs, 2);
        for _ in 0..50 {
            learned = after(&learned, &measured(1000.0)).unwrap();
        }
        assert_close(learned.compute, FACTOR_MAX);
        assert_close(learned.drive, FACTOR_MAX);
    }

    #[test]
    fn what_makes_no_sense_teaches_nothing() {
        for change in [
            Measured { tokens: 3, ..measured(2.0) },
            Measured { seconds_per_token: 0.0, ..measured(2.0) },
            Measured { seconds_per_token: f64::NAN, ..measured(2.0) },
            Measured { read_bytes: -1.0, ..measured(2.0) },
            Measured { drive_seconds: f64::INFINITY, ..measured(2.0) },
        ] {
            assert_eq!(after(&Learned::default(), &change), None, "{change:?}");
        }
        // Nothing was read: the drive's factors stay.
        let idle = Measured { read_bytes: 0.0, drive_seconds: 0.0, ..measured(2.0) };
        let learned = after(&Learned::default(), &idle).unwrap();
        assert_eq!((learned.drive, learned.misses), (1.0, 1.0));
    }

    #[test]
    fn a_corrected_prediction_meets_the_measurement() {
        let first = predicted(&Learned::default());
        // Neither the sum of computing and reading nor the longer of the two.
        let measured = Measured {
            tokens: 100,
            seconds_per_token: 1.5 * first.compute_seconds + 0.4 * first.drive_seconds,
            stall_seconds: 0.4 * first.drive_seconds,
            drive_seconds: 0.6 * first.drive_seconds,
            read_bytes: 0.5 * first.read_bytes,
        };
        let again = predicted(&after(&Learned::default(), &measured).unwrap());
        assert_close(again.compute_seconds, 1.5 * first.compute_seconds);
        assert_close(again.read_bytes, 0.5 * first.read_bytes);
        assert_close(again.drive_seconds, 0.6 * first.drive_seconds);
        assert_close(again.seconds_per_token, measured.seconds_per_token);
        assert_close(again.stall_seconds, measured.stall_seconds);
    }

    #[test]
    fn models_and_machines_are_kept_apart_and_rubbish_is_ignored() {
        let directory = TestDirectory::new();
        let store = Store::at(directory.path());
        let learned = Learned { compute: 2.0, drive: 0.5, misses: 1.5, overlap: 1.1, runs: 3 };
        assert_eq!(Learned::recall(&store, "model", "machine"), Learned::default());
        learned.remember(&store, "model", "machine");
        assert_eq!(Learned::recall(&store, "model", "machine"), learned);
        assert_eq!(Learned::recall(&store, "model", "other"), Learned::default());
        assert_eq!(Learned::recall(&store, "other", "machine"), Learned::default());
        for rubbish in [
            "{",
            "[1]",
            r#"{"model on machine": 7}"#,
            r#"{"model on machine": {"compute": 1e9, "drive": 1, "misses": 1, "overlap": 1, "runs": 1}}"#,
            r#"{"model on machine": {"compute": 1, "drive": 1, "runs": 1}}"#,
            r#"{"model on machine": {"compute": 1, "drive": 1, "misses": 1, "overlap": 1, "runs": -4}}"#,
        ] {
            directory.write(FILE, rubbish);
            assert_eq!(Learned::recall(&store, "model", "machine"), Learned::default(), "{rubbish}");
            learned.remember(&store, "model", "machine");
            assert_eq!(Learned::recall(&store, "model", "machine"), learned, "{rubbish}");
        }
    }

    #[test]
    fn the_longest_unused_are_forgotten() {
        let directory = TestDirectory::new();
        let store = Store::at(directory.path());
        let learned = Learned { runs: 1, ..Learned::default() };
        for number in 0..ENTRIES_MAX + 5 {
            learned.remember(&store, &format!("model {number}"), "machine");
        }
        let known = |number: usize| Learned::recall(&store, &format!("model {number}"), "machine").runs;
        assert_eq!((known(4), known(5), known(ENTRIES_MAX + 4)), (0, 1, 1));
    }
}
