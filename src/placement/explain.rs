//! A placement in words, and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Placement;
use crate::forecast::{Prediction, Problem, Residency};
use crate::plan::in_gigabytes;

impl Placement {
    /// At most nine short lines for the log: how the model runs, what lives where, in how much memory, how fast that
    /// is expected to be, and what limits it.
    pub fn explain(&self) -> Vec<String> {
        let (problem, tiers) = (&self.problem, &self.tiers);
        let mut lines = vec![self.mode.name().to_owned()];
        let place = |name: &str, bytes: u64, parts: &dyn Fn(&Residency, usize) -> bool| {
            let roles = roles(problem, &self.residencies, parts);
            (bytes > 0).then(|| format!("{name}: {} ({roles})", in_gigabytes(bytes)))
        };
        // Of experts, some of which are on the drive, those in RAM change.
        let changes = |residency: &Residency, count: usize| matches!(residency, Residency::Host { slots } if *slots > 0 && *slots < count);
        let changing_bytes: u64 = problem
            .items
            .iter()
            .zip(&self.residencies)
            .map(|(item, residency)| match residency {
                Residency::Host { slots } if changes(residency, item.slot_count) => item.slot_bytes * *slots as u64,
                _ => 0,
            })
            .sum();
        let changing_bytes = changing_bytes.saturating_sub(tiers.vram);
        lines.extend(place("GPU", tiers.gpu - tiers.vram, &|residency, _| *residency == Residency::Gpu));
        lines.extend(place("other machines", tiers.remote, &|residency, _| *residency == Residency::Remote));
        lines.extend(place(
            "RAM, for good",
            tiers.ram - changing_bytes,
            &|residency, count| matches!(residency, Residency::Host { slots } if *slots == count),
        ));
        if tiers.vram > 0 {
            lines.push(format!("GPU, as needed: {} (experts)", in_gigabytes(tiers.vram)));
        }
        lines.extend(place("RAM, as needed", changing_bytes, &changes));
        lines.extend(place(
            "drive",
            tiers.drive,
            &|residency, count| matches!(residency, Residency::Host { slots } if *slots < count),
        ));
        let free = self.ram_bytes.saturating_sub(tiers.ram + tiers.ring);
        let ring = match tiers.ring {
            0 => String::new(),
            bytes => format!("{} for what passes through and ", in_gigabytes(bytes)),
        };
        lines.push(format!(
            "RAM for weights: {}, of which {ring}{} free",
            in_gigabytes(self.ram_bytes),
            in_gigabytes(free)
        ));
        lines.push(self.prediction.sentence());
        lines
    }

    /// As JSON, in short.
    pub fn summary(&self) -> Value {
        let tiers = &self.tiers;
        json!({
            "mode": self.mode.name(),
            "gpu_bytes": tiers.gpu,
            "vram_bytes": tiers.vram,
            "remote_bytes": tiers.remote,
            "ram_bytes": tiers.ram,
            "ring_bytes": tiers.ring,
            "slots_bytes": self.pool_bytes,
            "drive_bytes": tiers.drive,
            "ram_budget_bytes": self.ram_bytes,
            "divided_by": self.divided.name(),
            "prediction": self.prediction.to_json(),
            "learned": self.learned.to_json(),
        })
    }

    /// As JSON: the same facts, and where every item is.
    pub fn to_json(&self) -> Value {
        let items = self.problem.items.iter().zip(&self.residencies).map(|(item, residency)| {
            let slots = match residency {
                Residency::Gpu | Residency::Remote => Value::Null,
                Residency::Host { slots } => json!(slots),
            };
            json!({
                "layer": item.layer,
                "role": item.role,
                "tensors": item.tensors,
                "bytes": item.bytes(),
                "slot_count": item.slot_count,
                "on_gpu": *residency == Residency::Gpu,
                "is_remote": *residency == Residency::Remote,
                "slots_in_ram": slots,
            })
        });
        let items: Vec<Value> = items.collect();
        let mut json = self.summary();
        json["items"] = items.into();
        json
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

/// The roles of items in certain residencies, those with most bytes first.
fn roles(problem: &Problem, residencies: &[Residency], is_there: &dyn Fn(&Residency, usize) -> bool) -> String {
    const NAMED_MAX: usize = 4;
    let mut totals: Vec<(&str, u64)> = Vec::new();
    for (item, residency) in problem.items.iter().zip(residencies) {
        if is_there(residency, item.slot_count) {
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
    use super::*;
    use crate::placement::solver_tests::{dense, experts, task};
    use crate::placement::{Allocation, Task};
    use crate::plan::Mode;

    /// A GiB on a GPU, another that stays in RAM, and two layers of experts of half a GiB each.
    fn layers() -> Task {
        let mut fixed = [dense(1 << 30, 0), dense(1 << 30, 0)];
        fixed.iter_mut().for_each(|(_, held)| *held = Allocation::Fixed);
        fixed[0].0.is_elsewhere = true;
        (fixed[0].0.role, fixed[1].0.role) = ("output".to_owned(), "attention".to_owned());
        let mut items = fixed.to_vec();
        for _ in 0..2 {
            let mut layer = experts(1 << 29, &[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], &[0]);
            layer.0.role = "experts".to_owned();
            items.push(layer);
        }
        let mut task = task(items, &[(1 << 29, false)]);
        task.problem.machine.cpu_seconds_per_byte = 1.0 / 10e9;
        task.problem.machine.gpu_seconds_per_byte = 1.0 / 400e9;
        task.problem.machine.drive_seconds_per_byte = 1.0 / 2e9;
        task
    }

    #[test]
    fn the_block_in_the_log() {
        let mut task = layers();
        let lines = task.place(7 << 29).unwrap().explain();
        let expected = [
            "expert-streaming",
            "GPU: 1.00 GiB (output)",
            "RAM, for good: 1.00 GiB (attention)",
            "RAM, as needed: 3.50 GiB (experts)",
            "drive: 4.50 GiB (experts)",
            "RAM for weights: 4.50 GiB, of which 0.0 MiB free",
        ];
        assert_eq!(lines[..6], expected);
        assert!(lines[6].starts_with("expected: ") && lines[6].ends_with("; limited by drive"), "{}", lines[6]);
        assert!(lines.len() <= 7 && lines.iter().all(|line| line.len() < 100), "{lines:?}");
        task.problem.vram_bytes = 2 << 29;
        let lines = task.place(7 << 29).unwrap().explain();
        assert_eq!(
            lines[3..6],
            ["GPU, as needed: 1.00 GiB (experts)", "RAM, as needed: 3.50 GiB (experts)", "drive: 3.50 GiB (experts)"]
        );
    }

    #[test]
    fn what_another_machine_has_is_told() {
        let mut task = layers();
        task.problem.items[0].is_remote = true;
        let placement = task.place(7 << 29).unwrap();
        assert_eq!(placement.explain()[1], "other machines: 1.00 GiB (output)");
        let json = placement.to_json();
        assert_eq!((&json["remote_bytes"], &json["gpu_bytes"]), (&(1u64 << 30).into(), &0.into()));
        assert_eq!((&json["items"][0]["is_remote"], &json["items"][0]["slots_in_ram"]), (&true.into(), &Value::Null));
    }

    #[test]
    fn a_resident_model_waits_for_nothing() {
        let mut task = layers();
        task.allocation.fill(Allocation::Fixed);
        (task.classes, task.mode) = (typed_index_collections::TiVec::new(), Mode::Resident);
        let lines = task.place(0).unwrap().explain();
        assert_eq!(lines[0], "full-resident");
        assert!(lines.iter().all(|line| !line.contains("drive")), "{lines:?}");
        // 1 GiB of attention and two times two experts at 10 GB/s, and the GPU's part.
        assert_eq!(lines.last().unwrap(), "expected: 3.1 tokens per second; limited by memory bandwidth");
    }

    #[test]
    fn json_says_the_same() {
        let json = layers().place(7 << 29).unwrap().to_json();
        assert_eq!(json["mode"], "expert-streaming");
        assert_eq!(json["drive_bytes"], 9u64 << 29);
        assert_eq!((&json["prediction"]["limit"], &json["divided_by"]), (&"drive".into(), &"rule".into()));
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
