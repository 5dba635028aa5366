//! Writes a snapshot to a file every few seconds and once more at the end.
//!
//! The file is replaced by rename, so a reader never sees half of one. A failure to write is reported once and never
//! disturbs the model.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorCode, Result};
use crate::persist;

const INTERVAL: Duration = Duration::from_secs(2);

/// The files that writers of this process write to: two models must not replace each other's figures.
static WRITTEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Writes until dropped.
pub struct StatsWriter {
    path: PathBuf,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl StatsWriter {
    /// Starts writing what `snapshot` returns to `path`, or to `path.2` and so on while another writer of this process has
    /// the name.
    ///
    /// # Errors
    /// `Resource` when the system refuses a thread.
    pub fn start(path: PathBuf, snapshot: impl Fn() -> String + Send + 'static) -> Result<Self> {
        let path = claim(path);
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
        Ok(Self { path, stop, thread: Some(thread) })
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
fn claim(path: PathBuf) -> PathBuf {
    let mut written = WRITTEN.lock();
    let numbered = |number: u32| match number {
        1 => path.clone(),
        _ => {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        }
    };
    let free = (1..).map(numbered).find(|candidate| !written.contains(candidate)).unwrap_or_else(|| path.clone());
    written.push(free.clone());
    free
}
