//! The statistics of a model as programs see them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What `HYPURA_STATS` and hypura_model_stats_json() tell, what `hypura serve` passes on at `/metrics` and to its live page, and what
/// `hypura run` and `hypura bench` compute rates from. Keys that a file lacks, because another version wrote it, are zero or null; keys
/// are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// How the model runs.
    pub mode: String,
    /// All tensors of the model.
    pub model_bytes: u64,
    /// Streamed weights that are in RAM now.
    pub resident_bytes: u64,
    /// The same of each layer of which something is streamed, in order. What is outside the layers comes last.
    pub layers: Vec<LayerStatistics>,
    /// What streamed weights may occupy; 0 before the first compute.
    pub budget_bytes: u64,
    /// Bytes of weights read.
    pub read_bytes: u64,
    /// Bytes that reads found in the page cache, and did not trouble the drive for.
    pub page_cache_bytes: u64,
    /// Time with at least one read in flight.
    pub read_seconds: f64,
    /// Time that computing waited for weights.
    pub stall_seconds: f64,
    /// Experts that were in RAM through earlier use when asked for.
    pub expert_hits: u64,
    /// Experts that had to be read, when asked for or ahead of that.
    pub expert_misses: u64,
    /// Memory of GPUs that holds copies of experts.
    pub vram_bytes: u64,
    /// The most that it was.
    pub vram_bytes_max: u64,
    /// Experts that the host had a copy of, in the memory of a GPU.
    pub vram_hits: u64,
    /// Bytes of such copies that were moved into slots when they were dropped.
    pub vram_rescued_bytes: u64,
    /// Rows of tables that were looked up.
    pub rows: u64,
    /// Pieces of tables that had to be read for that.
    pub row_reads: u64,
    /// Those of them that were read before anybody waited for them, because the tokens were known.
    pub row_reads_ahead: u64,
    /// Time that computing waited for rows.
    pub row_stall_seconds: f64,
    /// Blocks read before they were asked for.
    pub prefetch_issued: u64,
    /// Those that were asked for later, while still there.
    pub prefetch_used: u64,
    /// Those that were taken back before their read began.
    pub prefetch_cancelled: u64,
    /// Prefetches that were read, and not wanted where they were foreseen.
    pub prefetch_wasted: u64,
    /// Whether reading what is foreseen made computing wait less, as far as that is known.
    pub prefetch_pays: Option<bool>,
    /// Of the experts wanted where a router was applied early, the share that it named.
    pub lookahead_recall: Option<f64>,
    /// Of what steps of a token wanted of layers that another one comes before, the share in layers that a router was asked for.
    pub lookahead_coverage: Option<f64>,
    /// Of the experts wanted where the usage profile was asked, the share that it named.
    pub habit_recall: Option<f64>,
    /// Blocks of experts that a layer to come was certain to use, read for that before it wanted them; not among the prefetched.
    pub certain_reads: u64,
    /// Their bytes.
    pub certain_bytes: u64,
    /// Those that were asked for later, while still there.
    pub certain_used: u64,
    /// Blocks that were known to be wanted and had no room until they were.
    pub certain_without_room: u64,
    /// Blocks that were missing although they follow from the tokens, because nobody had said so.
    pub certain_unknown: u64,
    /// Time that layers waited for bytes whose experts follow from the tokens.
    pub certain_stall_seconds: f64,
    /// Blocks read at the start because earlier runs used them much.
    pub warm_reads: u64,
    /// Tokens computed, prompts included.
    pub tokens: u64,
    /// Whether reads bypass the page cache.
    pub direct_io: bool,
    /// The engine that reads.
    pub io_engine: String,
    /// What lives where and how fast that should be; null before the first compute.
    pub plan: Value,
    /// Generated tokens per second that were expected, of one sequence.
    pub predicted_tokens_per_second: Option<f64>,
    /// Those of the latest steps, prompts and pauses left out, once there were some.
    pub measured_tokens_per_second: Option<f64>,
    /// Failed reads and failed verifications.
    pub errors: u64,
}

impl Statistics {
    /// As JSON.
    pub fn to_json(&self) -> String {
        // No key is anything but a string, and no value anything that JSON lacks but for numbers that are not finite: those become null.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A figure among the statistics, for programs that collect such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its key.
    pub key: &'static str,
    /// Whether it only grows while a model is loaded.
    pub is_counter: bool,
    /// What it says, in a sentence.
    pub help: &'static str,
}

const fn counter(key: &'static str, help: &'static str) -> Figure {
    Figure { key, is_counter: true, help }
}

const fn gauge(key: &'static str, help: &'static str) -> Figure {
    Figure { key, is_counter: false, help }
}

/// All keys of [`Statistics`] that are numbers.
pub const FIGURES: &[Figure] = &[
    counter("tokens", "Tokens computed, prompts included."),
    counter("read_bytes", "Bytes of weights read."),
    counter("page_cache_bytes", "Bytes that reads found in the page cache, and did not trouble the drive for."),
    counter("read_seconds", "Time with at least one read in flight."),
    counter("stall_seconds", "Time that computing waited for weights."),
    counter("expert_hits", "Experts that were in RAM through earlier use."),
    counter("expert_misses", "Experts that had to be read, when needed or ahead of that."),
    counter("prefetch_issued", "Blocks read ahead of need."),
    counter("prefetch_used", "Blocks read ahead that were needed later."),
    counter("prefetch_cancelled", "Blocks to be read ahead that were taken back before their read began."),
    counter("prefetch_wasted", "Blocks read ahead that were not wanted where they were foreseen."),
    counter("vram_hits", "Experts that a GPU's memory held a copy of."),
    counter("vram_rescued_bytes", "Bytes of such copies that were moved into slots when they were dropped."),
    counter("rows", "Rows of tables that were looked up."),
    counter("row_reads", "Pieces of tables that had to be read for that."),
    counter("row_reads_ahead", "Those of them that were read before anybody waited for them."),
    counter("row_stall_seconds", "Time that computing waited for rows."),
    counter("certain_reads", "Blocks of experts that follow from the tokens, read before their layer came."),
    counter("certain_bytes", "Their bytes."),
    counter("certain_used", "Those that were needed later."),
    counter("certain_without_room", "Blocks that were known to be needed and had no room until they were."),
    counter("certain_unknown", "Blocks that were missing although they follow from the tokens."),
    counter("certain_stall_seconds", "Time that computing waited for experts that follow from the tokens."),
    counter("warm_reads", "Blocks read at the start because earlier runs used them much."),
    counter("errors", "Failed reads and verifications."),
    gauge("model_bytes", "Bytes of all weights of the model."),
    gauge("resident_bytes", "Streamed weights that are in RAM now."),
    gauge("budget_bytes", "What streamed weights may occupy."),
    gauge("vram_bytes", "Memory of GPUs that holds copies of experts."),
    gauge("vram_bytes_max", "The most that it was."),
    gauge(
        "lookahead_coverage",
        "Of the experts wanted after a token's first layer, the share for which a router was asked.",
    ),
    gauge("lookahead_recall", "Of the experts wanted where a router was applied early, the share that it named."),
    gauge("habit_recall", "Of the experts wanted where habits were asked, the share that they named."),
    gauge("predicted_tokens_per_second", "The planner's prediction."),
    gauge("measured_tokens_per_second", "The speed of the latest steps, prompts and pauses left out."),
];

/// What is streamed of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerStatistics {
    /// Its number; `None` of what is outside the layers.
    pub layer: Option<u32>,
    /// All of it, but tables, of which rows are held and no blocks.
    pub streamed_bytes: u64,
    /// What of it is in RAM now.
    pub resident_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With every number there, a fraction where there may be one.
    fn full() -> Statistics {
        Statistics {
            read_seconds: 0.5,
            stall_seconds: 0.5,
            row_stall_seconds: 0.5,
            certain_stall_seconds: 0.5,
            lookahead_recall: Some(0.5),
            lookahead_coverage: Some(0.5),
            habit_recall: Some(0.5),
            predicted_tokens_per_second: Some(0.5),
            measured_tokens_per_second: Some(0.5),
            ..Statistics::default()
        }
    }

    #[test]
    fn every_number_is_a_figure_and_every_figure_a_number() {
        let json: Value = serde_json::from_str(&full().to_json()).unwrap();
        let numbers = json.as_object().unwrap().iter().filter(|(_, value)| value.is_number());
        let mut numbers: Vec<&str> = numbers.map(|(key, _)| key.as_str()).collect();
        let mut figures: Vec<&str> = FIGURES.iter().map(|figure| figure.key).collect();
        numbers.sort_unstable();
        figures.sort_unstable();
        assert_eq!(numbers, figures);
    }

    #[test]
    fn what_was_written_is_read_and_other_versions_files_as_well() {
        assert_eq!(serde_json::from_str::<Statistics>(&full().to_json()).unwrap(), full());
        let older: Statistics =
            serde_json::from_str(r#"{"tokens": 5, "prefetch_pays": null, "unheard_of": 1}"#).unwrap();
        assert_eq!(older, Statistics { tokens: 5, ..Statistics::default() });
    }
}
