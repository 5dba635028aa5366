//! How to read from a drive: engine, block size, depth, direct or through the page cache. Chosen by measurement on the
//! model's own file, and kept per device.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Tuning;
use super::probe::{ReadSpeed, destination, destination_bytes_min, measure};
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

/// One measurement, and how many of them are made of each setting.
const PROBE_TIME: Duration = Duration::from_millis(40);
const ROUNDS: usize = 3;

/// Memory that is read into: far more than a processor's cache, but no more than one part in so many of what is
/// available.
const DESTINATION_BYTES: usize = 256 << 20;
const MEMORY_SHARE: u64 = 8;

/// By how much another setting must be faster to be taken: less is noise, and the setting to start from is good on most
/// drives.
const GAIN: f64 = 1.1;

/// The same for fewer bytes in flight, which are too few when cores are busy, as they are not while this is measured.
const GAIN_SHALLOW: f64 = 1.5;

/// The reads by which it is found what a read costs beyond its bytes.
const SMALL_BYTES: usize = 64 << 10;

/// Chooses how to read these files: what the settings demand, else what is remembered of the device, else what a
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

/// One step of the search.
type Change = fn(Tuning) -> Tuning;

/// The search for the best setting, one dimension after the other.
pub(super) struct Search<'a> {
    pub(super) config: &'a Config,
    can_be_direct: bool,
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
            DirectSetting::Auto => self.can_be_direct || !tuning.direct,
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
        let mut probe = |tuning: &Tuning| -> Result<ReadSpeed> {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let files = if tuning.direct { direct_files } else { &buffered_files };
            measure(files, tuning, PROBE_TIME, seed, &mut arena)
        };
        // The first measurement pays for waking the drive; it is not counted.
        probe(&start)?;
        let mut best = start;
        let mut probed: Vec<(Tuning, f64)> = Vec::new();
        // Each line is a list of changes to try on the best setting so far, cheaper ones first.
        let dimensions: [&[Change]; 4] = [
            &[
                |tuning| Tuning { depth: 1, ..tuning },
                |tuning| Tuning { depth: 2, ..tuning },
                |tuning| Tuning { depth: 8, ..tuning },
                |tuning| Tuning { depth: 16, ..tuning },
            ],
            &[
                |tuning| Tuning { block_bytes: 128 << 10, ..tuning },
                |tuning| Tuning { block_bytes: 1 << 20, ..tuning },
                |tuning| Tuning { block_bytes: 16 << 20, ..tuning },
            ],
            &[|tuning| Tuning { engine: EngineKind::Threads, ..tuning }],
            &[|tuning| Tuning { direct: false, ..tuning }],
        ];
        for changes in dimensions {
            let is_possible =
                |other: &Tuning| *other != best && self.allows(other) && destination_bytes_min(other) <= arena_bytes;
            let others = changes.iter().map(|change| change(best)).filter(is_possible);
            let candidates: Vec<Tuning> = std::iter::once(best).chain(others).collect();
            let speeds = in_turn(&candidates, |candidate| {
                let speed = probe(candidate).map_or(0.0, |speed| speed.bytes_per_second);
                probed.push((*candidate, speed));
                speed
            });
            let mut speed = speeds[0];
            for (candidate, &found) in candidates.iter().zip(&speeds) {
                tracing::debug!("read speed: {:.2} GB/s with {candidate}", found / 1e9);
                let is_shallow = candidate.depth * candidate.block_bytes < DEPTH * BLOCK_BYTES;
                let gain = if is_shallow { GAIN_SHALLOW } else { GAIN };
                if found > speed.max(speeds[0] * gain) {
                    (best, speed) = (*candidate, found);
                }
            }
        }
        // The best was measured along with most others: all of it together tells more of a drive that is slow now and
        // then.
        let speed = median(probed.iter().filter(|(tuning, _)| *tuning == best).map(|&(_, speed)| speed).collect());
        best.bytes_per_second = Some(speed);
        let small = probe(&Tuning { block_bytes: SMALL_BYTES, ..best })?.bytes_per_second;
        best.read_overhead_seconds = Some((SMALL_BYTES as f64 * (1.0 / small - 1.0 / speed)).max(0.0));
        tracing::info!("measured the drive in {} ms: {:.2} GB/s with {best}", began.elapsed().as_millis(), speed / 1e9,);
        self.remember(&best);
        Ok(best)
    }
}

/// The median speed of each setting in bytes per second. They take turns, because a drive's speed changes while it is
/// measured and other programs use it too. A setting that the system refuses has none.
fn in_turn(candidates: &[Tuning], mut probe: impl FnMut(&Tuning) -> f64) -> Vec<f64> {
    let mut speeds = vec![Vec::new(); candidates.len()];
    for _ in 0..ROUNDS {
        for (candidate, speeds) in candidates.iter().zip(&mut speeds) {
            speeds.push(probe(candidate));
        }
    }
    speeds.into_iter().map(median).collect()
}

/// The upper one of two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
