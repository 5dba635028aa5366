//! How fast the drive reads a model, past the page cache and in random order.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypura::config::Config;
use hypura::io::{Limit, Tuning, destination, measure, tune};

use crate::model_paths::models_by_size;

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

/// Measures with several settings, for so long with each, and calls `step` after each; `None` for files that are too
/// small.
///
/// # Errors
/// A sentence when the files cannot be read.
pub fn drive_speed(paths: &[PathBuf], time: Duration, step: impl Fn()) -> Result<Option<DriveSpeed>, String> {
    let settings = SETTINGS.map(|(block_bytes, depth)| move |chosen| Tuning { block_bytes, depth, ..chosen });
    measured(paths, time, step, &settings)
}

/// What a session expects of the drive.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpectedSpeed {
    /// Where it was measured.
    pub bytes_per_second: Option<f64>,
    /// What a read costs beyond its bytes.
    pub read_overhead_seconds: f64,
}

/// Measures with the setting that libhypura has chosen only, unless that is remembered.
///
/// # Errors
/// As [`drive_speed`].
pub fn expected_speed(paths: &[PathBuf]) -> Result<ExpectedSpeed, String> {
    const TIME: Duration = Duration::from_millis(100);
    let none: [fn(Tuning) -> Tuning; 0] = [];
    let Some(speed) = measured(paths, TIME, || {}, &none)? else { return Ok(ExpectedSpeed::default()) };
    Ok(ExpectedSpeed {
        bytes_per_second: Some(speed.chosen.bytes_per_second.unwrap_or_else(|| speed.best())),
        read_overhead_seconds: speed.chosen.read_overhead_seconds.unwrap_or(0.0),
    })
}

/// As [`expected_speed`], for a directory in which a model is to be: measured on the largest model there, else on a
/// file that is written for it and removed.
///
/// # Errors
/// As [`drive_speed`].
pub fn speed_of_place(directory: &Path) -> Result<ExpectedSpeed, String> {
    let is_large = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|status| status.len() >= WORTH_MEASURING_BYTES);
    if let Some(model) = models_by_size(directory).into_iter().find(is_large) {
        return expected_speed(&[model]);
    }
    let path = directory.join(format!(".hypura-drive-{}", std::process::id()));
    let written = write_noise(&path, 4 * WORTH_MEASURING_BYTES);
    // Where nothing may be written the speed is assumed.
    let speed =
        if written.is_ok() { expected_speed(std::slice::from_ref(&path)) } else { Ok(ExpectedSpeed::default()) };
    let _ = std::fs::remove_file(&path);
    speed
}

/// Writes a file that no drive can compress, and waits until it is on the drive.
fn write_noise(path: &Path, bytes: u64) -> std::io::Result<()> {
    const CHUNK_BYTES: usize = 1 << 20;
    let mut file = std::fs::File::create(path)?;
    let (mut state, mut chunk) = (0x9e37_79b9_7f4a_7c15_u64, Vec::with_capacity(CHUNK_BYTES));
    for _ in 0..bytes / CHUNK_BYTES as u64 {
        chunk.clear();
        while chunk.len() < CHUNK_BYTES {
            // xorshift: not random, but not compressible either.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&chunk)?;
    }
    file.sync_all()
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
        let found = measure(
            &files,
            &tuning,
            Limit::counting(time),
            seed as u64 ^ u64::from(std::process::id()) << 16,
            &mut arena,
        );
        measured.push((tuning, found.map_err(|error| error.to_string())?.bytes_per_second));
        step();
    }
    Ok(Some(DriveSpeed { chosen, measured }))
}
