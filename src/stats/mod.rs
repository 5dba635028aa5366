//! Counters of a running model and their JSON form, whose keys other tools rely on.

mod statistics;
mod writer;

pub use statistics::{FIGURES, Figure, LayerStatistics, Statistics};
pub use writer::StatsWriter;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Adds a time, kept in nanoseconds.
    pub fn add_time(&self, time: Duration) {
        self.add(time.as_nanos() as u64);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A time that was counted.
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.get())
    }

    fn seconds(&self) -> f64 {
        self.get() as f64 / 1e9
    }
}

/// How well a source of predictions foresees.
#[derive(Debug, Default)]
pub struct Recall {
    /// Experts that layers wanted and that had been named.
    pub right: Counter,
    /// Experts that the layers wanted of which it named some.
    pub wanted: Counter,
}

impl Recall {
    /// The share that was foreseen, if anything was wanted.
    fn recall(&self) -> Option<f64> {
        let wanted = self.wanted.get();
        (wanted > 0).then(|| self.right.get() as f64 / wanted as f64)
    }
}

/// What a session counts. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of weights read from the drive.
    pub read_bytes: Counter,
    /// Time with at least one read in flight.
    pub read_time: Counter,
    /// Time that a fetch waited for bytes.
    pub stall_time: Counter,
    /// Experts that were in RAM through earlier use when asked for.
    pub expert_hits: Counter,
    /// Experts that had to be read, when asked for or ahead of that.
    pub expert_misses: Counter,
    /// Experts that the host had a copy of, in the memory of a GPU.
    pub device_hits: Counter,
    /// Bytes of such copies that were moved into slots when they were dropped.
    pub rescued_bytes: Counter,
    /// Rows of tables that were looked up.
    pub rows: Counter,
    /// Pieces of tables that had to be read for that.
    pub row_reads: Counter,
    /// Those of them that were read before anybody waited for them, because the tokens were known.
    pub row_reads_ahead: Counter,
    /// Time that computing waited for rows.
    pub row_stall_time: Counter,
    /// Blocks read before they were asked for.
    pub prefetch_issued: Counter,
    /// Those that were asked for later, while still there.
    pub prefetch_used: Counter,
    /// Those that were taken back before their read began.
    pub prefetch_cancelled: Counter,
    /// Prefetches that were read, and not wanted where they were foreseen.
    pub prefetch_wasted: Counter,
    /// Blocks of experts that a layer to come was certain to use, read for that before it wanted them; not among the prefetched.
    pub certain_reads: Counter,
    /// Their bytes.
    pub certain_bytes: Counter,
    /// Those that were asked for later, while still there.
    pub certain_used: Counter,
    /// Blocks that were known to be wanted and had no room until they were.
    pub certain_without_room: Counter,
    /// Blocks that were missing although they follow from the tokens, because nobody had said so.
    pub certain_unknown: Counter,
    /// Time that layers waited for bytes whose experts follow from the tokens.
    pub certain_stall_time: Counter,
    /// Blocks read at the start because earlier runs used them much.
    pub warm_reads: Counter,
    /// What routers named, applied one layer early.
    pub by_router: Recall,
    /// What the usage profile named.
    pub by_profile: Recall,
    /// Experts that steps of a token wanted, of all layers but the first one.
    pub wanted_in_steps: Counter,
    /// Tokens computed, prompts included.
    pub tokens: Counter,
    /// Failed reads and failed verifications.
    pub errors: Counter,
}

impl Counters {
    /// How fast the drive has been while it was reading; `None` before it was.
    pub fn read_bytes_per_second(&self) -> Option<f64> {
        let seconds = self.read_time.seconds();
        (seconds > 0.0).then(|| self.read_bytes.get() as f64 / seconds)
    }

    /// Of what steps of a token wanted of layers that another one comes before, the share in layers that a router was asked for.
    fn lookahead_coverage(&self) -> Option<f64> {
        let wanted = self.wanted_in_steps.get();
        (wanted > 0).then(|| (self.by_router.wanted.get() as f64 / wanted as f64).min(1.0))
    }

    /// What is known of a run: `told` has what the counters do not know.
    pub fn statistics(&self, told: Statistics) -> Statistics {
        Statistics {
            read_bytes: self.read_bytes.get(),
            read_seconds: self.read_time.seconds(),
            stall_seconds: self.stall_time.seconds(),
            expert_hits: self.expert_hits.get(),
            expert_misses: self.expert_misses.get(),
            vram_hits: self.device_hits.get(),
            vram_rescued_bytes: self.rescued_bytes.get(),
            rows: self.rows.get(),
            row_reads: self.row_reads.get(),
            row_reads_ahead: self.row_reads_ahead.get(),
            row_stall_seconds: self.row_stall_time.seconds(),
            prefetch_issued: self.prefetch_issued.get(),
            prefetch_used: self.prefetch_used.get(),
            prefetch_cancelled: self.prefetch_cancelled.get(),
            prefetch_wasted: self.prefetch_wasted.get(),
            lookahead_recall: self.by_router.recall(),
            lookahead_coverage: self.lookahead_coverage(),
            habit_recall: self.by_profile.recall(),
            certain_reads: self.certain_reads.get(),
            certain_bytes: self.certain_bytes.get(),
            certain_used: self.certain_used.get(),
            certain_without_room: self.certain_without_room.get(),
            certain_unknown: self.certain_unknown.get(),
            certain_stall_seconds: self.certain_stall_time.seconds(),
            warm_reads: self.warm_reads.get(),
            tokens: self.tokens.get(),
            errors: self.errors.get(),
            ..told
        }
    }
}
