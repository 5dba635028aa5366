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

/// Writes until dropped.
pub struct StatsWriter {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl StatsWriter {
    /// Starts writing what `snapshot` returns to `path`.
    ///
    /// # Errors
    /// `Resource` when the system refuses a thread.
    pub fn start(path: PathBuf, snapshot: impl Fn() -> String + Send + 'static) -> Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("hypura-stats".to_owned())
            .spawn(move || {
                let (stopping, changed) = &*shared;
                let mut reported = false;
                let mut stopping = stopping.lock();
                loop {
                    let last = *stopping;
                    if let Err(error) = persist::replace(&path, &snapshot()) {
                        if !std::mem::replace(&mut reported, true) {
                            tracing::warn!("cannot write statistics to {}: {error}", path.display());
                        }
                    }
                    if last {
                        return;
                    }
                    changed.wait_for(&mut stopping, INTERVAL);
                }
            })
            .map_err(|error| Error::new(ErrorCode::Resource, format!("cannot start the statistics thread: {error}")))?;
        Ok(Self { stop, thread: Some(thread) })
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
    }
}
