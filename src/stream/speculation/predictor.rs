//! Foresees which experts the next layer will want, on a thread of its own, and has them read while the drive would idle.
//!
//! A layer's router predicts best. The usage profile is asked where the router names nothing, or less than the profile does, and for
//! the first layer of the next token.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorCode, Result};
use crate::index::ExpertLayer;
use crate::io::{DirectFile, Engine, Request};
use crate::predict::{Lookahead, Predicted, Recent, Sight, Successor, Visit};

use super::prefetch::Naming;
use crate::stream::core::{Core, State};

/// Tokens of a batch up to which looking ahead is of use: a large one wants nearly all experts anyway.
pub(in crate::stream) const LOOK_AHEAD_ROWS_MAX: usize = 8;

/// The thread, until dropped.
pub(in crate::stream) struct Predictor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a host shows of an expert layer.
pub(in crate::stream) struct Seen<'a> {
    /// Elements of a row.
    pub(in crate::stream) row_length: usize,
    /// The last rows of a batch.
    pub(in crate::stream) inputs: &'a [f32],
    /// The choices of its last rows, as many or more.
    pub(in crate::stream) routing: &'a [i32],
    /// How many rows the batch has.
    pub(in crate::stream) token_count: usize,
}

#[derive(Default)]
struct Shared {
    mailbox: Mutex<Mailbox>,
    changed: Condvar,
}

#[derive(Default)]
struct Mailbox {
    /// The latest; one that nobody got round to is replaced.
    sight: Sight,
    is_new: bool,
    stopping: bool,
}

/// What the thread works with.
struct Foreseer {
    lookahead: Lookahead,
    core: Arc<Core>,
    files: Arc<[DirectFile]>,
    engine: Arc<dyn Engine>,
    by_profile: Vec<Predicted>,
    requests: Vec<Request>,
}

impl Predictor {
    /// Starts the thread.
    pub(in crate::stream) fn start(
        lookahead: Lookahead,
        core: Arc<Core>,
        files: Arc<[DirectFile]>,
        engine: Arc<dyn Engine>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let mut foreseer = Foreseer { lookahead, core, files, engine, by_profile: Vec::new(), requests: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("hypura-foresight".to_owned())
            .spawn(move || {
                let (mut before, mut sight) = (Sight::default(), Sight::default());
                while for_thread.next(&mut sight) {
                    foreseer.foresee(&sight);
                    // The reads are under way: now there is time to learn.
                    foreseer.lookahead.learn(&before, &sight);
                    std::mem::swap(&mut before, &mut sight);
                }
            })
            .map_err(|error| Error::new(ErrorCode::Resource, format!("cannot start the look-ahead thread: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Looks ahead from an expert layer with what is seen of it, and with what the layers used.
    pub(in crate::stream) fn look_ahead(&self, visit: Visit, seen: Seen<'_>, recent: &Recent) {
        let Seen { row_length, inputs, routing, token_count } = seen;
        let row_count = inputs.len() / row_length.max(1);
        if row_count == 0 || row_count > LOOK_AHEAD_ROWS_MAX || row_count > token_count {
            return;
        }
        let used = routing.len() / token_count.min(LOOK_AHEAD_ROWS_MAX);
        let mut mailbox = self.shared.mailbox.lock();
        let Mailbox { sight, is_new, .. } = &mut *mailbox;
        *is_new = true;
        sight.visit = visit;
        sight.is_part = row_count < token_count;
        sight.row_length = row_length;
        sight.inputs.clear();
        sight.inputs.extend_from_slice(inputs);
        sight.routing.clear();
        sight.routing.extend_from_slice(&routing[routing.len() - used * row_count..]);
        sight.experts.clear();
        if let Some(next) = visit.next {
            // Of the next token's first layer, what this token used there tells most.
            sight.experts.extend(recent.experts(if is_adjacent(visit, next) { visit.layer } else { next.layer }));
        }
        drop(mailbox);
        self.shared.changed.notify_one();
    }
}

impl Foreseer {
    /// Asks the next layer's router, or the usage profile, and submits the reads that follow.
    fn foresee(&mut self, sight: &Sight) {
        let Self { lookahead, core, files, engine, by_profile, requests } = self;
        let Some(next) = sight.visit.next.filter(|_| !sight.is_part) else { return };
        match lookahead.name(sight) {
            Some(chosen) => {
                name(core, files, (next.layer, Naming::ByRouter(chosen)), requests);
                if lookahead.wants_profile(sight) {
                    predict_by_profile(core, sight, next, by_profile);
                    lookahead.compare(by_profile.iter().map(|predicted| predicted.expert));
                }
            }
            None => {
                predict_by_profile(core, sight, next, by_profile);
                name(core, files, (next.layer, Naming::ByProfile(by_profile)), requests);
                lookahead.compare(by_profile.iter().map(|predicted| predicted.expert));
            }
        }
        if !requests.is_empty() {
            engine.submit(requests);
        }
    }
}

/// As many experts of the layer after this one as it used itself, or of the first layer for the next token.
fn predict_by_profile(core: &Core, sight: &Sight, next: Successor, predicted: &mut Vec<Predicted>) {
    let usage_profile = core.usage_profile.lock();
    match is_adjacent(sight.visit, next) {
        true => usage_profile.predict_next_layer(sight.visit.layer, &sight.experts, predicted),
        false => usage_profile.predict_next_token(next.layer, &sight.experts, predicted),
    }
    predicted.truncate(sight.experts.len());
}

/// Tells what is foreseen of a layer, unless reading has failed.
fn name(core: &Core, files: &[DirectFile], named: (ExpertLayer, Naming<'_>), requests: &mut Vec<Request>) {
    let mut state = core.state.lock();
    if state.failure.is_none() {
        let State { speculation, slots, .. } = &mut *state;
        speculation.name(core, slots, files, named, requests);
    }
}

/// Whether the usage profile knows which experts of the next layer follow those of this one.
fn is_adjacent(visit: Visit, next: Successor) -> bool {
    next.is_in_pass && next.layer == visit.layer + 1
}

impl Shared {
    /// Waits for something new and swaps it in; `false` at the end.
    fn next(&self, sight: &mut Sight) -> bool {
        let mut mailbox = self.mailbox.lock();
        loop {
            if mailbox.stopping {
                return false;
            }
            if std::mem::take(&mut mailbox.is_new) {
                std::mem::swap(sight, &mut mailbox.sight);
                return true;
            }
            self.changed.wait(&mut mailbox);
        }
    }
}

impl Drop for Predictor {
    fn drop(&mut self) {
        self.shared.mailbox.lock().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only speculative prefetches.
            let _ = thread.join();
        }
    }
}
