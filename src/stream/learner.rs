//! Keeps what a run shows of its speed, on a thread of its own: a file must not be waited for while a token is computed.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Error, ErrorCode, Result};

use super::running_placement::RunningPlacement;

/// The thread, until dropped.
pub(super) struct Learner {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Learner {
    pub(super) fn start(placement: Arc<RunningPlacement>) -> Result<Self> {
        let (wake, woken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("hypura-learner".to_owned())
            .spawn(move || {
                while woken.recv().is_ok() {
                    placement.learn();
                }
            })
            .map_err(|error| Error::new(ErrorCode::Resource, format!("cannot start the learning thread: {error}")))?;
        Ok(Self { wake: Some(wake), thread: Some(thread) })
    }

    /// There is something to learn. Never waits: one that is about to look learns it as well.
    pub(super) fn wake(&self) {
        if let Some(wake) = &self.wake {
            let _ = wake.try_send(());
        }
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only what was learned.
            let _ = thread.join();
        }
    }
}
