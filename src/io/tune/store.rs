//! What a search found, kept per device.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::Tuning;
use super::search::Search;
use crate::config::{DirectSetting, IoSetting};
use crate::io::EngineKind;
use crate::persist;

/// What was measured so long ago is measured again: drives wear, fill up and are replaced, and a busy moment may have misled.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

const FILE: &str = "storage.json";

impl Search<'_> {
    /// What an earlier run without limits found for this device, if the settings allow it.
    pub(super) fn remembered(&self) -> Option<Tuning> {
        let stored = persist::read(self.config.cache_directory.as_deref()?, FILE)?;
        let entry = stored.get(&device_key(self.paths.first()?)?)?;
        let age = seconds_since_epoch().checked_sub(entry["measured_at"].as_u64()?)?;
        if age > REMEMBERED.as_secs() {
            return None;
        }
        let engine = match entry["engine"].as_str()? {
            "uring" => EngineKind::Uring,
            "threads" => EngineKind::Threads,
            _ => return None,
        };
        let tuning = Tuning {
            engine,
            block_bytes: entry["block_bytes"].as_u64()? as usize,
            depth: entry["depth"].as_u64()? as usize,
            direct: entry["direct"].as_bool()?,
            bytes_per_second: entry["bytes_per_second"].as_f64(),
            read_overhead_seconds: entry["read_overhead_seconds"].as_f64(),
        };
        let sane = tuning.block_bytes.is_power_of_two()
            && (64 << 10..=16 << 20).contains(&tuning.block_bytes)
            && (1..=64).contains(&tuning.depth);
        (sane && self.allows(&tuning)).then_some(tuning)
    }

    pub(super) fn remember(&self, tuning: &Tuning) {
        if (self.config.io, self.config.direct) != (IoSetting::Auto, DirectSetting::Auto) {
            return; // the best of what was allowed, which later runs without that limit must not take for the best
        }
        let place = self.config.cache_directory.as_deref().zip(self.paths.first().and_then(|path| device_key(path)));
        let Some((directory, key)) = place else { return };
        let mut stored = match persist::read(directory, FILE) {
            Some(Value::Object(stored)) => stored,
            _ => serde_json::Map::new(),
        };
        stored.insert(
            key,
            json!({
                "engine": tuning.engine.name(),
                "block_bytes": tuning.block_bytes,
                "depth": tuning.depth,
                "direct": tuning.direct,
                "bytes_per_second": tuning.bytes_per_second,
                "read_overhead_seconds": tuning.read_overhead_seconds,
                "measured_at": seconds_since_epoch(),
            }),
        );
        persist::write(directory, FILE, &Value::Object(stored));
    }
}

/// What is remembered belongs to a device, as the kernel numbers it.
fn device_key(path: &Path) -> Option<String> {
    let device = std::fs::metadata(path).ok()?.dev();
    Some(format!("{}:{}", libc::major(device), libc::minor(device)))
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
