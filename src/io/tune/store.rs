//! What a search found, kept per file system.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::Tuning;
use super::search::Search;
use crate::config::{DirectSetting, IoSetting};
use crate::hw;
use crate::io::EngineKind;

/// What was measured so long ago is measured again: drives wear, fill up and are replaced, and a busy moment may have misled.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

const FILE: &str = "storage.json";

impl Search<'_> {
    /// What is remembered belongs to a file system, and to what the settings allow. A device's number alone goes to the next one that is
    /// mounted when this one is gone; what it lies on and the file system's own number (of its UUID, or of its mount where it is not
    /// stored anywhere) do not.
    fn key(&self) -> Option<String> {
        let path = self.paths.first()?.canonicalize().ok()?;
        let device = std::fs::metadata(&path).ok()?.dev();
        let file_system = format!("{}:{} {:x}", libc::major(device), libc::minor(device), file_system_number(&path)?);
        let settings = match (self.config.io, self.config.direct) {
            (IoSetting::Auto, DirectSetting::Auto | DirectSetting::Cold) => String::new(),
            (io, direct) => format!(" {io:?} {direct:?}"),
        };
        Some(format!("{file_system} {}{settings}", hw::drive(&path).identity()))
    }

    /// What an earlier run found for this file system.
    pub(super) fn remembered(&self) -> Option<Tuning> {
        let stored = self.config.store.facts(FILE);
        let entry = stored.get(&self.key()?).filter(|entry| is_fresh(entry))?;
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
        let Some(key) = self.key() else { return };
        let entry = json!({
            "engine": tuning.engine.name(),
            "block_bytes": tuning.block_bytes,
            "depth": tuning.depth,
            "direct": tuning.direct,
            "bytes_per_second": tuning.bytes_per_second,
            "read_overhead_seconds": tuning.read_overhead_seconds,
            "measured_at": seconds_since_epoch(),
        });
        self.config.store.change(FILE, |stored| {
            stored.retain(|_, entry| is_fresh(entry));
            stored.insert(key, entry);
        });
    }
}

/// The number that a file system gives itself.
fn file_system_number(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: `statvfs` is plain old data, for which all zeros is a valid value.
    let mut status: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero and both outlive the call, which only writes to `status`.
    let outcome = unsafe { libc::statvfs(path.as_ptr(), &raw mut status) };
    (outcome == 0).then_some(status.f_fsid as u64)
}

/// Whether an entry was measured lately.
fn is_fresh(entry: &Value) -> bool {
    let age = entry["measured_at"].as_u64().and_then(|measured_at| seconds_since_epoch().checked_sub(measured_at));
    age.is_some_and(|age| age <= REMEMBERED.as_secs())
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::config::Config;
    use crate::persist::Store;

    #[test]
    fn what_was_measured_is_remembered_for_a_week_and_for_the_same_settings() {
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, b"GGUF").unwrap();
        let paths = [path];
        let with = |io: &str| {
            let config = Config::from_variables([("HYPURA_IO".to_owned(), io.to_owned())]).unwrap();
            Config { store: Store::at(directory.path()), ..config }
        };
        let (any, threads) = (with("auto"), with("threads"));
        let search = |config| Search { config, can_be_direct: true, paths: &paths };
        let found = Tuning {
            engine: EngineKind::Threads,
            block_bytes: 4 << 20,
            depth: 4,
            direct: true,
            bytes_per_second: Some(1.5e9),
            read_overhead_seconds: None,
        };
        search(&threads).remember(&found);
        assert_eq!(search(&threads).remembered(), Some(found));
        assert_eq!(search(&any).remembered(), None, "the best of what was allowed is not the best of all");
        let store = Store::at(directory.path());
        assert_eq!(store.facts(FILE).len(), 1);
        store.change(FILE, |stored| {
            for entry in stored.values_mut() {
                entry["measured_at"] = json!(seconds_since_epoch() - REMEMBERED.as_secs() - 60);
            }
        });
        assert_eq!(search(&threads).remembered(), None);
        search(&any).remember(&found);
        assert_eq!(search(&any).remembered(), Some(found));
        assert_eq!(store.facts(FILE).len(), 1, "what is too old is forgotten");
    }
}
