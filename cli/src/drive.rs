//! How fast the drive reads a model, past the page cache and in random order.

use std::path::PathBuf;
use std::time::Duration;

use hypura::config::Config;
use hypura::io::{Tuning, destination, measure, tune};

/// Below this a measurement would read the same few blocks again and again.
const WORTH_MEASURING_BYTES: u64 = 16 << 20;

/// Memory to read into, as weights are, and not into the processor's cache.
const DESTINATION_BYTES: usize = 256 << 20;

/// Blocks and depths that are tried beside the ones that libhypura has chosen: what suits most drives.
const SETTINGS: [(usize, usize); 4] = [(1 << 20, 16), (4 << 20, 4), (4 << 20, 16), (16 << 20, 4)];

/// What was measured.
#[derive(Clone, Debug)]
pub struct DriveSpeed {
    /// How libhypura reads these files.
    pub chosen: Tuning,
    /// Every setting, in bytes per second.
    pub measured: Vec<(Tuning, f64)>,
}

impl DriveSpeed {
    /// The best of all settings, in bytes per second.
    pub fn best(&self) -> f64 {
        self.measured.iter().map(|(_, speed)| *speed).fold(0.0, f64::max)
    }
}

/// Measurements that [`drive_speed`] makes at most.
pub const MEASUREMENTS: u64 = 1 + SETTINGS.len() as u64;

/// Measures with several settings, for so long with each, and calls `step` after each; `None` for files that are too small.
///
/// # Errors
/// A sentence when the files cannot be read.
pub fn drive_speed(paths: &[PathBuf], time: Duration, step: impl Fn()) -> Result<Option<DriveSpeed>, String> {
    let settings = SETTINGS.map(|(block_bytes, depth)| move |chosen| Tuning { block_bytes, depth, ..chosen });
    measured(paths, time, step, &settings)
}

/// Measures with the setting that libhypura has chosen only, unless that is remembered; bytes per second.
///
/// # Errors
/// As [`drive_speed`].
pub fn expected_speed(paths: &[PathBuf]) -> Result<Option<f64>, String> {
    const TIME: Duration = Duration::from_millis(100);
    let none: [fn(Tuning) -> Tuning; 0] = [];
    let speed = measured(paths, TIME, || {}, &none)?;
    Ok(speed.map(|speed| speed.chosen.bytes_per_second.unwrap_or_else(|| speed.best())))
}

fn measured(
    paths: &[PathBuf],
    time: Duration,
    step: impl Fn(),
    settings: &[impl Fn(Tuning) -> Tuning],
) -> Result<Option<DriveSpeed>, String> {
    let config = Config::from_environment().map_err(|error| error.to_string())?;
    let (chosen, files) = tune(paths, &config).map_err(|error| error.to_string())?;
    let size: u64 = files.iter().map(|file| file.opened_size()).sum();
    if size < WORTH_MEASURING_BYTES {
        return Ok(None);
    }
    let mut arena = destination(DESTINATION_BYTES).map_err(|error| error.to_string())?;
    let mut measured = Vec::new();
    let others = settings.iter().map(|setting| setting(chosen));
    for (seed, tuning) in std::iter::once(chosen).chain(others).enumerate() {
        let found = measure(&files, &tuning, time, seed as u64 ^ u64::from(std::process::id()) << 16, &mut arena);
        measured.push((tuning, found.map_err(|error| error.to_string())?.bytes_per_second));
        step();
    }
    Ok(Some(DriveSpeed { chosen, measured }))
}
