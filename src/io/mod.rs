//! Reading byte ranges of files into memory, at the drive's full speed.
//!
//! This layer knows files, offsets and destinations; it does not know what a tensor or a slot is. A [`Request`] names a
//! range and a place; an [`Engine`] carries requests out in the background and reports each to its [`Sink`] exactly
//! once. Demand reads always overtake speculative ones.
//!
//! Terms: a *request* is one contiguous range wanted by the caller; a *part* is one system call's worth of it; a range
//! is *widened* when it is extended to the alignment that direct I/O demands.

mod direct_file;
mod threads;

pub use direct_file::{Alignment, DirectFile, Widened};
pub use threads::ThreadEngine;

use crate::error::Error;

/// How urgent a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Someone waits for these bytes, or certainly will.
    Demand,
    /// A guess: it is served only when no demand read is queued.
    Speculative,
}

/// One range of a file and where to put it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The caller's name for this read; at most one read with a given token may be in flight.
    pub token: usize,
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
    /// accessed by nobody else from submission until the sink has been told of the completion.
    pub unsafe fn new(address: *mut u8) -> Self {
        Self(address)
    }

    fn at(self, offset: usize) -> *mut u8 {
        self.0.wrapping_add(offset)
    }
}

// SAFETY: a `Destination` is only an address. Whoever made it promised (see `new`) that the memory behind it belongs to
// the read alone until its completion, so moving it to another thread moves that exclusive right.
unsafe impl Send for Destination {}

/// Told of every finished read, from the engine's own threads.
pub trait Sink: Send + Sync {
    /// The read with this token is over: all its bytes are in place, or they are not and must not be used.
    fn finished(&self, token: usize, outcome: Result<(), Error>);
}

/// Carries out reads in the background.
///
/// Dropping an engine discards what is queued, waits for what is in flight, and only then returns: afterwards no
/// destination is written any more.
pub trait Engine: Send + Sync {
    /// Queues a read. Every queued read is reported to the sink exactly once, unless the engine is dropped first.
    fn submit(&self, request: Request);

    /// Makes a queued speculative read a demand read.
    fn promote(&self, token: usize);

    /// The name for logs and statistics.
    fn name(&self) -> &'static str;
}
