//! Writes a snapshot to a file every few seconds and once more at the end.
//!
//! The file is replaced by rename, so a reader never sees half of one. A failure to write is reported once and never
//! disturbs the model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorCode, Result};
use crate::fnv::Fnv;
use crate::persist::{self, NameLock};

const INTERVAL: Duration = Duration::from_secs(2);

/// The files that writers of this process write to: two models must not replace each other's figures. Nor must two
/// processes, which lock the names that they have.
static WRITTEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Writes until dropped.
pub struct StatsWriter {
    path: PathBuf,
    _name: Option<NameLock>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl StatsWriter {
    /// Starts writing what `snapshot` returns to `path`, or to `path.2` and so on while another writer, of this
    /// process or another of this user, has the name.
    ///
    /// # Errors
    /// `Resource` when the system refuses a thread.
    pub fn start(path: PathBuf, snapshot: impl Fn() -> String + Send + 'static) -> Result<Self> {
        let (path, name) = claim(&path, persist::runtime_directory().as_deref());
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (shared, file) = (Arc::clone(&stop), path.clone());
        let thread = std::thread::Builder::new()
            .name("hypura-stats".to_owned())
            .spawn(move || {
                let (stopping, changed) = &*shared;
                let mut reported = false;
                let mut stopping = stopping.lock();
                loop {
                    let last = *stopping;
                    if let Err(error) = persist::replace(&file, snapshot()) {
                        if !std::mem::replace(&mut reported, true) {
                            tracing::warn!("cannot write statistics to {}: {error}", file.display());
                        }
                    }
                    if last {
                        return;
                    }
                    changed.wait_for(&mut stopping, INTERVAL);
                }
            })
            .map_err(|error| Error::new(ErrorCode::Resource, format!("cannot start the statistics thread: {error}")))?;
        Ok(Self { path, _name: name, stop, thread: Some(thread) })
    }
}

impl Drop for StatsWriter {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only statistics.
            let _ = thread.join();
        }
        WRITTEN.lock().retain(|path| *path != self.path);
    }
}

/// Takes the first name that no other writer has.
fn claim(path: &Path, directory: Option<&Path>) -> (PathBuf, Option<NameLock>) {
    /// More writers than this share the last name.
    const NUMBERS: u32 = 1000;
    let mut written = WRITTEN.lock();
    for number in 1..=NUMBERS {
        let mut name = path.as_os_str().to_owned();
        if number > 1 {
            name.push(format!(".{number}"));
        }
        let candidate = PathBuf::from(name);
        if written.contains(&candidate) && number < NUMBERS {
            continue;
        }
        // The directory may be given by another name; what is written is one file.
        let whole = std::path::absolute(&candidate).unwrap_or_else(|_| candidate.clone());
        let key = format!("stats-{:016x}", Fnv::of(whole.as_os_str().as_encoded_bytes()));
        let lock = directory.map(|directory| NameLock::take(directory, &key));
        if matches!(lock, Some(None)) && number < NUMBERS {
            continue; // another process has it
        }
        written.push(candidate.clone());
        return (candidate, lock.flatten());
    }
    unreachable!("the last number is taken in any case")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_are_given_one_name_write_one_file_each() {
        let place = std::env::temp_dir().join(format!("hypura-stats-{}", std::process::id()));
        let place = persist::private_directory(place).unwrap();
        let path = place.join("stats.json");
        let (first, name) = claim(&path, Some(&place));
        assert_eq!(first, path);
        // As another process sees it: the name is locked, and not in its own list.
        WRITTEN.lock().retain(|written| *written != path);
        let (second, _other) = claim(&path, Some(&place));
        assert_eq!(second, place.join("stats.json.2"));
        drop(name);
        let (third, _name) = claim(&path, Some(&place));
        assert_eq!(third, path);
        WRITTEN.lock().retain(|written| !written.starts_with(&place));
        std::fs::remove_dir_all(place).unwrap();
    }
}
