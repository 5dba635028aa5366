//! Measures cold reads: how fast one engine reads one file with one block size and depth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use typed_index_collections::TiVec;

use super::Tuning;
use crate::error::{Error, ErrorCode, Result};
use crate::index::ReadToken;
use crate::io::{Destination, DirectFile, Priority, Request, Sink, start};
use crate::memory::{Arena, Backing};

/// What a measurement found.
#[derive(Clone, Copy, Debug)]
pub struct ReadSpeed {
    /// Throughput.
    pub bytes_per_second: f64,
    /// Processor time of this process, all threads, per byte read.
    pub cpu_seconds_per_byte: f64,
}

/// Memory to read into, touched: the first touch of a page costs as much as reading it, and that is not the drive's
/// time.
///
/// # Errors
/// `Resource` when the system refuses.
pub fn destination(bytes: usize) -> Result<Arena> {
    let mut arena = Arena::new(bytes)?;
    // SAFETY: the arena is that long, and nobody else knows of it yet.
    unsafe { arena.as_mut_ptr().write_bytes(1, bytes) };
    Ok(arena)
}

/// The least memory that a measurement needs: twice the depth is outstanding, so that the engine always finds a next
/// part.
pub fn destination_bytes_min(tuning: &Tuning) -> usize {
    2 * tuning.depth * tuning.block_bytes
}

/// Reads random blocks of a file for about `duration`, keeping the tuning's depth filled, and says how fast that went.
/// Every call reads other places, so that no cache on the way has seen them. All of `arena` is read into in turn: a
/// drive is faster into a few buffers that stay in the processor's cache than into memory.
///
/// # Errors
/// `Open`, `Resource`, also when the memory is less than [`destination_bytes_min`], and whatever a read fails with.
pub fn measure(
    files: &Arc<[DirectFile]>,
    tuning: &Tuning,
    duration: Duration,
    seed: u64,
    arena: &mut Arena,
) -> Result<ReadSpeed> {
    let slots = 2 * tuning.depth;
    // Each token has blocks of its own, and reads into them one after the other.
    let blocks_per_token = arena.length() / slots / tuning.block_bytes;
    if blocks_per_token == 0 {
        return Err(Error::new(ErrorCode::Resource, format!("there is too little memory to measure {tuning}")));
    }
    let mut read_counts: TiVec<ReadToken, usize> = vec![0; slots].into();
    let mut start_of = |token: ReadToken| {
        let block = token.0 * blocks_per_token + read_counts[token] % blocks_per_token;
        read_counts[token] += 1;
        arena.as_mut_ptr().wrapping_add(block * tuning.block_bytes)
    };
    let finished = Arc::new(Finished::default());
    let engine = start(tuning, Arc::clone(files), slots, finished.clone())?;
    if engine.name() != tuning.engine.name() {
        return Err(Error::new(ErrorCode::Resource, format!("{} cannot be used with {tuning}", tuning.engine.name())));
    }
    let mut places = Places::new(files, tuning.block_bytes, seed);

    let mut requests = Vec::with_capacity(slots);
    let mut request = |token: ReadToken| {
        let (file, offset) = places.next();
        let length = tuning.block_bytes.min((files[file].opened_size() - offset) as usize);
        if !files[file].is_direct() {
            files[file].drop_cached(offset, length);
        }
        // SAFETY: every token has its own stretch of the arena, is used again only after its completion, and the engine
        // is dropped before the arena's borrow ends.
        let destination = unsafe { Destination::new(start_of(token)) };
        Request {
            token,
            generation: 1,
            file,
            range: files[file].widen(offset, length),
            destination,
            priority: Priority::Demand,
        }
    };
    requests.extend((0..slots).map(ReadToken).map(&mut request));
    engine.submit(&mut requests);
    // The reads that began together also end together, nearly: whoever counts from the first of them on counts what the
    // others had already read. So the clock starts when those are done, and as it stops, with a completion.
    let mut early = 0;
    while early <= tuning.depth {
        let tokens = finished.wait()?;
        early += tokens.len();
        requests.extend(tokens.into_iter().map(&mut request));
        engine.submit(&mut requests);
    }
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    let mut bytes = 0;
    while start.elapsed() < duration {
        for token in finished.wait()? {
            bytes += tuning.block_bytes;
            requests.push(request(token));
        }
        engine.submit(&mut requests);
    }
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu_start);
    drop(engine);
    Ok(ReadSpeed { bytes_per_second: bytes as f64 / elapsed, cpu_seconds_per_byte: cpu / bytes.max(1) as f64 })
}

/// Random block-aligned places in the files, by their size.
struct Places<'a> {
    files: &'a [DirectFile],
    block_bytes: u64,
    blocks: u64,
    state: u64,
}

impl<'a> Places<'a> {
    fn new(files: &'a [DirectFile], block_bytes: usize, seed: u64) -> Self {
        let block_bytes = block_bytes as u64;
        let blocks = files.iter().map(|file| (file.opened_size() / block_bytes).max(1)).sum();
        Self { files, block_bytes, blocks, state: seed | 1 }
    }

    fn next(&mut self) -> (usize, u64) {
        // Xorshift: any sequence without a pattern will do.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let mut block = self.state % self.blocks;
        for (index, file) in self.files.iter().enumerate() {
            let count = (file.opened_size() / self.block_bytes).max(1);
            if block < count {
                return (index, block * self.block_bytes);
            }
            block -= count;
        }
        (0, 0)
    }
}

/// Collects completions.
#[derive(Default)]
struct Finished {
    outcomes: Mutex<Vec<(ReadToken, Result<()>)>>,
    changed: Condvar,
}

impl Finished {
    fn wait(&self) -> Result<Vec<ReadToken>> {
        let mut outcomes = self.outcomes.lock();
        while outcomes.is_empty() {
            self.changed.wait(&mut outcomes);
        }
        outcomes.drain(..).map(|(token, outcome)| outcome.map(|()| token)).collect()
    }
}

impl Sink for Finished {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        self.outcomes.lock().push((token, outcome));
        self.changed.notify_one();
    }

    fn broken(&self, error: Error) {
        self.finished(ReadToken(usize::MAX), Err(error));
    }
}

/// Processor seconds that this process has used so far.
fn cpu_seconds() -> f64 {
    // SAFETY: `rusage` is plain old data, for which all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` outlives the call, which only writes to it.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
