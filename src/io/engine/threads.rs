//! The portable engine: a pool of threads that call `preadv`. Its depth is the number of threads.

use std::os::fd::AsRawFd;
use std::sync::Arc;
#[cfg(not(schedules))]
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Condvar;
#[cfg(schedules)] // tests/schedules
use parking_lot::schedule::thread;

use super::part::{Part, Step};
use super::queue::Queue;
use super::{Cancelled, Engine, Request, Sink, run_thread};
use crate::error::{Error, ErrorCode, Result};
use crate::index::ReadToken;
use crate::io::{DirectFile, Tuning};

/// Reads with `preadv` on threads of its own.
pub(super) struct ThreadEngine {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Shared {
    files: Arc<[DirectFile]>,
    sink: Arc<dyn Sink>,
    queue: Queue,
    work: Condvar,
    /// Signalled when the engine is being dropped.
    stopped: Condvar,
}

impl ThreadEngine {
    pub(super) fn start(
        files: Arc<[DirectFile]>,
        tuning: &Tuning,
        token_count: usize,
        sink: Arc<dyn Sink>,
    ) -> Result<Self> {
        let queue = Queue::new(token_count, tuning.block_bytes);
        let shared = Shared { files, sink, queue, work: Condvar::new(), stopped: Condvar::new() };
        let mut engine = Self { shared: Arc::new(shared), threads: Vec::new() };
        for index in 0..tuning.depth {
            let shared = Arc::clone(&engine.shared);
            let thread = thread::Builder::new()
                .name(format!("hypura-read-{index}"))
                .spawn(move || run_thread(&*shared.sink, || shared.work()))
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

    fn promote(&self, token: ReadToken, generation: u64) {
        self.shared.queue.promote(token, generation);
        // It may have been held back with other speculative prefetches while this thread slept.
        self.shared.work.notify_one();
    }

    fn cancel(&self, token: ReadToken) -> Option<Cancelled> {
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
        self.shared.stopped.notify_all();
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
            let Some(outcome) = self.read(&mut part) else { return };
            self.queue.part_done(&part, outcome, &*self.sink);
        }
    }

    /// Sleeps. `false` when the engine is being dropped, whose reads are reported no more.
    fn pause(&self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        let mut pending = self.queue.lock();
        while !pending.stopping && !self.stopped.wait_until(&mut pending, until).timed_out() {}
        !pending.stopping
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

    /// Reads a part; `None` when the engine is being dropped meanwhile.
    fn read(&self, part: &mut Part) -> Option<Result<()>> {
        if part.is_padding() {
            return Some(Ok(()));
        }
        let file = &self.files[part.file];
        if part.copy_cached(file) {
            return Some(Ok(()));
        }
        loop {
            let vectors = part.vectors();
            // SAFETY: the submitter promised (`Destination::new`) that the requests' memory is writable and theirs
            // alone until they are reported, which happens after this call; the descriptor is open while `files` lives.
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
                Step::Finished => return Some(Ok(())),
                Step::Again => {}
                Step::Later(pause) if !self.pause(pause) => return None,
                Step::Later(_) => {}
                Step::Failed(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Destination, EngineKind, Priority, start};
    use parking_lot::Mutex;

    /// Panics when it is told of a read, as no sink should.
    #[derive(Default)]
    struct Faulty(Mutex<Option<ErrorCode>>, Condvar);

    impl Sink for Faulty {
        fn finished(&self, _: ReadToken, _: Result<()>) {
            panic!("on purpose");
        }

        fn broken(&self, error: Error) {
            *self.0.lock() = Some(error.code());
            self.1.notify_all();
        }
    }

    #[test]
    fn a_panic_in_a_read_thread_is_reported() {
        let path = std::env::temp_dir().join(format!("hypura-panic-{}", std::process::id()));
        std::fs::write(&path, [7; 8192]).unwrap();
        let files: Arc<[DirectFile]> = [DirectFile::open(&path, false).unwrap()].into();
        for engine in [EngineKind::Threads, EngineKind::Uring] {
            let tuning = Tuning {
                engine,
                block_bytes: 4096,
                depth: 2,
                direct: false,
                bytes_per_second: None,
                read_overhead_seconds: None,
            };
            let sink = Arc::new(Faulty::default());
            let mut memory = vec![0u8; 64];
            let engine = start(&tuning, Arc::clone(&files), 1, sink.clone()).unwrap();
            // SAFETY: the memory has room for the range and outlives the engine.
            let destination = unsafe { Destination::new(memory.as_mut_ptr()) };
            let range = files[0].widen(0, 64);
            engine.submit(&mut vec![Request {
                token: ReadToken(0),
                generation: 1,
                file: 0,
                range,
                destination,
                priority: Priority::Demand,
            }]);
            let mut code = sink.0.lock();
            while code.is_none() {
                sink.1.wait(&mut code);
            }
            assert_eq!(*code, Some(ErrorCode::Panic));
            drop(code);
            drop(engine);
        }
        std::fs::remove_file(path).unwrap();
    }
}
