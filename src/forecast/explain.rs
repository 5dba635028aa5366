//! A placement in words, and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::problem::{Problem, Seat};
use super::simulate::Prediction;
use super::solve::Solution;
use crate::plan::{Mode, in_gigabytes};

impl Solution {
    /// How the model runs.
    pub fn mode(&self) -> Mode {
        match (self.tiers.drive, self.tiers.drive_experts) {
            (0, _) => Mode::Resident,
            (_, 0) => Mode::DenseStreaming,
            _ => Mode::ExpertStreaming,
        }
    }

    /// At most seven short lines for the log: how the model runs, what lives where, in how much memory, how fast that
    /// is expected to be, and what limits it.
    pub fn explain(&self, problem: &Problem) -> Vec<String> {
        let tiers = &self.tiers;
        let mut lines = vec![self.mode().name().to_owned()];
        let place = |name: &str, bytes: u64, parts: &dyn Fn(&Seat, usize) -> bool| {
            let roles = roles(problem, &self.seats, parts);
            (bytes > 0).then(|| format!("{name}: {} ({roles})", in_gigabytes(bytes)))
        };
        // Of experts, some of which are on the drive, those in RAM change.
        let changes = |seat: &Seat, count: usize| matches!(seat, Seat::Host { slots } if *slots > 0 && *slots < count);
        let changing_bytes: u64 = problem
            .items
            .iter()
            .zip(&self.seats)
            .map(|(item, seat)| match seat {
                Seat::Host { slots } if changes(seat, item.slot_count) => item.slot_bytes * *slots as u64,
                _ => 0,
            })
            .sum();
        lines.extend(place("GPU", tiers.gpu, &|seat, _| *seat == Seat::Gpu));
        lines.extend(place(
            "RAM, for good",
            tiers.ram - changing_bytes,
            &|seat, count| matches!(seat, Seat::Host { slots } if *slots == count),
        ));
        lines.extend(place("RAM, as needed", changing_bytes, &changes));
        lines.extend(place(
            "drive",
            tiers.drive,
            &|seat, count| matches!(seat, Seat::Host { slots } if *slots < count),
        ));
        let free = problem.machine.ram_bytes.saturating_sub(tiers.ram + tiers.ring);
        let ring = match tiers.ring {
            0 => String::new(),
            bytes => format!("{} for what passes through and ", in_gigabytes(bytes)),
        };
        lines.push(format!(
            "RAM for weights: {}, of which {ring}{} free",
            in_gigabytes(problem.machine.ram_bytes),
            in_gigabytes(free)
        ));
        lines.push(self.prediction.sentence());
        lines
    }

    /// As JSON: the same facts, and the seat of every item.
    pub fn to_json(&self, problem: &Problem) -> Value {
        let items = problem.items.iter().zip(&self.seats).map(|(item, seat)| {
            let slots = match seat {
                Seat::Gpu => Value::Null,
                Seat::Host { slots } => json!(slots),
            };
            json!({
                "layer": item.layer,
                "role": item.role,
                "tensors": item.tensors,
                "bytes": item.bytes(),
                "slot_count": item.slot_count,
                "on_gpu": *seat == Seat::Gpu,
                "slots_in_ram": slots,
            })
        });
        json!({
            "mode": self.mode().name(),
            "gpu_bytes": self.tiers.gpu,
            "ram_bytes": self.tiers.ram,
            "ring_bytes": self.tiers.ring,
            "drive_bytes": self.tiers.drive,
            "ram_budget_bytes": problem.machine.ram_bytes,
            "prediction": self.prediction.to_json(),
            "bound_seconds": self.bound_seconds,
            "items": items.collect::<Vec<_>>(),
        })
    }
}

impl Prediction {
    fn sentence(&self) -> String {
        if self.seconds_per_token <= 0.0 {
            return "expected: nothing to compute".to_owned();
        }
        let mut text = format!("expected: {} tokens per second", rounded(self.tokens_per_second()));
        if self.stall_seconds > 0.005 * self.seconds_per_token {
            let share = 100.0 * self.stall_seconds / self.seconds_per_token;
            let _ = write!(text, ", waiting for the drive {share:.0}% of the time");
        }
        let _ = write!(text, "; limited by {}", self.limit.name());
        text
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "tokens_per_second": self.tokens_per_second(),
            "seconds_per_token": self.seconds_per_token,
            "compute_seconds": self.compute_seconds,
            "drive_seconds": self.drive_seconds,
            "stall_seconds": self.stall_seconds,
            "read_bytes": self.read_bytes,
            "limit": self.limit.name(),
        })
    }
}

/// Two digits that matter: more would promise too much.
fn rounded(value: f64) -> String {
    let digits = (1 - value.log10().floor() as i32).clamp(0, 4) as usize;
    format!("{value:.digits$}")
}

/// The roles of items in certain seats, those with most bytes first.
fn roles(problem: &Problem, seats: &[Seat], is_there: &dyn Fn(&Seat, usize) -> bool) -> String {
    const NAMED_MAX: usize = 4;
    let mut totals: Vec<(&str, u64)> = Vec::new();
    for (item, seat) in problem.items.iter().zip(seats) {
        if is_there(seat, item.slot_count) {
            match totals.iter_mut().find(|(role, _)| *role == item.role) {
                Some((_, bytes)) => *bytes += item.bytes(),
                None => totals.push((&item.role, item.bytes())),
            }
        }
    }
    totals.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let names: Vec<&str> = totals.iter().take(NAMED_MAX).map(|(role, _)| *role).collect();
    let rest = if totals.len() > NAMED_MAX { ", ..." } else { "" };
    names.join(", ") + rest
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::forecast::{Item, Machine, MissCurve, Usage, solve};

    fn problem(ram_bytes: u64) -> Problem {
        let item = |role: &str, slot_bytes| Item {
            layer: None,
            role: role.to_owned(),
            tensors: vec![0],
            slot_bytes,
            slot_count: 1,
            reads_per_slot: 1,
            usage: Usage::Dense,
            on_gpu: false,
            streamable: false,
        };
        let curve = Arc::new(MissCurve::prior(8, 2).unwrap());
        let experts = Item { slot_count: 8, usage: Usage::Routed(curve), streamable: true, ..item("experts", 1 << 29) };
        Problem {
            items: vec![
                Item { on_gpu: true, ..item("output", 1 << 30) },
                item("attention", 1 << 30),
                experts.clone(),
                experts,
            ],
            machine: Machine {
                gpu_bytes: 0,
                ram_bytes,
                cpu_seconds_per_byte: 1.0 / 10e9,
                gpu_seconds_per_byte: 1.0 / 400e9,
                fixed_seconds: 0.0,
                drive_seconds_per_byte: 1.0 / 2e9,
                read_overhead_seconds: 0.0,
            },
            dense_ring_bytes: 0,
            expert_ring_bytes: 1 << 29,
        }
    }

    #[test]
    fn the_block_in_the_log() {
        let problem = problem(5 << 30);
        let solution = solve(&problem).unwrap();
        let lines = solution.explain(&problem);
        assert_eq!(
            lines[..6],
            [
                "expert-streaming",
                "GPU: 1.00 GiB (output)",
                "RAM, for good: 1.00 GiB (attention)",
                "RAM, as needed: 3.50 GiB (experts)",
                "drive: 4.50 GiB (experts)",
                "RAM for weights: 5.00 GiB, of which 512.0 MiB for what passes through and 0.0 MiB free",
            ]
        );
        assert!(lines[6].starts_with("expected: ") && lines[6].ends_with("; limited by drive"), "{}", lines[6]);
        assert!(lines.len() <= 7 && lines.iter().all(|line| line.len() < 100), "{lines:?}");
    }

    #[test]
    fn a_resident_model_waits_for_nothing() {
        let problem = problem(20 << 30);
        let solution = solve(&problem).unwrap();
        let lines = solution.explain(&problem);
        assert_eq!(lines[0], "full-resident");
        assert!(lines.iter().all(|line| !line.contains("drive")), "{lines:?}");
        // 1 GiB of attention and two times two experts at 10 GB/s, and the GPU's part.
        assert_eq!(lines.last().unwrap(), "expected: 3.1 tokens per second; limited by memory bandwidth");
    }

    #[test]
    fn json_says_the_same() {
        let problem = problem(5 << 30);
        let solution = solve(&problem).unwrap();
        let json = solution.to_json(&problem);
        assert_eq!(json["mode"], "expert-streaming");
        assert_eq!(json["drive_bytes"], 9u64 << 29);
        assert_eq!(json["prediction"]["limit"], "drive");
        assert_eq!(json["items"][0]["on_gpu"], true);
        let slots: u64 = (2..4).map(|item| json["items"][item]["slots_in_ram"].as_u64().unwrap()).sum();
        assert_eq!(slots, 7);
    }

    #[test]
    fn figures_have_two_digits() {
        let figures = [0.012345, 0.12345, 1.2345, 12.345, 123.45].map(rounded);
        assert_eq!(figures, ["0.012", "0.12", "1.2", "12", "123"]);
    }
}
