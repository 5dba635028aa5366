//! The engines on real files: the same tests for both, direct and buffered.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Destination, Engine, EngineKind, Priority, Request, Sink, start, uring_available};
use crate::common::{Random, TestDirectory, skip, within};
use crate::error::{Error, ErrorCode, Result};
use crate::index::ReadToken;
use crate::io::{DirectFile, Tuning};
use crate::memory::Arena;

/// The length after which a sample's bytes repeat: a prime, so that no wrong offset of a block, a page or a sector has
/// the right bytes.
const PERIOD: usize = 16_777_213;

/// A file whose every byte is known without keeping the file.
struct Sample {
    directory: TestDirectory,
    period: Vec<u8>,
}

impl Sample {
    fn new(length: u64, seed: u64) -> Self {
        let directory = TestDirectory::new();
        let period = Random::new(seed).bytes(PERIOD.min(length as usize));
        let sample = Self { directory, period };
        let mut file = std::fs::File::create(sample.path()).unwrap();
        let mut left = length as usize;
        while left > 0 {
            let count = left.min(sample.period.len());
            file.write_all(&sample.period[..count]).unwrap();
            left -= count;
        }
        file.sync_all().unwrap();
        sample
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("sample")
    }

    fn open(&self, direct: bool) -> DirectFile {
        DirectFile::open(&self.path(), direct).unwrap()
    }

    #[track_caller]
    fn assert_right(&self, offset: u64, mut found: &[u8]) {
        let mut offset = offset as usize;
        while !found.is_empty() {
            let expected = &self.period[offset % self.period.len()..];
            let count = expected.len().min(found.len());
            assert!(expected[..count] == found[..count], "wrong bytes at {offset} or within {count} after it");
            offset += count;
            found = &found[count..];
        }
    }
}

/// Collects what an engine reports.
#[derive(Default)]
struct Reports {
    arrived: Mutex<Vec<(ReadToken, Result<()>)>>,
    changed: Condvar,
}

impl Reports {
    /// What has arrived since the last call; with `wait`, at least one report.
    fn take(&self, wait: bool) -> Vec<(ReadToken, Result<()>)> {
        let mut arrived = self.arrived.lock();
        while wait && arrived.is_empty() {
            self.changed.wait(&mut arrived);
        }
        std::mem::take(&mut arrived)
    }
}

impl Sink for Reports {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        self.arrived.lock().push((token, outcome));
        self.changed.notify_one();
    }

    fn broken(&self, error: Error) {
        self.finished(ReadToken(usize::MAX), Err(error));
    }
}

/// A read that was asked for, with memory of its own.
struct Wanted {
    request: Request,
    offset: u64,
    length: usize,
    memory: Arena,
    is_cancelled: bool,
}

impl Wanted {
    fn new(token: usize, file: usize, opened: &DirectFile, offset: u64, length: usize, priority: Priority) -> Self {
        let range = opened.widen(offset, length);
        let mut memory = Arena::new(range.length).unwrap();
        // SAFETY: the mapping is as long as the widened range, aligned to pages, touched only by the read until it is
        // reported, cancelled or the engine dropped, and unmapped only after that.
        let destination = unsafe { Destination::new(memory.as_mut_ptr()) };
        Self {
            request: Request { token: ReadToken(token), generation: 1, file, range, destination, priority },
            offset,
            length,
            memory,
            is_cancelled: false,
        }
    }

    /// What was read.
    fn bytes(&mut self) -> &[u8] {
        let first = self.memory.as_mut_ptr().wrapping_add(self.request.range.head_padding);
        // SAFETY: the mapping is as long as the widened range, which contains the wanted one, and the read is over.
        unsafe { std::slice::from_raw_parts(first, self.length) }
    }
}

/// Runs a test on both engines, direct and buffered.
fn on_every_engine(test: impl Fn(EngineKind, bool)) {
    for direct in [true, false] {
        test(EngineKind::Threads, direct);
        match uring_available() {
            Ok(()) => test(EngineKind::Uring, direct),
            Err(reason) => skip(&format!("io_uring engine: {reason}")),
        }
    }
}

fn engine(
    kind: EngineKind,
    block_bytes: usize,
    depth: usize,
    files: &Arc<[DirectFile]>,
    token_count: usize,
    reports: &Arc<Reports>,
) -> Box<dyn Engine> {
    let direct = files.iter().all(DirectFile::is_direct);
    let tuning =
        Tuning { engine: kind, block_bytes, depth, direct, bytes_per_second: None, read_overhead_seconds: None };
    let engine = start(&tuning, Arc::clone(files), token_count, reports.clone()).unwrap();
    assert_eq!(engine.name(), if kind == EngineKind::Uring { "uring" } else { "threads" });
    engine
}

/// Mostly small, as experts of small models are, now and then many blocks.
fn random_length(random: &mut Random, limit: u64) -> usize {
    let most = match random.below(100) {
        0..60 => 16 << 10,
        60..85 => 256 << 10,
        85..98 => 2 << 20,
        _ => 32 << 20,
    };
    1 + random.below(most.min(limit as usize))
}

/// A few extents: scattered and unaligned, or side by side, as merging wants them.
fn random_extents(random: &mut Random, file: &DirectFile) -> Vec<(u64, usize)> {
    let size = file.opened_size();
    if random.below(3) > 0 {
        let count = 1 + random.below(6);
        let extent = |random: &mut Random| {
            let length = random_length(random, size);
            (random.next() % (size - length as u64 + 1), length)
        };
        return (0..count).map(|_| extent(random)).collect();
    }
    let unit =
        file.alignment().offset_bytes.max(random.below(9000) + 1).next_multiple_of(file.alignment().offset_bytes);
    let count = 2 + random.below(10);
    let mut offset = random.next() % (size - (count * 4 * unit) as u64) / unit as u64 * unit as u64;
    let adjacent = |_| {
        let length = (1 + random.below(4)) * unit;
        let extent = (offset, length);
        offset += length as u64;
        extent
    };
    (0..count).map(adjacent).collect()
}

/// Reads random extents with everything that a caller may do, and checks every byte.
fn check_random_reads(sample: &Sample, kind: EngineKind, direct: bool, request_count: usize, seed: u64) {
    const OUTSTANDING: usize = 64;
    const OUTSTANDING_BYTES: usize = 96 << 20;
    let files: Arc<[DirectFile]> = Arc::from([sample.open(direct)]);
    let mut random = Random::new(seed);
    let block_bytes = [64 << 10, 256 << 10, 1 << 20][random.below(3)];
    let depth = [1, 3, 8, 16][random.below(4)];
    let context = format!("{kind:?}, direct {direct}, blocks of {block_bytes}, depth {depth}, seed {seed}");
    let reports = Arc::new(Reports::default());
    // The reads' memory comes first, so that also when an assertion fails it goes after the engine.
    let mut outstanding: Vec<Wanted> = Vec::new();
    let engine = engine(kind, block_bytes, depth, &files, request_count, &reports);
    let mut next_token = 0;
    while next_token < request_count || !outstanding.is_empty() {
        let outstanding_bytes: usize = outstanding.iter().map(|wanted| wanted.length).sum();
        let room = outstanding.len() < OUTSTANDING && outstanding_bytes < OUTSTANDING_BYTES;
        if room && next_token < request_count {
            let mut requests = Vec::new();
            for (offset, length) in random_extents(&mut random, &files[0]) {
                if next_token == request_count || outstanding.len() == OUTSTANDING {
                    break;
                }
                let priority = [Priority::Demand, Priority::Ahead, Priority::Speculative][random.below(3)];
                let wanted = Wanted::new(next_token, 0, &files[0], offset, length, priority);
                requests.push(wanted.request);
                outstanding.push(wanted);
                next_token += 1;
            }
            engine.submit(&mut requests);
            assert!(requests.is_empty());
        }
        if random.below(3) == 0 {
            // Of reads that are queued, in flight, over or never were: nothing of it may matter.
            engine.promote(ReadToken(random.below(request_count)), 1);
        }
        if random.below(3) == 0 && !outstanding.is_empty() {
            let index = random.below(outstanding.len());
            let Request { token, priority, .. } = outstanding[index].request;
            if let Some(cancelled) = engine.cancel(token) {
                assert_ne!(priority, Priority::Demand, "a demand was cancelled: {context}");
                match cancelled.is_in_flight {
                    true => outstanding[index].is_cancelled = true,
                    // A report of it after this would find nothing outstanding.
                    false => drop(outstanding.swap_remove(index)),
                }
            }
        }
        let full = next_token == request_count || outstanding.len() >= OUTSTANDING || !room;
        for (token, outcome) in reports.take(full && !outstanding.is_empty()) {
            let index = outstanding.iter().position(|wanted| wanted.request.token == token);
            let index = index.unwrap_or_else(|| panic!("read {token} was not awaited: {context}"));
            let mut wanted = outstanding.swap_remove(index);
            outcome.unwrap_or_else(|error| panic!("{error}: {context}"));
            if wanted.is_cancelled {
                continue;
            }
            let offset = wanted.offset;
            sample.assert_right(offset, wanted.bytes());
        }
    }
    drop(engine);
    assert!(reports.take(false).is_empty(), "reported twice, or after it was cancelled: {context}");
}

fn check_file(length: u64, request_count: usize) {
    let sample = Sample::new(length, 1);
    on_every_engine(|kind, direct| {
        for seed in 0..4 {
            check_random_reads(&sample, kind, direct, request_count, seed);
        }
    });
}

#[test]
fn random_extents_have_the_files_bytes() {
    // An odd length: the last read ends in the middle of a sector.
    within(300, || check_file((64 << 20) - 1234, 100));
}

#[test]
#[ignore = "writes and reads gigabytes: HYPURA_TEST_BYTES of them, 4 GiB unless set"]
fn random_extents_of_a_large_file_have_its_bytes() {
    let length = std::env::var("HYPURA_TEST_BYTES").map_or(4 << 30, |bytes| bytes.parse().unwrap());
    within(3600, move || check_file(length, 1000));
}

#[test]
fn nothing_is_reported_or_written_after_the_drop() {
    within(300, || {
        let sample = Sample::new(8 << 20, 2);
        on_every_engine(|kind, direct| {
            let files: Arc<[DirectFile]> = Arc::from([sample.open(direct)]);
            let mut random = Random::new(3);
            for round in 0..20 {
                let reports = Arc::new(Reports::default());
                let priority = if round % 2 == 0 { Priority::Demand } else { Priority::Speculative };
                let mut wanted: Vec<Wanted> = (0..24)
                    .map(|token| {
                        let offset = random.next() % (7 << 20);
                        Wanted::new(token, 0, &files[0], offset, 1 + random.below(1 << 20), priority)
                    })
                    .collect();
                let engine = engine(kind, 64 << 10, 4, &files, wanted.len(), &reports);
                engine.submit(&mut wanted.iter().map(|wanted| wanted.request).collect());
                std::thread::sleep(Duration::from_micros(200 * (round % 5)));
                drop(engine);
                let reported = reports.take(false);
                for (token, outcome) in &reported {
                    outcome.as_ref().unwrap();
                    let wanted = &mut wanted[token.0];
                    sample.assert_right(wanted.offset, wanted.bytes());
                }
                for wanted in &mut wanted {
                    // SAFETY: as long as the mapping, and the engine is gone.
                    unsafe { wanted.memory.as_mut_ptr().write_bytes(0xa5, wanted.request.range.length) };
                }
                if round % 5 == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                for wanted in &mut wanted {
                    assert!(wanted.bytes().iter().all(|&byte| byte == 0xa5), "written after the drop");
                }
                assert!(reports.take(false).is_empty(), "reported after the drop");
            }
        });
    });
}

/// Brings a stretch of a file into the page cache, and nothing else of it.
fn read_without_ahead(path: &Path, offset: u64, length: usize) {
    let file = std::fs::File::open(path).unwrap();
    #[cfg(target_os = "linux")]
    // SAFETY: advice on an open descriptor.
    unsafe {
        libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, libc::POSIX_FADV_RANDOM);
    }
    file.read_exact_at(&mut vec![0; length], offset).unwrap();
}

#[test]
fn what_others_hold_in_the_page_cache_stays_when_the_rest_is_read() {
    const PART: usize = 64 << 10;
    within(300, || {
        let sample = Sample::new(4 * PART as u64, 4);
        on_every_engine(|kind, direct| {
            let file = sample.open(direct);
            let held =
                || (0..4).map(|part| file.is_in_page_cache((part * PART) as u64, PART)).collect::<Option<Vec<_>>>();
            file.drop_cached(0, 4 * PART);
            for part in [0, 1, 3] {
                read_without_ahead(&sample.path(), (part * PART) as u64, PART);
            }
            let Some(before) = held().filter(|held| held == &[true, true, false, true]) else {
                return skip("the page cache: this system does not tell what it holds, or does not drop it");
            };
            let files: Arc<[DirectFile]> = Arc::from([sample.open(direct)]);
            files[0].use_page_cache();
            let reports = Arc::new(Reports::default());
            let mut wanted = Wanted::new(0, 0, &files[0], 0, 4 * PART, Priority::Demand);
            let engine = engine(kind, 4 * PART, 4, &files, 1, &reports);
            engine.submit(&mut vec![wanted.request]);
            reports.take(true).remove(0).1.unwrap();
            sample.assert_right(0, wanted.bytes());
            let after = held().unwrap();
            assert!(before.iter().zip(&after).all(|(before, after)| after >= before), "{before:?} {after:?}");
        });
    });
}

#[test]
fn a_truncated_file_is_reported_once_and_harms_no_other() {
    within(300, || {
        on_every_engine(|kind, direct| {
            let samples = [Sample::new(4 << 20, 4), Sample::new(4 << 20, 5)];
            let files: Arc<[DirectFile]> = samples.iter().map(|sample| sample.open(direct)).collect();
            OpenOptions::new().write(true).open(samples[1].path()).unwrap().set_len(2 << 20).unwrap();
            let reports = Arc::new(Reports::default());
            let mut random = Random::new(6);
            let mut wanted: Vec<Wanted> = (0..60)
                .map(|token| {
                    let file = token % 2;
                    let (offset, length) = (random.next() % (3 << 20), 1 + random.below(1 << 20));
                    Wanted::new(token, file, &files[file], offset, length, Priority::Demand)
                })
                .collect();
            let engine = engine(kind, 64 << 10, 4, &files, wanted.len(), &reports);
            engine.submit(&mut wanted.iter().map(|wanted| wanted.request).collect());
            let mut reported = vec![false; wanted.len()];
            while reported.contains(&false) {
                for (ReadToken(token), outcome) in reports.take(true) {
                    assert!(!std::mem::replace(&mut reported[token], true), "{token} is reported twice");
                    match (token % 2, outcome) {
                        (0, outcome) => {
                            outcome.unwrap();
                            let offset = wanted[token].offset;
                            samples[0].assert_right(offset, wanted[token].bytes());
                        }
                        (_, outcome) => assert_eq!(outcome.unwrap_err().code(), ErrorCode::Truncated),
                    }
                }
            }
            drop(engine);
            assert!(reports.take(false).is_empty());
        });
    });
}

/// Processor nanoseconds and voluntary switches of all threads but this one, as the kernel counts them.
#[cfg(target_os = "linux")]
fn other_threads_activity() -> (u64, u64) {
    // SAFETY: the call has no arguments and cannot fail.
    let this = unsafe { libc::gettid() }.to_string();
    let mut activity = (0, 0);
    for entry in std::fs::read_dir("/proc/self/task").unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() == *this {
            continue;
        }
        // A thread may end meanwhile; then it does nothing any more.
        let run = std::fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        activity.0 += run.split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        activity.1 += switches.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    activity
}

/// Runs alone in a process of its own, where every thread but this one is the engine's.
#[cfg(target_os = "linux")]
#[test]
fn an_idle_engine_uses_no_processor_time() {
    const ALONE: &str = "HYPURA_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "io::engine::tests::an_idle_engine_uses_no_processor_time";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let status =
            command.args(["--exact", name, "--test-threads=1", "--nocapture"]).env(ALONE, "1").status().unwrap();
        assert!(status.success(), "the engine worked while it was idle; see above");
        return;
    }
    let sample = Sample::new(4 << 20, 7);
    on_every_engine(|kind, direct| {
        let files: Arc<[DirectFile]> = Arc::from([sample.open(direct)]);
        let reports = Arc::new(Reports::default());
        let mut wanted = Wanted::new(0, 0, &files[0], 0, 1 << 20, Priority::Demand);
        let engine = engine(kind, 64 << 10, 4, &files, 1, &reports);
        engine.submit(&mut vec![wanted.request]);
        let (_, outcome) = reports.take(true).pop().unwrap();
        outcome.unwrap();
        sample.assert_right(0, wanted.bytes());
        // The threads take a moment to fall asleep, longer on a busy machine; one that spins or polls never does.
        let quiet = (0..10).any(|_| {
            let before = other_threads_activity();
            std::thread::sleep(Duration::from_millis(200));
            let after = other_threads_activity();
            println!("idle {kind:?}, direct {direct}: {} ns, {} wake-ups", after.0 - before.0, after.1 - before.1);
            before == after
        });
        assert!(quiet, "{kind:?}");
        drop(engine);
    });
}
