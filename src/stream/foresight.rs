//! Foresees which experts the next layer will want, on a thread of its own, and has them read while the drive would idle.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorCode, Result};
use crate::io::{DirectFile, Engine};
use crate::predict::{Choice, Router};

use super::core::Core;

/// Tokens of a batch up to which looking ahead is of use: a large one wants nearly all experts anyway.
const ROWS_MAX: usize = 8;

/// The thread, until dropped.
pub(super) struct Foresight {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// By expert layer, the width of the inputs that its successor's router takes.
    widths: Vec<Option<usize>>,
}

#[derive(Default)]
struct Shared {
    mailbox: Mutex<Mailbox>,
    changed: Condvar,
}

/// The latest input; one that nobody got round to is replaced.
#[derive(Default)]
struct Mailbox {
    layer: Option<usize>,
    inputs: Vec<f32>,
    stopping: bool,
}

impl Foresight {
    /// Starts the thread; `routers` are those of [`crate::predict::read_routers`].
    pub(super) fn start(
        routers: Vec<Option<Router>>,
        core: Arc<Core>,
        files: Arc<[DirectFile]>,
        engine: Arc<dyn Engine>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let widths = routers.iter().map(|router| router.as_ref().map(Router::width)).collect();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("hypura-foresight".to_owned())
            .spawn(move || {
                let (mut inputs, mut choice, mut requests) = (Vec::new(), Choice::default(), Vec::new());
                while let Some(layer) = for_thread.next(&mut inputs) {
                    let Some(router) = &routers[layer] else { continue };
                    core.guess(&files, layer + 1, router.choose(&inputs, &mut choice), &mut requests);
                    if !requests.is_empty() {
                        engine.submit(&mut requests);
                    }
                }
            })
            .map_err(|error| Error::new(ErrorCode::Resource, format!("cannot start the look-ahead thread: {error}")))?;
        Ok(Self { shared, thread: Some(thread), widths })
    }

    /// Looks ahead from an expert layer with the inputs (rows) that its experts get; inputs of another shape are ignored.
    pub(super) fn look_ahead(&self, layer: usize, row_length: usize, inputs: &[f32]) {
        let fits = self.widths[layer] == Some(row_length) && inputs.len() <= ROWS_MAX * row_length;
        if !fits || inputs.is_empty() {
            return;
        }
        let mut mailbox = self.shared.mailbox.lock();
        mailbox.layer = Some(layer);
        mailbox.inputs.clear();
        mailbox.inputs.extend_from_slice(inputs);
        drop(mailbox);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    /// Waits for inputs and swaps them in; `None` at the end.
    fn next(&self, inputs: &mut Vec<f32>) -> Option<usize> {
        let mut mailbox = self.mailbox.lock();
        loop {
            if mailbox.stopping {
                return None;
            }
            if let Some(layer) = mailbox.layer.take() {
                std::mem::swap(inputs, &mut mailbox.inputs);
                return Some(layer);
            }
            self.changed.wait(&mut mailbox);
        }
    }
}

impl Drop for Foresight {
    fn drop(&mut self) {
        self.shared.mailbox.lock().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only guesses.
            let _ = thread.join();
        }
    }
}
