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

/// When a measurement ends: with the first of these.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Reads were counted for so long.
    pub counted: Duration,
    /// So much was read, what is not counted included.
    pub bytes: u64,
    /// It took so long, what is not counted included.
    pub total: Duration,
}

impl Limit {
    /// Counts for so long, however much that reads.
    pub fn counting(counted: Duration) -> Self {
        Self { counted, bytes: u64::MAX, total: Duration::MAX }
    }
}

/// What a measurement found.
#[derive(Clone, Copy, Debug)]
pub struct ReadSpeed {
    /// Throughput; 0 where nothing was read in time.
    pub bytes_per_second: f64,
    /// Processor time of this process, all threads, per byte read.
    pub cpu_seconds_per_byte: f64,
    /// What was read for it.
    pub read_bytes: u64,
    /// How long it took, until the last read was over.
    pub took: Duration,
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

/// Reads random blocks of files, keeping the tuning's depth filled, and says how fast that went.
/// Every call reads other places, so that no cache on the way has seen them; through the page cache only such that it has nothing of, so
/// that it is the drive that is measured, and nobody's pages are dropped. All of `arena` is read into in turn: a
/// drive is faster into a few buffers that stay in the processor's cache than into memory.
///
/// # Errors
/// `Open`, `Resource`, also when the memory is less than [`destination_bytes_min`], and whatever a read fails with.
pub fn measure(
    files: &Arc<[DirectFile]>,
    tuning: &Tuning,
    limit: Limit,
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
    let mut request = |token: ReadToken, count: &mut Count| {
        if count.blocks_left == 0 {
            return None;
        }
        let Some((file, offset, length)) = places.next_cold() else {
            count.ran_dry = true;
            return None;
        };
        count.take_block();
        // SAFETY: every token has its own stretch of the arena, is used again only after its completion, and the engine
        // is dropped before the arena's borrow ends.
        let destination = unsafe { Destination::new(start_of(token)) };
        let range = files[file].widen(offset, length);
        Some(Request { token, generation: 1, file, range, destination, priority: Priority::Demand })
    };

    let (began, cpu_before) = (Instant::now(), cpu_seconds());
    let mut count = Count::new(tuning, limit, began);
    let mut requests: Vec<Request> = (0..slots).filter_map(|token| request(ReadToken(token), &mut count)).collect();
    engine.submit(&mut requests);
    while !count.is_over(Instant::now()) {
        let tokens = finished.wait(began.checked_add(limit.total))?;
        if tokens.is_empty() {
            break; // the time is over
        }
        count.completed(tokens.len(), Instant::now());
        requests.extend(tokens.into_iter().filter_map(|token| request(token, &mut count)));
        engine.submit(&mut requests);
    }
    let (bytes, seconds) = count.result(Instant::now());
    drop(engine);
    let read_bytes = count.read_bytes();
    Ok(ReadSpeed {
        bytes_per_second: bytes / seconds.max(f64::MIN_POSITIVE),
        cpu_seconds_per_byte: (cpu_seconds() - cpu_before) / (read_bytes as f64).max(1.0),
        read_bytes,
        took: began.elapsed(),
    })
}

/// How much was read in which time. Reads that began together also end together, nearly: whoever counts from the first completion on, or
/// until some are left, counts what others had read before, or read afterwards. So all that is read counts, from the first submission to the last
/// completion; or, where that would take too long, what is read after the first reads are over.
struct Count<'a> {
    tuning: &'a Tuning,
    counted: Duration,
    blocks_left: u64,
    blocks_in_flight: usize,
    blocks_read: usize,
    began: Instant,
    /// When the first reads were over, and how many that were.
    first: Option<(Instant, usize)>,
    /// There was nothing more to read, so that fewer reads were in flight than there should have been.
    ran_dry: bool,
}

impl<'a> Count<'a> {
    fn new(tuning: &'a Tuning, limit: Limit, now: Instant) -> Self {
        Self {
            tuning,
            counted: limit.counted,
            blocks_left: limit.bytes / tuning.block_bytes as u64,
            blocks_in_flight: 0,
            blocks_read: 0,
            began: now,
            first: None,
            ran_dry: false,
        }
    }

    /// Another block is to be read, if there may be one.
    fn take_block(&mut self) -> bool {
        let may = self.blocks_left > 0;
        if may {
            self.blocks_left -= 1;
            self.blocks_in_flight += 1;
        }
        may
    }

    fn completed(&mut self, blocks: usize, now: Instant) {
        self.blocks_read += blocks;
        self.blocks_in_flight -= blocks;
        if self.first.is_none() && self.blocks_read > self.tuning.depth {
            self.first = Some((now, self.blocks_read));
        }
    }

    /// Whether nothing is left to be read, or can be found, or what was read after the first reads took long enough.
    fn is_over(&self, now: Instant) -> bool {
        self.ran_dry || self.blocks_in_flight == 0 || self.first.is_some_and(|(since, _)| now - since >= self.counted)
    }

    /// Bytes, and the seconds that they took.
    fn result(&self, now: Instant) -> (f64, f64) {
        let (since, not_counted) = match self.first {
            Some(first) if self.blocks_in_flight > 0 => first,
            _ => (self.began, 0),
        };
        let blocks = if self.ran_dry { 0 } else { self.blocks_read - not_counted };
        let bytes = blocks * self.tuning.block_bytes;
        (bytes as f64, (now - since).as_secs_f64())
    }

    /// Of all that was asked for.
    fn read_bytes(&self) -> u64 {
        ((self.blocks_read + self.blocks_in_flight) * self.tuning.block_bytes) as u64
    }
}

/// So many places are looked at for one that the page cache has nothing of.
const TRIES: usize = 64;

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

    /// A file, a place and a length; nothing where the page cache has something of all places that were tried.
    fn next_cold(&mut self) -> Option<(usize, u64, usize)> {
        let files = self.files;
        (0..TRIES).map(|_| self.next()).find(|&(file, offset, length)| {
            let file = &files[file];
            if file.is_direct() {
                return true;
            }
            // Where the system does not tell, the drive is still to be measured, not memory.
            let is_in_page_cache = file.is_in_page_cache(offset, length).unwrap_or_else(|| {
                file.drop_cached(offset, length);
                false
            });
            !is_in_page_cache
        })
    }

    fn next(&mut self) -> (usize, u64, usize) {
        // Xorshift: any sequence without a pattern will do.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let mut block = self.state % self.blocks;
        for (index, file) in self.files.iter().enumerate() {
            let count = (file.opened_size() / self.block_bytes).max(1);
            if block < count {
                let offset = block * self.block_bytes;
                return (index, offset, self.block_bytes.min(file.opened_size() - offset) as usize);
            }
            block -= count;
        }
        unreachable!("there is no block after the last one")
    }
}

/// Collects completions.
#[derive(Default)]
struct Finished {
    outcomes: Mutex<Vec<(ReadToken, Result<()>)>>,
    changed: Condvar,
}

impl Finished {
    /// What has completed; nothing when that took until `end`.
    fn wait(&self, end: Option<Instant>) -> Result<Vec<ReadToken>> {
        let mut outcomes = self.outcomes.lock();
        while outcomes.is_empty() {
            match end {
                None => self.changed.wait(&mut outcomes),
                Some(end) if self.changed.wait_until(&mut outcomes, end).timed_out() => break,
                Some(_) => {}
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::io::EngineKind;

    const TUNING: Tuning = Tuning {
        engine: EngineKind::Threads,
        block_bytes: 64 << 10,
        depth: 4,
        direct: true,
        bytes_per_second: None,
        read_overhead_seconds: None,
    };

    /// What is found of a drive that reads four blocks at once in a millisecond, and nothing in between.
    fn blocks_per_millisecond(limit: Limit) -> f64 {
        let began = Instant::now();
        let at = |milliseconds: usize| began + Duration::from_millis(milliseconds as u64);
        let mut count = Count::new(&TUNING, limit, began);
        (0..8).for_each(|_| assert!(count.take_block()));
        let mut now = 0;
        while !count.is_over(at(now)) {
            now += 1;
            let completed = count.blocks_in_flight.min(4);
            count.completed(completed, at(now));
            (0..completed).for_each(|_| _ = count.take_block());
        }
        let (bytes, seconds) = count.result(at(now));
        bytes / TUNING.block_bytes as f64 / (seconds * 1e3)
    }

    #[test]
    fn reads_that_end_together_are_counted_with_the_time_that_they_took() {
        let (block, total) = (TUNING.block_bytes as u64, Duration::MAX);
        for blocks in [8, 12, 40] {
            let limit = Limit { counted: Duration::from_secs(1), bytes: blocks * block, total };
            assert!((blocks_per_millisecond(limit) - 4.0).abs() < 1e-6, "{blocks} blocks");
        }
        let limit = Limit { counted: Duration::from_millis(25), bytes: u64::MAX, total };
        assert!((blocks_per_millisecond(limit) - 4.0).abs() < 1e-6);
    }

    #[test]
    fn a_measurement_ends_with_its_bytes_and_with_its_time() {
        const KIB: usize = 1 << 10;
        let directory = TestDirectory::new();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![7; 4096 * KIB]).unwrap();
        let files: Arc<[DirectFile]> = Arc::new([DirectFile::open(&path, true).unwrap()]);
        let tuning = Tuning { depth: 2, ..TUNING };
        let mut arena = destination(1024 * KIB).unwrap();
        let mut with = |bytes: u64, total: Duration| {
            let limit = Limit { counted: Duration::from_secs(3600), bytes, total };
            measure(&files, &tuning, limit, 1, &mut arena).unwrap()
        };
        let found = with(1000 * KIB as u64, Duration::MAX);
        assert_eq!(found.read_bytes, 960 * KIB as u64, "whole blocks");
        assert!(found.bytes_per_second > 0.0);
        let found = with(u64::MAX, Duration::ZERO);
        assert!(found.read_bytes <= 8 * 64 * KIB as u64, "hardly more than what begins together: {found:?}");
    }

    #[test]
    fn what_is_in_the_page_cache_is_neither_measured_nor_dropped() {
        const BYTES: usize = 4 << 20;
        let directory = TestDirectory::new();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![7; BYTES]).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap(); // what was not written yet cannot be dropped
        let file = DirectFile::open(&path, false).unwrap();
        let block = TUNING.block_bytes;
        let cached = |file: &DirectFile| {
            (0..BYTES).step_by(block).all(|offset| file.is_in_page_cache(offset as u64, block) == Some(true))
        };
        assert!(cached(&file), "Linux 6.5 tells");
        let files: Arc<[DirectFile]> = Arc::new([file]);
        let mut arena = destination(1 << 20).unwrap();
        let limit = Limit { counted: Duration::from_secs(3600), bytes: BYTES as u64, total: Duration::MAX };
        let found = measure(&files, &Tuning { direct: false, ..TUNING }, limit, 1, &mut arena).unwrap();
        assert_eq!((found.read_bytes, found.bytes_per_second), (0, 0.0));
        assert!(cached(&files[0]));
    }
}
