//! All runs of a bench: medians, the roofline, a table, JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::caches::Dropped;
use super::kind::Kind;
use super::runs::{Run, Streaming};
use crate::format::{Table, bytes, figure, rate, seconds};

/// What was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the model is called.
    pub title: String,
    /// Its first file.
    pub file: PathBuf,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// The memory limit of the first two kinds; `None` where none could be set.
    pub limit_bytes: Option<u64>,
    /// What was forgotten before each run.
    pub dropped: Dropped,
    /// The planner's seconds of computing a token, for models that do not fit in memory.
    pub planned_compute_seconds: Option<f64>,
    /// In the order in which they were run.
    pub runs: BTreeMap<Kind, Vec<Run>>,
    /// What a reader of the figures should know.
    pub notes: Vec<String>,
}

/// The physical limit: a token takes the time of its computing or that of its reads, whichever is longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Computing a token when everything is in memory.
    pub compute_seconds: f64,
    /// Whether that was measured, or comes from the planner.
    pub is_measured: bool,
    /// Reading what was read for a token, at the drive's speed.
    pub read_seconds: f64,
}

impl Roofline {
    /// Seconds per token.
    pub fn seconds(&self) -> f64 {
        self.compute_seconds.max(self.read_seconds)
    }

    fn limit(&self) -> &'static str {
        if self.compute_seconds > self.read_seconds { "computing" } else { "the drive" }
    }
}

impl Report {
    fn median(&self, kind: Kind, figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        median(self.runs.get(&kind)?.iter().filter_map(figure).collect())
    }

    /// Tokens per second of a kind.
    pub fn speed(&self, kind: Kind) -> Option<f64> {
        self.median(kind, |run| run.tokens_per_second)
    }

    /// The slowest and the fastest run of a kind.
    pub fn spread(&self, kind: Kind) -> Option<(f64, f64)> {
        let speeds = || self.runs.get(&kind).into_iter().flatten().filter_map(|run| run.tokens_per_second);
        Some((speeds().min_by(f64::total_cmp)?, speeds().max_by(f64::total_cmp)?))
    }

    fn streaming(&self, figure: impl Fn(&Streaming) -> Option<f64>) -> Option<f64> {
        self.median(Kind::Streamed, |run| figure(run.streaming.as_ref()?))
    }

    /// The physical limit of streaming; `None` unless something was streamed and the drive measured.
    pub fn roofline(&self) -> Option<Roofline> {
        let measured = self.speed(Kind::Resident).map(|speed| 1.0 / speed);
        let drive = self.median(Kind::Streamed, |run| run.drive_bytes_per_second)?;
        let read_bytes = self.streaming(|streaming| Some(streaming.read_bytes_per_token))?;
        Some(Roofline {
            compute_seconds: measured.or(self.planned_compute_seconds)?,
            is_measured: measured.is_some(),
            read_seconds: read_bytes / drive,
        })
    }

    /// Whether all texts are equal as far as they go.
    pub fn texts_are_equal(&self) -> bool {
        let texts: Vec<&Vec<u64>> = self.runs.values().flatten().map(|run| &run.tokens).collect();
        let longest = texts.iter().max_by_key(|text| text.len());
        longest.is_none_or(|longest| texts.iter().all(|text| longest.starts_with(text)))
    }

    /// For people.
    pub fn text(&self) -> String {
        let limit =
            self.limit_bytes.map_or("no memory limit".to_owned(), |limit| format!("memory limit {}", bytes(limit)));
        let rounds = self.runs.values().map(Vec::len).max().unwrap_or(0);
        let runs = if rounds == 1 { "one run of each".to_owned() } else { format!("medians of {rounds} runs in turn") };
        let mut text = format!(
            "{}: {} of weights, {limit}, {runs}, {} dropped before each\n\n",
            self.title,
            bytes(self.weight_bytes),
            self.dropped.name()
        );
        let mut table = Table::new(&["", "tokens per second", "spread", "first token"]);
        let mut failures = String::new();
        for (&kind, runs) in &self.runs {
            if let Some(failure) = runs.iter().find_map(|run| run.failure.as_deref()) {
                failures.push_str(&format!("{}: {failure}\n", kind.title()));
            }
            let speed = self.speed(kind).map_or("failed".to_owned(), figure);
            let spread = self.spread(kind).filter(|(low, high)| low < high);
            let spread = spread.map_or("-".to_owned(), |(low, high)| format!("{} to {}", figure(low), figure(high)));
            let first = self.median(kind, |run| run.first_seconds).map_or("-".to_owned(), seconds);
            table.row(vec![kind.title().to_owned(), speed, spread, first]);
        }
        if let Some(roofline) = self.roofline() {
            let speed = figure(1.0 / roofline.seconds());
            table.row(vec![format!("roofline ({})", roofline.limit()), speed, "-".to_owned(), "-".to_owned()]);
        }
        text.push_str(&format!("{}\n{failures}{}", table.text(), self.facts()));
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        text
    }

    fn facts(&self) -> String {
        let mut text = String::new();
        let mut fact = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!("{name:<22}{value}\n"));
            }
        };
        let (ours, stock) = (self.speed(Kind::Streamed), self.speed(Kind::Mmap));
        fact("times mmap", ours.zip(stock).map(|(ours, stock)| figure(ours / stock)));
        let roofline = self.roofline();
        let share = ours.zip(roofline).map(|(speed, roofline)| 100.0 * speed * roofline.seconds());
        fact("share of the roofline", share.map(|share| format!("{share:.0}%")));
        fact("read per token", self.streaming(|s| Some(s.read_bytes_per_token)).map(|read| bytes(read as u64)));
        fact("waited per token", self.streaming(|s| Some(s.stall_seconds_per_token)).map(seconds));
        fact("hits", self.streaming(|s| s.hits).map(|hits| format!("{:.1}%", 100.0 * hits)));
        fact("drive, while reading", self.streaming(|s| s.reached_bytes_per_second).map(rate));
        fact("drive, as measured", self.median(Kind::Streamed, |run| run.drive_bytes_per_second).map(rate));
        fact(
            "computing a token",
            roofline.map(|roofline| {
                let source =
                    if roofline.is_measured { "measured" } else { "as planned: the model does not fit in memory" };
                format!("{} ({source})", seconds(roofline.compute_seconds))
            }),
        );
        if !text.is_empty() {
            text.push_str(if self.texts_are_equal() { "all texts are equal\n" } else { "" });
        }
        text
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let kinds = self.runs.iter().map(|(&kind, runs)| {
            let value = json!({
                "title": kind.title(),
                "tokens_per_second": self.speed(kind),
                "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
            });
            (kind.name().to_owned(), value)
        });
        let kinds: serde_json::Map<String, Value> = kinds.collect();
        let roofline = self.roofline().map(|roofline| {
            json!({
                "tokens_per_second": 1.0 / roofline.seconds(),
                "compute_seconds": roofline.compute_seconds,
                "compute_is_measured": roofline.is_measured,
                "read_seconds": roofline.read_seconds,
                "limit": roofline.limit(),
                "share": self.speed(Kind::Streamed).map(|speed| speed * roofline.seconds()),
            })
        });
        json!({
            "name": self.title,
            "file": self.file,
            "weight_bytes": self.weight_bytes,
            "memory_limit_bytes": self.limit_bytes,
            "caches_dropped": self.dropped.name(),
            "kinds": kinds,
            "roofline": roofline,
            "texts_are_equal": self.texts_are_equal(),
            "notes": self.notes,
        })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn run(speed: f64) -> Run {
        Run { tokens_per_second: Some(speed), first_seconds: Some(1.0), tokens: vec![1, 2, 3], ..Run::default() }
    }

    pub fn report() -> Report {
        let streaming = Streaming {
            read_bytes_per_token: 1e9,
            stall_seconds_per_token: 0.1,
            reached_bytes_per_second: Some(3.5e9),
            hits: Some(0.5),
            budget_bytes: 1,
        };
        let streamed = Run { streaming: Some(streaming), drive_bytes_per_second: Some(4e9), ..run(3.0) };
        Report {
            title: "model".to_owned(),
            file: "model.gguf".into(),
            weight_bytes: 8 << 30,
            limit_bytes: Some(4 << 30),
            dropped: Dropped::Files,
            planned_compute_seconds: Some(0.5),
            runs: BTreeMap::from([
                (Kind::Mmap, vec![run(0.4), run(0.6)]),
                (Kind::Streamed, vec![streamed.clone(), streamed]),
                (Kind::Resident, vec![run(10.0), run(10.0)]),
            ]),
            notes: vec!["<a note>".to_owned()],
        }
    }

    #[test]
    fn the_roofline_is_the_longer_of_computing_and_reading() {
        let mut report = report();
        let roofline = report.roofline().unwrap();
        assert_eq!(roofline, Roofline { compute_seconds: 0.1, is_measured: true, read_seconds: 0.25 });
        assert_eq!(report.to_json()["roofline"]["share"], 0.75);
        report.runs.remove(&Kind::Resident);
        let roofline = report.roofline().unwrap();
        assert_eq!((roofline.seconds(), roofline.is_measured, roofline.limit()), (0.5, false, "computing"));
        report.runs.remove(&Kind::Streamed);
        assert_eq!(report.roofline(), None);
    }

    #[test]
    fn the_table_says_it_all() {
        let text = report().text();
        for words in [
            "memory limit 4.00 GiB",
            "0.500  0.400 to 0.600",
            "roofline (the drive)",
            "times mmap            6.00",
            "75%",
            "read per token        954 MiB",
            "all texts are equal",
            "note: <a note>",
        ] {
            assert!(text.contains(words), "'{words}' is not in\n{text}");
        }
        let mut failed = report();
        failed.runs.insert(Kind::Mmap, vec![Run { failure: Some("too slow".to_owned()), ..Run::default() }]);
        let text = failed.text();
        assert!(text.contains("  failed") && text.contains("\nllama.cpp, mmap: too slow\n"), "{text}");
        assert!(failed.to_json()["kinds"]["mmap"]["tokens_per_second"].is_null());
    }

    #[test]
    fn texts_are_compared_as_far_as_they_go() {
        let mut report = report();
        report.runs.get_mut(&Kind::Mmap).unwrap()[0].tokens = vec![1, 2];
        assert!(report.texts_are_equal());
        report.runs.get_mut(&Kind::Mmap).unwrap()[0].tokens = vec![1, 3];
        assert!(!report.texts_are_equal());
    }
}
