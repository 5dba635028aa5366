//! Carrying reads out: two engines with the same verbs, io_uring and a pool of threads that call `preadv`. What they
//! share is the order of work ([`queue`]) and the handling of every outcome of a system call ([`part`]).

mod delayed;
mod part;
mod queue;
mod threads;
#[cfg(target_os = "linux")]
mod uring;

use std::sync::Arc;

use super::{DirectFile, Tuning, Widened};
use crate::error::{Error, ErrorCode, Result};
use crate::index::ReadToken;

/// Which engine reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    Uring,
    /// Threads that call `preadv`.
    Threads,
}

impl EngineKind {
    /// The name in settings, logs and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Threads => "threads",
        }
    }
}

/// How urgent a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Someone waits for these bytes.
    Demand,
    /// They will be needed soon: served when no demand is queued.
    Ahead,
    /// They may be needed: served when nothing else is queued, a few parts at a time, so that a demand which comes in
    /// between does not wait for long.
    Speculative,
}

/// One range of a file and where to put it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The caller's name for this read; at most one read with a given token may be in flight.
    pub token: ReadToken,
    /// Tells this read from others that had the token before: never twice the same for a token.
    pub generation: u64,
    /// Index of the file among those that the engine was made with.
    pub file: usize,
    /// The range as it will be read: already widened to the file's alignment.
    pub range: Widened,
    /// Where the first byte of the widened range goes.
    pub destination: Destination,
    /// How urgent it is.
    pub priority: Priority,
}

/// The address that a read writes to.
#[derive(Clone, Copy, Debug)]
pub struct Destination(*mut u8);

impl Destination {
    /// Names the memory that a read may write.
    ///
    /// # Safety
    /// The memory must be valid for writes of the request's whole widened range, aligned as the file demands, and
    /// accessed by nobody else from submission until the sink has been told of the completion, the request was
    /// cancelled with nothing in flight, or the engine was dropped.
    pub unsafe fn new(address: *mut u8) -> Self {
        Self(address)
    }

    fn at(self, offset: usize) -> Self {
        Self(self.0.wrapping_add(offset))
    }
}

// SAFETY: a `Destination` is only an address. Whoever made it promised (see `new`) that the memory behind it belongs to
// the read alone until its completion, so moving it to another thread moves that exclusive right.
unsafe impl Send for Destination {}

/// What had become of a read when the rest of it was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// How much of it has been given to the drive; with 0, the destination is as it was.
    pub begun_bytes: usize,
    /// Whether the drive still works on that: then the read is reported when the last of it is over, as if it were
    /// complete. Otherwise it is not reported.
    pub is_in_flight: bool,
}

/// Told of every finished read, from the engine's own threads.
pub trait Sink: Send + Sync {
    /// The read with this token is over: all its bytes are in place, or they are not and must not be used.
    fn finished(&self, token: ReadToken, outcome: Result<()>);

    /// The engine itself has failed, through a bug: reads that are outstanding may never be reported.
    fn broken(&self, error: Error);
}

/// Runs an engine's thread. A panic must not leave anyone waiting for reads that nobody carries out any more.
fn run_thread(sink: &dyn Sink, body: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
        sink.broken(Error::new(ErrorCode::Panic, "a read thread of libhypura panicked, please report this"));
    }
}

/// Carries out reads in the background.
///
/// Dropping an engine discards what is queued, waits for what is in flight, and only then returns: afterwards no
/// destination is written any more. An idle engine sleeps.
pub trait Engine: Send + Sync {
    /// Queues reads and empties the list. Every read is reported to the sink exactly once, unless it is cancelled with
    /// nothing in flight, or the engine is dropped first.
    fn submit(&self, requests: &mut Vec<Request>);

    /// Makes a queued read a demand read.
    fn promote(&self, token: ReadToken, generation: u64);

    /// Takes back what has not been given to the drive yet of a read that is no demand; `None` when there is no such
    /// thing.
    fn cancel(&self, token: ReadToken) -> Option<Cancelled>;

    /// The name for logs and statistics.
    fn name(&self) -> &'static str;
}

/// Starts the engine that the tuning names, or the thread pool where io_uring is not to be had. Tokens are below
/// `token_count`.
///
/// # Errors
/// `Resource` when the system refuses a thread.
pub fn start(
    tuning: &Tuning,
    files: Arc<[DirectFile]>,
    token_count: usize,
    sink: Arc<dyn Sink>,
) -> Result<Box<dyn Engine>> {
    let sink = delayed::for_tests(sink);
    #[cfg(target_os = "linux")]
    if tuning.engine == EngineKind::Uring {
        match uring::UringEngine::start(Arc::clone(&files), tuning, token_count, Arc::clone(&sink)) {
            Ok(engine) => return Ok(Box::new(engine)),
            Err(reason) => tracing::warn!("reading with threads instead of io_uring: {reason}"),
        }
    }
    Ok(Box::new(threads::ThreadEngine::start(files, tuning, token_count, sink)?))
}

/// Whether io_uring can be used here, and if not why: one sentence.
///
/// # Errors
/// The reason.
pub fn uring_available() -> std::result::Result<(), String> {
    #[cfg(target_os = "linux")]
    return uring::available();
    #[cfg(not(target_os = "linux"))]
    Err("io_uring is a facility of Linux".to_owned())
}

#[cfg(test)]
mod fault_tests;
#[cfg(all(test, schedules))]
mod schedule_tests;
#[cfg(test)]
mod tests;
