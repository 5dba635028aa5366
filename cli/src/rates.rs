//! What happened between two snapshots of libhypura's statistics.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hypura::stats::Statistics;

use crate::format;

/// A snapshot, and when it was taken.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When the file was written.
    pub at: SystemTime,
    /// What it says.
    pub statistics: Statistics,
}

impl Snapshot {
    /// The latest; `None` while there is none.
    pub fn read(path: &Path) -> Option<Self> {
        let at = std::fs::metadata(path).ok()?.modified().ok()?;
        Some(Self { at, statistics: serde_json::from_slice(&std::fs::read(path).ok()?).ok()? })
    }

    /// How much a counter has grown since an earlier snapshot.
    pub fn growth(&self, counter: impl Fn(&Statistics) -> f64, before: &Self) -> f64 {
        counter(&self.statistics) - counter(&before.statistics)
    }
}

/// Speeds between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Tokens per second, prompts included.
    pub tokens: f64,
    /// The share of experts that were in RAM; `None` when none was asked for.
    pub hits: Option<f64>,
    /// Bytes per second read from the drive.
    pub read_bytes: f64,
    /// The share of the time that computing waited for the drive.
    pub stalled: f64,
}

impl Rates {
    /// Between two snapshots of one run; `None` when no time has passed.
    pub fn between(before: &Snapshot, after: &Snapshot) -> Option<Self> {
        let seconds = after.at.duration_since(before.at).ok()?.as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let growth = |counter: fn(&Statistics) -> f64| after.growth(counter, before).max(0.0);
        let (hits, misses) = (growth(|of| of.expert_hits as f64), growth(|of| of.expert_misses as f64));
        Some(Self {
            tokens: growth(|of| of.tokens as f64) / seconds,
            hits: (hits + misses > 0.0).then(|| hits / (hits + misses)),
            read_bytes: growth(|of| of.read_bytes as f64) / seconds,
            stalled: (growth(|of| of.stall_seconds) / seconds).min(1.0),
        })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let hits = self.hits.map_or(String::new(), |hits| format!("{:.0}% hits · ", 100.0 * hits));
        let read = format::rate(self.read_bytes);
        format!("{:.1} tok/s · {hits}reading {read} · waiting {:.0}%", self.tokens, 100.0 * self.stalled)
    }
}

/// Follows a file of statistics.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    last: Option<Snapshot>,
    rates: Option<Rates>,
}

impl Follower {
    /// Follows a file that need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, last: None, rates: None }
    }

    /// What is known by now, in one line.
    pub fn line(&mut self) -> String {
        if let Some(now) = Snapshot::read(&self.path) {
            match &self.last {
                Some(last) if now.at > last.at => self.rates = Rates::between(last, &now).or(self.rates),
                _ => {}
            }
            self.last = Some(now);
        }
        match (&self.rates, &self.last) {
            (Some(rates), Some(last)) => {
                let resident = format::bytes(last.statistics.resident_bytes);
                format!("{} · {resident} of streamed weights in RAM", rates.line())
            }
            (_, Some(_)) => "streaming begins".to_owned(),
            (_, None) => "nothing is streamed so far".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::scratch::Scratch;

    fn snapshot(seconds: u64, statistics: serde_json::Value) -> Snapshot {
        let statistics = serde_json::from_value(statistics).unwrap();
        Snapshot { at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), statistics }
    }

    #[test]
    fn rates_are_growth_by_time() {
        let before = snapshot(10, json!({"tokens": 5, "read_bytes": 100, "stall_seconds": 1, "expert_hits": 2}));
        let after = snapshot(
            12,
            json!({"tokens": 25, "read_bytes": 2_000_000_100_u64, "stall_seconds": 1.5, "expert_hits": 5, "expert_misses": 1}),
        );
        let rates = Rates::between(&before, &after).unwrap();
        assert_eq!(rates, Rates { tokens: 10.0, hits: Some(0.75), read_bytes: 1e9, stalled: 0.25 });
        assert_eq!(rates.line(), "10.0 tok/s · 75% hits · reading 1.00 GB/s · waiting 25%");
        assert_eq!(Rates::between(&after, &before), None, "time does not run backwards");
        let dense = Rates::between(&snapshot(0, json!({})), &snapshot(1, json!({"tokens": 1}))).unwrap();
        assert_eq!(dense.line(), "1.0 tok/s · reading 0 MB/s · waiting 0%");
    }

    #[test]
    fn a_file_is_followed_from_before_it_exists() {
        let directory = Scratch::make("follow").unwrap();
        let path = directory.path().join("stats.json");
        let mut follower = Follower::new(path.clone());
        assert_eq!(follower.line(), "nothing is streamed so far");
        let write = |seconds: u64, tokens: u64| {
            std::fs::write(&path, json!({"tokens": tokens, "resident_bytes": 1 << 20}).to_string()).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        write(10, 0);
        assert_eq!(follower.line(), "streaming begins");
        write(12, 6);
        let line = follower.line();
        assert!(line.starts_with("3.0 tok/s") && line.ends_with("1.00 MiB of streamed weights in RAM"), "{line}");
        assert_eq!(follower.line(), line, "it stays until there is something newer");
    }
}
