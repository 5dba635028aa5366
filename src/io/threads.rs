//! The portable engine: a pool of threads that call `pread`.
//!
//! A request is cut into parts so that several threads, and so several commands of the drive, work on one large read.
//! Invariants:
//! 1. A part is in one queue or in one thread's hands; when it is done it is counted off its request's `remaining`.
//! 2. Whoever counts off the last part reports the request. No part of it is in flight any more, so the sink may reuse
//!    the destination at once, also after an error.
//! 3. No lock is held during a system call or while the sink runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::{Destination, DirectFile, Engine, Priority, Request, Sink};
use crate::error::{Error, ErrorCode, Result};

/// Bytes of one part: large enough that the call costs nothing against the transfer.
const PART_BYTES: usize = 1 << 20;

/// Threads, that is parts in flight: drives reach their full speed with MiB-sized reads at a depth of 2 to 8.
const THREAD_COUNT: usize = 4;

/// Reads with `pread` on a few threads of its own.
pub struct ThreadEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    files: Arc<[DirectFile]>,
    sink: Arc<dyn Sink>,
    queues: Mutex<Queues>,
    work: Condvar,
    /// By token.
    progress: Vec<Progress>,
}

/// How far the request with a token is. One request per token is in flight, so the entry is its alone.
#[derive(Default)]
struct Progress {
    remaining: AtomicU32,
    error: Mutex<Option<Error>>,
}

#[derive(Default)]
struct Queues {
    demand: VecDeque<Part>,
    speculative: VecDeque<Part>,
    stopping: bool,
}

struct Part {
    token: usize,
    file: usize,
    offset: u64,
    length: usize,
    required: usize,
    destination: Destination,
}

impl ThreadEngine {
    /// Starts the threads. Tokens are below `token_count`.
    ///
    /// # Errors
    /// `Resource` when the system refuses a thread.
    pub fn start(files: Arc<[DirectFile]>, token_count: usize, sink: Arc<dyn Sink>) -> Result<Self> {
        let progress = (0..token_count).map(|_| Progress::default()).collect();
        let shared = Arc::new(Shared { files, sink, queues: Mutex::default(), work: Condvar::new(), progress });
        let mut engine = Self { shared, threads: Vec::new() };
        for index in 0..THREAD_COUNT {
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
    fn submit(&self, request: Request) {
        let range = request.range;
        let part_count = range.length.div_ceil(PART_BYTES).max(1);
        self.shared.progress[request.token].remaining.store(part_count as u32, Ordering::Relaxed);
        let parts = (0..part_count).map(|index| {
            let start = index * PART_BYTES;
            Part {
                token: request.token,
                file: request.file,
                offset: range.offset + start as u64,
                length: PART_BYTES.min(range.length - start),
                required: range.required.saturating_sub(start).min(PART_BYTES),
                // SAFETY: `start` lies within the range that the caller handed over, and the parts do not overlap.
                destination: unsafe { Destination::new(request.destination.at(start)) },
            }
        });
        let mut queues = self.shared.queues.lock();
        match request.priority {
            Priority::Demand => queues.demand.extend(parts),
            Priority::Speculative => queues.speculative.extend(parts),
        }
        drop(queues);
        if part_count == 1 {
            self.shared.work.notify_one();
        } else {
            self.shared.work.notify_all();
        }
    }

    fn promote(&self, token: usize) {
        let mut queues = self.shared.queues.lock();
        let Queues { demand, speculative, .. } = &mut *queues;
        for _ in 0..speculative.len() {
            if let Some(part) = speculative.pop_front() {
                let queue = if part.token == token { &mut *demand } else { &mut *speculative };
                queue.push_back(part);
            }
        }
    }

    fn name(&self) -> &'static str {
        "threads"
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        let mut queues = self.shared.queues.lock();
        queues.stopping = true;
        queues.demand.clear();
        queues.speculative.clear();
        drop(queues);
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
        while let Some(part) = self.next_part() {
            let outcome = self.read(&part);
            let progress = &self.progress[part.token];
            if let Err(error) = outcome {
                progress.error.lock().get_or_insert(error);
            }
            // Acquire and release: the last thread must see every other thread's bytes before it reports them.
            if progress.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
                let error = progress.error.lock().take();
                self.sink.finished(part.token, error.map_or(Ok(()), Err));
            }
        }
    }

    fn next_part(&self) -> Option<Part> {
        let mut queues = self.queues.lock();
        loop {
            if queues.stopping {
                return None;
            }
            if let Some(part) = queues.demand.pop_front() {
                return Some(part);
            }
            if let Some(part) = queues.speculative.pop_front() {
                return Some(part);
            }
            self.work.wait(&mut queues);
        }
    }

    fn read(&self, part: &Part) -> Result<()> {
        // SAFETY: the submitter promised (`Destination::new`) that the request's whole range is writable and its alone;
        // this part's range lies inside it and no other part overlaps it.
        unsafe { self.files[part.file].read_at(part.offset, part.destination.at(0), part.length, part.required) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Arena;
    use std::io::Write;

    #[derive(Default)]
    struct Recorder {
        outcomes: Mutex<Vec<(usize, Result<()>)>>,
        changed: Condvar,
    }

    impl Sink for Recorder {
        fn finished(&self, token: usize, outcome: Result<()>) {
            self.outcomes.lock().push((token, outcome));
            self.changed.notify_all();
        }
    }

    impl Recorder {
        fn wait_for(&self, count: usize) {
            let mut outcomes = self.outcomes.lock();
            while outcomes.len() < count {
                self.changed.wait(&mut outcomes);
            }
        }
    }

    fn engine_on(bytes: &[u8], name: &str, tokens: usize) -> (ThreadEngine, Arc<Recorder>, Arc<[DirectFile]>) {
        let path = std::env::temp_dir().join(format!("hypura-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        let files: Arc<[DirectFile]> = [DirectFile::open(&path, true).unwrap()].into();
        std::fs::remove_file(path).unwrap();
        let recorder = Arc::new(Recorder::default());
        let engine = ThreadEngine::start(Arc::clone(&files), tokens, recorder.clone()).unwrap();
        (engine, recorder, files)
    }

    #[test]
    fn requests_of_many_parts_arrive_whole() {
        let bytes: Vec<u8> = (0..9 * PART_BYTES + 77).map(|index| (index / 7) as u8).collect();
        let (engine, recorder, files) = engine_on(&bytes, "engine-parts", 3);
        let wanted = [(5usize, 4 * PART_BYTES), (PART_BYTES - 1, 2), (3 * PART_BYTES + 9, 6 * PART_BYTES + 68)];
        let mut arenas = Vec::new();
        for (token, &(offset, length)) in wanted.iter().enumerate() {
            let range = files[0].widen(offset as u64, length);
            let mut arena = Arena::new(range.length).unwrap();
            // SAFETY: the arena holds the whole range and is read only after the recorder has heard of the completion.
            let destination = unsafe { Destination::new(arena.as_mut_ptr()) };
            let priority = if token == 1 { Priority::Speculative } else { Priority::Demand };
            engine.submit(Request { token, file: 0, range, destination, priority });
            arenas.push((arena, range));
        }
        recorder.wait_for(3);
        assert!(recorder.outcomes.lock().iter().all(|(_, outcome)| outcome.is_ok()));
        for ((mut arena, range), (offset, length)) in arenas.into_iter().zip(wanted) {
            // SAFETY: the completed read filled these bytes.
            let read = unsafe { std::slice::from_raw_parts(arena.as_mut_ptr().add(range.lead), length) };
            assert!(read == &bytes[offset..offset + length]);
        }
    }

    #[test]
    fn one_bad_part_fails_its_request_once_and_no_other() {
        let bytes = vec![1u8; 2 * PART_BYTES];
        let (engine, recorder, files) = engine_on(&bytes, "engine-error", 2);
        let mut arena = Arena::new(8 * PART_BYTES).unwrap();
        for (token, length) in [(0, 3 * PART_BYTES), (1, PART_BYTES)] {
            let range = files[0].widen(0, length);
            // SAFETY: the two ranges are 4 parts apart in an arena of 8.
            let destination = unsafe { Destination::new(arena.as_mut_ptr().add(token * 4 * PART_BYTES)) };
            engine.submit(Request { token, file: 0, range, destination, priority: Priority::Demand });
        }
        recorder.wait_for(2);
        drop(engine);
        let outcomes = recorder.outcomes.lock();
        assert_eq!(outcomes.len(), 2);
        for (token, outcome) in outcomes.iter() {
            match token {
                0 => assert_eq!(outcome.as_ref().unwrap_err().code(), ErrorCode::Truncated),
                _ => assert!(outcome.is_ok()),
            }
        }
    }
}
