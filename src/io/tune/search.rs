//! How to read from a drive: engine, block size, depth, direct or through the page cache. Chosen by measurement on the
//! model's own file, and kept per file system.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Tuning;
use super::probe::{Limit, ReadSpeed, destination, destination_bytes_min, measure};
use crate::config::{Config, DirectSetting, IoSetting};
use crate::error::{Error, ErrorCode, Result};
use crate::hw;
use crate::io::{DirectFile, EngineKind, uring_available};
use crate::memory::Backing;

/// Good on most drives: a few MiB-sized reads in flight saturate them. More than it would take on an idle machine,
/// because while all cores compute, the thread that keeps the drive busy may have to wait some milliseconds for its
/// turn.
const BLOCK_BYTES: usize = 4 << 20;
const DEPTH: usize = 4;

/// Below this a model is read before a measurement would have paid.
const WORTH_MEASURING_BYTES: u64 = 256 << 20;

/// What all measurements of a search may take together, whatever the drive: a user waits for it, and some pay for what they read.
const SEARCH_TIME: Duration = Duration::from_secs(1);
const SEARCH_BYTES: u64 = 256 << 20;

/// The first measurement, of small reads: it wakes the drive, and tells whether there is time for others.
const WAKE_BYTES: u64 = 8 << 20;
const WAKE_BLOCK_BYTES: usize = 512 << 10;

/// A drive that reads less per second is not searched: its time would be over before there was anything to compare.
const SEARCHED_BYTES_PER_SECOND: f64 = 400e6;

/// How long a setting's reads are counted at most, and what they read: of the one to start from, whose speed plans go by, and of others.
const PROBE_TIME: Duration = Duration::from_millis(60);
const START_BYTES: u64 = 96 << 20;
const OTHER_BYTES: u64 = 44 << 20;

/// Memory that is read into: far more than a processor's cache, but no more than one part in so many of what is
/// available.
const DESTINATION_BYTES: usize = 128 << 20;
const MEMORY_SHARE: u64 = 8;

/// The reads by which it is found what a read costs beyond its bytes.
const SMALL_BYTES: usize = 64 << 10;
const SMALL_TOTAL_BYTES: u64 = 8 << 20;

/// Chooses how to read these files: what the settings demand, else what is remembered of the file system, else what a
/// measurement of a fraction of a second finds.
///
/// # Errors
/// `Open` for a file that cannot be read, `Config` for direct I/O that is demanded and impossible.
pub fn tune(paths: &[PathBuf], config: &Config) -> Result<(Tuning, Arc<[DirectFile]>)> {
    let direct_files = open(paths, config.direct != DirectSetting::Off)?;
    let can_be_direct = direct_files.iter().all(DirectFile::is_direct);
    if config.direct == DirectSetting::On && !can_be_direct {
        let path = paths.first().map(|path| path.display().to_string()).unwrap_or_default();
        return Err(Error::new(
            ErrorCode::Config,
            format!("HYPURA_DIRECT=on, but the file system of {path} has no direct I/O; use auto or off"),
        ));
    }
    let engine = match (config.io, uring_available()) {
        (IoSetting::Threads, _) => EngineKind::Threads,
        (_, Ok(())) => EngineKind::Uring,
        (_, Err(reason)) => {
            tracing::warn!("reading with threads instead of io_uring: {reason}");
            EngineKind::Threads
        }
    };
    let start = Tuning {
        engine,
        block_bytes: BLOCK_BYTES,
        depth: DEPTH,
        direct: can_be_direct,
        bytes_per_second: None,
        read_overhead_seconds: None,
    };
    let size: u64 = direct_files.iter().map(DirectFile::opened_size).sum();
    let search = Search { config, can_be_direct, paths };
    let tuning = match search.remembered() {
        Some(tuning) => tuning,
        None if size < WORTH_MEASURING_BYTES => start,
        None => search.run(start, &direct_files)?,
    };
    let files = if tuning.direct == can_be_direct { direct_files } else { open(paths, tuning.direct)? };
    Ok((tuning, files))
}

fn open(paths: &[PathBuf], direct: bool) -> Result<Arc<[DirectFile]>> {
    paths.iter().map(|path| DirectFile::open(path, direct)).collect()
}

/// What makes one setting of another.
type Change = fn(Tuning) -> Tuning;

/// Another setting to try, and by how much it must be faster than the one to start from, which is good on most drives. Each is measured
/// once, for some milliseconds in which anything may happen; through the page cache is taken only where it is beyond doubt.
const OTHERS: [(Change, f64); 3] = [
    (|tuning| Tuning { block_bytes: 1 << 20, depth: 16, ..tuning }, 1.5),
    (|tuning| Tuning { engine: EngineKind::Threads, ..tuning }, 1.5),
    (|tuning| Tuning { direct: false, ..tuning }, 2.0),
];

/// The search for the best setting.
pub(super) struct Search<'a> {
    pub(super) config: &'a Config,
    pub(super) can_be_direct: bool,
    pub(super) paths: &'a [PathBuf],
}

impl Search<'_> {
    pub(super) fn allows(&self, tuning: &Tuning) -> bool {
        let engine = match self.config.io {
            IoSetting::Auto => true,
            IoSetting::Uring => tuning.engine == EngineKind::Uring,
            IoSetting::Threads => tuning.engine == EngineKind::Threads,
        };
        let direct = match self.config.direct {
            DirectSetting::Auto | DirectSetting::Cold => self.can_be_direct || !tuning.direct,
            DirectSetting::On => tuning.direct,
            DirectSetting::Off => !tuning.direct,
        };
        engine && direct && (tuning.engine == EngineKind::Threads || uring_available().is_ok())
    }

    fn run(&self, start: Tuning, direct_files: &Arc<[DirectFile]>) -> Result<Tuning> {
        let began = Instant::now();
        let buffered_files = open(self.paths, false)?;
        let mut seed = began.elapsed().as_nanos() as u64 ^ u64::from(std::process::id()) << 32;
        let mut arena = destination(DESTINATION_BYTES.min((hw::memory().available_bytes / MEMORY_SHARE) as usize))?;
        let arena_bytes = arena.length();
        if arena_bytes < destination_bytes_min(&start) {
            return Ok(start); // this is no time to take memory for a measurement
        }
        let probe = |tuning: &Tuning, limit: Limit| -> Result<ReadSpeed> {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let files = if tuning.direct { direct_files } else { &buffered_files };
            measure(files, tuning, limit, seed, &mut arena)
        };
        let is_possible = |other: &Tuning| self.allows(other) && destination_bytes_min(other) <= arena_bytes;
        let best = choose(start, is_possible, probe)?;
        let speed =
            best.bytes_per_second.map_or("too slow to tell".to_owned(), |speed| format!("{:.2} GB/s", speed / 1e9));
        tracing::info!("measured the drive in {} ms: {speed} with {best}", began.elapsed().as_millis());
        // A drive that said nothing in time may have been asleep.
        if best.bytes_per_second.is_some() {
            self.remember(&best);
        }
        Ok(best)
    }
}

/// Compares settings within the search's bounds; `probe` measures one.
fn choose(
    start: Tuning,
    is_possible: impl Fn(&Tuning) -> bool,
    mut probe: impl FnMut(&Tuning, Limit) -> Result<ReadSpeed>,
) -> Result<Tuning> {
    let (mut time_left, mut bytes_left) = (SEARCH_TIME, SEARCH_BYTES);
    let mut speed_of = |tuning: &Tuning, bytes: u64| -> Result<f64> {
        let limit = Limit { counted: PROBE_TIME, bytes: bytes.min(bytes_left), total: time_left };
        let found = probe(tuning, limit)?;
        time_left = time_left.saturating_sub(found.took);
        bytes_left -= found.read_bytes;
        tracing::debug!("read speed: {:.2} GB/s with {tuning}", found.bytes_per_second / 1e9);
        Ok(found.bytes_per_second)
    };
    let woken = speed_of(&Tuning { block_bytes: WAKE_BLOCK_BYTES, ..start }, WAKE_BYTES)?;
    if woken < SEARCHED_BYTES_PER_SECOND {
        return Ok(Tuning { bytes_per_second: (woken > 0.0).then_some(woken), ..start });
    }
    let start_speed = speed_of(&start, START_BYTES)?;
    if start_speed <= 0.0 {
        return Ok(start); // there is nothing to compare others with
    }
    let (mut best, mut speed) = (start, start_speed);
    for (change, gain) in OTHERS {
        let candidate = change(start);
        if candidate == start || !is_possible(&candidate) {
            continue;
        }
        // A setting that the system refuses has no speed.
        let found = speed_of(&candidate, OTHER_BYTES).unwrap_or(0.0);
        if found > speed.max(start_speed * gain) {
            (best, speed) = (candidate, found);
        }
    }
    let small = speed_of(&Tuning { block_bytes: SMALL_BYTES, ..best }, SMALL_TOTAL_BYTES)?;
    // Where the time was over before anything was read, a speed is 0: it is not known.
    best.bytes_per_second = (speed > 0.0).then_some(speed);
    let overhead_seconds = SMALL_BYTES as f64 * (1.0 / small - 1.0 / speed);
    best.read_overhead_seconds = (speed > 0.0 && small > 0.0).then_some(overhead_seconds.max(0.0));
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Tuning = Tuning {
        engine: EngineKind::Uring,
        block_bytes: BLOCK_BYTES,
        depth: DEPTH,
        direct: true,
        bytes_per_second: None,
        read_overhead_seconds: None,
    };

    /// What is chosen on a drive with these speeds, and what that took: bytes and time.
    fn chosen(speed: impl Fn(&Tuning) -> f64) -> (Tuning, u64, Duration) {
        let (mut bytes, mut time) = (0, Duration::ZERO);
        let probe = |tuning: &Tuning, limit: Limit| {
            let speed = speed(tuning);
            // What begins together is read whatever comes; then the first limit that is met ends it, but for what is in flight.
            let block = tuning.block_bytes as u64;
            let wanted = 2 * tuning.depth as u64 * block + (limit.counted.as_secs_f64() * speed) as u64;
            let in_time = (limit.total.as_secs_f64() * speed) as u64;
            let read_bytes = wanted.min(in_time.max(block)).min(limit.bytes);
            let took = Duration::from_secs_f64((read_bytes as f64 / speed).min(limit.total.as_secs_f64()));
            (bytes, time) = (bytes + read_bytes, time + took);
            let bytes_per_second = if in_time < block { 0.0 } else { speed };
            Ok(ReadSpeed { bytes_per_second, cpu_seconds_per_byte: 0.0, read_bytes, took })
        };
        let chosen = choose(START, |_| true, probe).unwrap();
        (chosen, bytes, time)
    }

    #[test]
    fn a_search_is_bounded_on_every_drive() {
        for speed in [1e3, 1e6, 30e6, 100e6, 390e6, 410e6, 1e9, 2e9, 7e9, 28e9] {
            let (found, bytes, time) = chosen(|_| speed);
            assert!(bytes <= SEARCH_BYTES && time <= SEARCH_TIME, "{speed:e}: {bytes} bytes in {time:?}");
            let known = if speed < 1e6 { None } else { Some(speed) };
            assert_eq!(
                found,
                Tuning { bytes_per_second: known, read_overhead_seconds: found.read_overhead_seconds, ..START }
            );
        }
    }

    #[test]
    fn a_drive_that_falls_silent_leaves_unknown_what_was_not_measured() {
        let silent_from = |first_silent: usize| {
            let mut count = 0;
            let probe = |_: &Tuning, limit: Limit| {
                count += 1;
                let bytes_per_second = if count < first_silent { 1e9 } else { 0.0 };
                Ok(ReadSpeed { bytes_per_second, cpu_seconds_per_byte: 0.0, read_bytes: 0, took: limit.total / 4 })
            };
            let Tuning { bytes_per_second, read_overhead_seconds, .. } = choose(START, |_| true, probe).unwrap();
            (bytes_per_second, read_overhead_seconds)
        };
        assert_eq!(silent_from(1), (None, None));
        assert_eq!(silent_from(2), (None, None));
        assert_eq!(silent_from(3), (Some(1e9), None));
        assert_eq!(silent_from(6), (Some(1e9), None));
    }

    #[test]
    fn another_setting_is_taken_where_it_is_clearly_faster() {
        let faster = |is_it: fn(&Tuning) -> bool, gain: f64| {
            let (found, bytes, _) = chosen(|tuning| if is_it(tuning) { 1e9 * gain } else { 1e9 });
            assert!(bytes <= SEARCH_BYTES);
            found
        };
        assert_eq!(faster(|tuning| tuning.depth == 16, 1.6).block_bytes, 1 << 20);
        assert_eq!(faster(|tuning| tuning.engine == EngineKind::Threads, 1.4).engine, EngineKind::Uring, "or noise");
        assert_eq!(faster(|tuning| tuning.engine == EngineKind::Threads, 1.6).engine, EngineKind::Threads);
        assert!(faster(|tuning| !tuning.direct, 1.9).direct);
        let buffered = faster(|tuning| !tuning.direct, 2.1);
        assert_eq!((buffered.direct, buffered.bytes_per_second), (false, Some(2.1e9)));
    }

    #[test]
    fn what_a_read_costs_beyond_its_bytes_is_found_by_small_ones() {
        let (found, ..) = chosen(|tuning| if tuning.block_bytes == SMALL_BYTES { 0.5e9 } else { 2e9 });
        let microseconds = found.read_overhead_seconds.unwrap() * 1e6;
        assert!((microseconds - 98.3).abs() < 0.1, "{microseconds}");
    }
}
