//! Foresees which experts the next layer will want, on a thread of its own, and has them read while the drive would idle.
//!
//! A layer's router tells best. Where there is none, or none that is understood, and for the first layer of the next token, the
//! model's habits tell.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorCode, Result};
use crate::io::{DirectFile, Engine};
use crate::predict::{Choice, Foreseen, Recent, Router};

use super::guesses::Naming;
use crate::stream::core::Core;

/// Tokens of a batch up to which looking ahead is of use: a large one wants nearly all experts anyway.
const ROWS_MAX: usize = 8;

/// The thread, until dropped.
pub(in crate::stream) struct Foresight {
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

#[derive(Default)]
struct Mailbox {
    /// The latest; one that nobody got round to is replaced.
    seen: Seen,
    is_new: bool,
    stopping: bool,
}

/// What was seen of a layer: what its successor's router is applied to, or, where there is none, the experts to go by.
#[derive(Default)]
struct Seen {
    layer: usize,
    inputs: Vec<f32>,
    experts: Vec<usize>,
}

impl Foresight {
    /// Starts the thread; `routers` are those of [`crate::predict::read_routers`].
    pub(in crate::stream) fn start(
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
                let (mut seen, mut choice) = (Seen::default(), Choice::default());
                let (mut foreseen, mut requests) = (Vec::new(), Vec::new());
                while for_thread.next(&mut seen) {
                    let next = (seen.layer + 1) % routers.len();
                    match &routers[seen.layer] {
                        Some(router) => {
                            let chosen = router.choose(&seen.inputs, &mut choice);
                            core.guess(&files, next, Naming::ByRouter(chosen), &mut requests);
                        }
                        None => {
                            core.foresee_by_habit(seen.layer, &seen.experts, &mut foreseen);
                            core.guess(&files, next, Naming::ByHabits(&foreseen), &mut requests);
                        }
                    }
                    if !requests.is_empty() {
                        engine.submit(&mut requests);
                    }
                }
            })
            .map_err(|error| Error::new(ErrorCode::Resource, format!("cannot start the look-ahead thread: {error}")))?;
        Ok(Self { shared, thread: Some(thread), widths })
    }

    /// Looks ahead from an expert layer with the inputs (rows) that its experts get, and what the layers used; inputs of
    /// another shape than its successor's router takes are ignored.
    pub(in crate::stream) fn look_ahead(&self, layer: usize, row_length: usize, inputs: &[f32], recent: &Recent) {
        let width = self.widths[layer];
        let fits = width.is_none_or(|width| width == row_length) && inputs.len() <= ROWS_MAX * row_length;
        if !fits || inputs.is_empty() {
            return;
        }
        let mut mailbox = self.shared.mailbox.lock();
        let Mailbox { seen, is_new, .. } = &mut *mailbox;
        *is_new = true;
        seen.layer = layer;
        seen.inputs.clear();
        seen.experts.clear();
        if width.is_some() {
            seen.inputs.extend_from_slice(inputs);
        } else {
            // After the last layer comes the first one, of which the past token's experts tell most.
            let is_last = layer + 1 == self.widths.len();
            seen.experts.extend(recent.experts(if is_last { 0 } else { layer }));
        }
        drop(mailbox);
        self.shared.changed.notify_one();
    }
}

impl Core {
    /// As many experts of the layer after this one as it used itself; after the last layer, of the first one.
    fn foresee_by_habit(&self, layer: usize, experts: &[usize], foreseen: &mut Vec<Foreseen>) {
        let habits = self.habits.lock();
        match layer + 1 == habits.layer_count() {
            true => habits.foresee_next_token(0, experts, foreseen),
            false => habits.foresee_next_layer(layer, experts, foreseen),
        }
        foreseen.truncate(experts.len());
    }
}

impl Shared {
    /// Waits for something new and swaps it in; `false` at the end.
    fn next(&self, seen: &mut Seen) -> bool {
        let mut mailbox = self.mailbox.lock();
        loop {
            if mailbox.stopping {
                return false;
            }
            if std::mem::take(&mut mailbox.is_new) {
                std::mem::swap(seen, &mut mailbox.seen);
                return true;
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
