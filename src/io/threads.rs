//! The portable engine: a pool of threads that call `preadv`. Its depth is the number of threads.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Condvar;

use super::part::{Part, Step};
use super::queue::Queue;
use super::{DirectFile, Engine, Request, Sink, Tuning};
use crate::error::{Error, ErrorCode, Result};

/// Reads with `preadv` on threads of its own.
pub(super) struct ThreadEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    files: Arc<[DirectFile]>,
    sink: Arc<dyn Sink>,
    queue: Queue,
    work: Condvar,
}

impl ThreadEngine {
    pub(super) fn start(
        files: Arc<[DirectFile]>,
        tuning: &Tuning,
        token_count: usize,
        sink: Arc<dyn Sink>,
    ) -> Result<Self> {
        let queue = Queue::new(token_count, tuning.block_bytes);
        let mut engine =
            Self { shared: Arc::new(Shared { files, sink, queue, work: Condvar::new() }), threads: Vec::new() };
        for index in 0..tuning.depth {
            let shared = Arc::clone(&engine.shared);
            let thread = std::thread::Builder::new()
                .name(format!("hypura-read-{index}"))
                .spawn(move || shared.work())
                .map_err(|error| Error::new(ErrorCode::Resource, format!("cannot start a read thread: {error}")))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }
}

impl Engine for ThreadEngine {
    fn submit(&self, requests: &mut Vec<Request>) {
        let parts = self.shared.queue.push(requests);
        for _ in 0..parts.min(self.threads.len()) {
            if !self.shared.work.notify_one() {
                return; // nobody sleeps
            }
        }
    }

    fn promote(&self, token: usize) {
        self.shared.queue.promote(token);
    }

    fn cancel(&self, token: usize) -> bool {
        self.shared.queue.cancel(token)
    }

    fn name(&self) -> &'static str {
        "threads"
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        self.shared.queue.stop();
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has stopped reading as well, which is all that matters here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread's life: take the most urgent part, read it, count it off.
    fn work(&self) {
        while let Some(mut part) = self.next_part() {
            let outcome = self.read(&mut part);
            self.queue.part_done(&part, outcome, &*self.sink);
        }
    }

    fn next_part(&self) -> Option<Part> {
        let mut pending = self.queue.lock();
        loop {
            if pending.stopping {
                return None;
            }
            match self.queue.take(&mut pending) {
                Some(part) => return Some(part),
                None => self.work.wait(&mut pending),
            }
        }
    }

    fn read(&self, part: &mut Part) -> Result<()> {
        if part.is_padding() {
            return Ok(());
        }
        let file = &self.files[part.file];
        loop {
            let vectors = part.vectors();
            // SAFETY: the submitter promised (`Destination::new`) that the requests' memory is writable and theirs alone
            // until they are reported, which happens after this call; the descriptor is open while `files` lives.
            let count = unsafe {
                libc::preadv(
                    file.as_raw_fd(),
                    vectors.as_ptr(),
                    vectors.count() as libc::c_int,
                    part.position() as libc::off_t,
                )
            };
            let outcome = usize::try_from(count).map_err(|_| std::io::Error::last_os_error());
            match part.advance(file, outcome) {
                Step::Finished => return Ok(()),
                Step::Again => {}
                Step::Failed(error) => return Err(error),
            }
        }
    }
}
