//! Reads that go wrong in every way, decided by a seed: the real queue and the real judgement of outcomes, with a drive
//! that is made up.
//!
//! HYPURA_TEST_SEED runs the one case that a failure has named.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use typed_index_collections::TiVec;

use super::part::{Part, Step};
use super::queue::Queue;
use super::{Cancelled, Destination, Engine, Priority, Request, Sink};
use crate::common::{Model, Random, TestDirectory, dense_model, expert_model, within};
use crate::error::{Error, ErrorCode, Result};
use crate::index::ReadToken;
use crate::io::DirectFile;
use crate::memory::Arena;

/// How bad the drive is, as shares of a thousand outcomes.
#[derive(Clone, Copy, Default)]
struct Badness {
    short: usize,
    again: usize,
    /// Failures that pass, or do not.
    ailing: usize,
    hard: usize,
    /// Parts that are asked to try again for ever.
    stuck: usize,
}

impl Badness {
    fn random(random: &mut Random) -> Self {
        let share = |random: &mut Random, most: usize| [0, most / 10, most][random.below(3)];
        Self {
            // Some reads must succeed, or a small one would use up its attempts.
            short: share(random, 500),
            again: share(random, 300),
            ailing: share(random, 30),
            hard: share(random, 60),
            stuck: if random.below(50) == 0 { 20 } else { 0 },
        }
    }
}

/// A part that the made-up drive is working on.
struct InFlight {
    part: Part,
    /// Steps until it may complete.
    delay: usize,
    stuck: bool,
    /// How it fails, and how often it does so in a row.
    ailing: Option<(i32, usize)>,
}

/// More often in a row than a read is tried again.
const FOR_EVER: usize = 6;

/// The made-up drive.
struct Drive {
    random: Random,
    badness: Badness,
    depth: usize,
    in_flight: Vec<InFlight>,
    files: Arc<[DirectFile]>,
    /// By file: its bytes.
    contents: Arc<[Vec<u8>]>,
    /// By token: what must be reported, had the request's last part just come back.
    failed: HashMap<ReadToken, ErrorCode>,
}

impl Drive {
    /// Takes a part on, or completes one in whatever order. Says whether there was anything to do.
    fn step(&mut self, queue: &Queue, sink: &dyn Sink) -> bool {
        if self.in_flight.len() < self.depth && (self.in_flight.is_empty() || self.random.below(2) == 0) {
            let part = {
                let mut pending = queue.lock();
                if pending.stopping { None } else { queue.take(&mut pending) }
            };
            match part {
                Some(part) if part.is_padding() => {
                    queue.part_done(&part, Ok(()), sink);
                    return true;
                }
                Some(part) => {
                    let delay = [0, 0, 1, 7, 40][self.random.below(5)];
                    let stuck = self.random.below(1000) < self.badness.stuck;
                    self.in_flight.push(InFlight { part, delay, stuck, ailing: None });
                    return true;
                }
                None => {}
            }
        }
        if self.in_flight.is_empty() {
            return false;
        }
        let index = self.random.below(self.in_flight.len());
        match &mut self.in_flight[index].delay {
            0 => self.complete(index, queue, sink),
            delay => *delay -= 1,
        }
        true
    }

    fn complete(&mut self, index: usize, queue: &Queue, sink: &dyn Sink) {
        let InFlight { mut part, stuck, mut ailing, .. } = self.in_flight.swap_remove(index);
        let was_ailing = ailing.is_some();
        let (outcome, hard) = self.outcome(&part, stuck, &mut ailing);
        let file = &self.files[part.file];
        let is_transient = outcome.as_ref().is_err_and(DirectFile::is_transient);
        let result = match (part.advance(file, outcome), hard) {
            (Step::Again, None) => {
                self.in_flight.push(InFlight { part, delay: 0, stuck, ailing });
                return;
            }
            (Step::Later(_), None) => {
                assert!(is_transient, "a pause for no reason");
                self.in_flight.push(InFlight { part, delay: self.random.below(20), stuck, ailing });
                return;
            }
            (Step::Finished, None) => Ok(()),
            (Step::Failed(error), hard) => {
                // Endless attempts are given up some time; nothing else may fail for no reason.
                let given_up = stuck || (was_ailing && is_transient);
                let code = hard.or(given_up.then_some(error.code())).unwrap_or_else(|| panic!("made up: {error}"));
                for segment in part.segments() {
                    self.failed.entry(segment.token).or_insert(code);
                }
                Err(error)
            }
            (_, Some(code)) => panic!("{code:?} was overlooked"),
        };
        queue.part_done(&part, result, sink);
    }

    /// Makes up what a system call returned, with its effect on memory; also the error that must come of it, if it is
    /// final.
    fn outcome(
        &mut self,
        part: &Part,
        stuck: bool,
        ailing: &mut Option<(i32, usize)>,
    ) -> (io::Result<usize>, Option<ErrorCode>) {
        let failure = |number| Err(io::Error::from_raw_os_error(number));
        let (position, length) = (part.position(), self.check_vectors(part));
        let kind = self.random.below(1000);
        let Badness { short, again, hard, ailing: ails, .. } = self.badness;
        if let Some((number, left)) = ailing {
            if *left > 0 {
                *left -= 1;
                let number = *number;
                self.fill(part, 0);
                return (failure(number), None);
            }
        } else if kind < ails {
            // Either it passes before anybody gives up, or it never does.
            let number = [libc::EIO, libc::EAGAIN, libc::ESTALE, libc::ETIMEDOUT, libc::ENOMEM][self.random.below(5)];
            *ailing = Some((number, [1, 2, 4, 5, FOR_EVER][self.random.below(5)] - 1));
            self.fill(part, 0);
            return (failure(number), None);
        }
        if stuck || kind < again {
            self.fill(part, 0);
            return (failure(libc::EINTR), None);
        }
        if kind < again + hard {
            let available = length.min((self.contents[part.file].len() as u64).saturating_sub(position) as usize);
            let count = self.random.below(available + 1);
            let (outcome, code) = match self.random.below(3) {
                0 => (failure([libc::EINVAL, libc::EACCES, libc::EBADF][self.random.below(3)]), ErrorCode::Io),
                1 => (failure([libc::ENOSPC, libc::EDQUOT][self.random.below(2)]), ErrorCode::Resource),
                _ => (Ok(0), ErrorCode::Truncated),
            };
            // A failed read may have written anything.
            self.fill(part, count);
            return (outcome, Some(code));
        }
        let size = self.contents[part.file].len() as u64;
        let available = length.min(size.saturating_sub(position) as usize);
        let count = match available {
            0 => 0,
            _ if kind < again + hard + short => 1 + self.random.below(available),
            _ => available,
        };
        self.fill(part, count);
        // Someone asked for bytes that the file does not have.
        let beyond = part.required_end() > size;
        (Ok(count), (beyond && position + count as u64 >= size).then_some(ErrorCode::Truncated))
    }

    /// What the kernel would check; returns how many bytes are asked for.
    fn check_vectors(&self, part: &Part) -> usize {
        let alignment = self.files[part.file].alignment();
        assert_eq!(part.position() % alignment.offset_bytes as u64, 0, "misaligned in the file");
        let vectors = part.vectors();
        let entries = entries(&vectors);
        assert!(!entries.is_empty());
        for entry in entries {
            assert!(entry.iov_len > 0);
            assert_eq!(entry.iov_base.addr() % alignment.memory_bytes, 0, "misaligned in memory");
            assert_eq!(entry.iov_len % alignment.offset_bytes, 0, "misaligned length");
        }
        entries.iter().map(|entry| entry.iov_len).sum()
    }

    /// Writes `count` right bytes and, as a drive may, rubbish after them.
    fn fill(&mut self, part: &Part, count: usize) {
        let contents = &self.contents[part.file];
        let mut position = part.position() as usize;
        let mut left = count;
        for entry in entries(&part.vectors()) {
            let right = left.min(entry.iov_len);
            left -= right;
            let target = entry.iov_base.cast::<u8>();
            if right > 0 {
                let source = &contents[position..][..right];
                // SAFETY: the request's memory is the read's alone until it is reported (`Destination::new`), and the
                // entry says how long it is; the file's contents are elsewhere.
                unsafe { target.copy_from_nonoverlapping(source.as_ptr(), right) };
            }
            position += right;
            // SAFETY: as above; `right` is at most the entry's length.
            unsafe { target.add(right).write_bytes(0x3c, entry.iov_len - right) };
        }
    }
}

fn entries(vectors: &super::part::Vectors) -> &[libc::iovec] {
    // SAFETY: the vectors own that many entries from that address on, and are borrowed as long as the slice.
    unsafe { std::slice::from_raw_parts(vectors.as_ptr(), vectors.count()) }
}

/// The seeds to run, and a note of the current one for when it fails.
fn for_every_seed(count: u64, mut case: impl FnMut(u64)) {
    struct Note(u64);
    impl Drop for Note {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with HYPURA_TEST_SEED={}", self.0);
            }
        }
    }
    let one = std::env::var("HYPURA_TEST_SEED").ok().map(|seed| seed.parse::<u64>().expect("a seed is a number"));
    for seed in one.map_or(0..count, |seed| seed..seed + 1) {
        let _note = Note(seed);
        case(seed);
    }
}

#[derive(Default)]
struct Reports(Mutex<Vec<(ReadToken, Result<()>)>>);

impl Sink for Reports {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        self.0.lock().push((token, outcome));
    }

    fn broken(&self, error: Error) {
        self.finished(ReadToken(usize::MAX), Err(error));
    }
}

/// What became of a token's request.
enum Fate {
    Free,
    Reading(Request),
    /// Before it began.
    Cancelled,
    /// After it began; the last of it is still in flight.
    Ending,
}

const UNTOUCHED: u8 = 0x77;
const SLOTS: usize = 24;
const SLOT_BYTES: usize = 64 << 10;

/// Compared as a whole, which is fast also in builds without optimization.
fn is_untouched(memory: &[u8]) -> bool {
    static PATTERN: [u8; SLOT_BYTES] = [UNTOUCHED; SLOT_BYTES];
    memory == &PATTERN[..memory.len()]
}

/// One case of requests, cancellations and a bad drive, one step at a time and so the same for the same seed.
struct Case {
    random: Random,
    queue: Queue,
    drive: Drive,
    reports: Reports,
    /// By token.
    fates: TiVec<ReadToken, Fate>,
    start: *mut u8,
    generation: u64,
}

impl Case {
    fn slot(&mut self, token: ReadToken) -> &mut [u8] {
        // SAFETY: every token has its own slot of the arena, which outlives the case; nothing runs at the same time.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(token.0 * SLOT_BYTES), SLOT_BYTES) }
    }

    fn random_range(&mut self, file: usize) -> (u64, usize) {
        let size = self.drive.contents[file].len() as u64;
        let most = [1, 600, 5000, SLOT_BYTES - 8192][self.random.below(4)];
        let length = 1 + self.random.below(most);
        match self.random.below(200) {
            // The file does not have all of these bytes.
            0 => (size - self.random.next() % length as u64, length),
            1 => (size - length as u64, length),
            _ => (self.random.next() % (size - length as u64), length),
        }
    }

    fn submit(&mut self) {
        let file = self.random.below(self.drive.files.len());
        let adjacent = self.random.below(3) == 0;
        let mut requests = Vec::new();
        self.generation += 1;
        let (mut offset, mut length) = self.random_range(file);
        for token in (0..SLOTS).map(ReadToken) {
            if matches!(self.fates[token], Fate::Reading(_) | Fate::Ending) || self.random.below(3) == 0 {
                continue;
            }
            let opened = &self.drive.files[file];
            let range = opened.widen(offset, length);
            self.slot(token).fill(UNTOUCHED);
            // SAFETY: the token's slot is longer than any widened range, aligned to pages, and left alone until the
            // request is reported or cancelled.
            let destination = unsafe { Destination::new(self.slot(token).as_mut_ptr()) };
            let priority = [Priority::Demand, Priority::Ahead, Priority::Speculative][self.random.below(3)];
            let request = Request { token, generation: self.generation, file, range, destination, priority };
            self.fates[token] = Fate::Reading(request);
            requests.push(request);
            if self.random.below(4) == 0 {
                break;
            }
            (offset, length) = self.random_range(file);
            if adjacent {
                offset = range.offset + range.length as u64;
                if offset + length as u64 > self.drive.contents[file].len() as u64 {
                    break;
                }
            }
        }
        self.queue.push(&mut requests);
    }

    fn cancel(&mut self) {
        let token = ReadToken(self.random.below(SLOTS));
        let Some(Cancelled { begun_bytes, is_in_flight }) = self.queue.cancel(token) else { return };
        let Fate::Reading(Request { priority, .. }) = self.fates[token] else { panic!("{token} was not being read") };
        assert_ne!(priority, Priority::Demand);
        assert!(is_untouched(&self.slot(token)[begun_bytes..]), "more was begun than is said");
        self.fates[token] = match (begun_bytes, is_in_flight) {
            (0, _) => Fate::Cancelled,
            (_, true) => Fate::Ending,
            (_, false) => Fate::Free,
        };
        if !is_in_flight {
            self.drive.failed.remove(&token);
        }
    }

    fn check_reports(&mut self) {
        let reports = std::mem::take(&mut *self.reports.0.lock());
        for (token, outcome) in reports {
            let fate = std::mem::replace(&mut self.fates[token], Fate::Free);
            let expected = self.drive.failed.remove(&token);
            assert_eq!(outcome.as_ref().err().map(Error::code), expected, "{outcome:?}");
            let Request { file, range, .. } = match fate {
                Fate::Reading(request) => request,
                Fate::Ending => continue,
                _ => panic!("{token} was not awaited"),
            };
            if outcome.is_ok() {
                let contents = Arc::clone(&self.drive.contents);
                let right = &contents[file][range.offset as usize..][..range.required];
                assert!(self.slot(token)[..range.required] == *right, "wrong bytes of {range:?}");
            }
            let after = &self.slot(token)[range.length..];
            assert!(is_untouched(after), "written past the request");
        }
    }

    fn run(&mut self) {
        for _ in 0..10 + self.random.below(60) {
            match self.random.below(12) {
                0 | 1 => self.submit(),
                2 => self.cancel(),
                3 => self.queue.promote(ReadToken(self.random.below(SLOTS)), self.generation - self.random.next() % 2),
                _ => drop(self.drive.step(&self.queue, &self.reports)),
            }
            self.check_reports();
        }
        let dropped = self.random.below(5) == 0;
        if dropped {
            self.queue.stop();
        }
        let mut steps = 0;
        while self.drive.step(&self.queue, &self.reports) {
            self.check_reports();
            steps += 1;
            assert!(steps < 1_000_000, "no end in sight");
        }
        self.check_reports();
        for token in (0..SLOTS).map(ReadToken) {
            let is_reading = matches!(self.fates[token], Fate::Reading(_) | Fate::Ending);
            assert!(dropped || !is_reading, "{token} is never reported");
            if matches!(self.fates[token], Fate::Cancelled) {
                assert!(is_untouched(self.slot(token)), "written after it was cancelled");
            }
        }
    }
}

/// Two files with known bytes, opened.
fn sample_files(directory: &Path, direct: bool, contents: &[Vec<u8>]) -> Arc<[DirectFile]> {
    let open = |(index, bytes): (usize, &Vec<u8>)| {
        let path = directory.join(format!("sample-{index}"));
        std::fs::write(&path, bytes).unwrap();
        DirectFile::open(&path, direct).unwrap()
    };
    contents.iter().enumerate().map(open).collect()
}

#[test]
fn a_bad_drive_never_yields_wrong_bytes_or_silence() {
    within(300, || {
        let mut random = Random::new(1);
        let contents: Arc<[Vec<u8>]> = Arc::from([random.bytes(600_000), random.bytes(300_001)]);
        let directories = [TestDirectory::new(), TestDirectory::new()];
        let files =
            [false, true].map(|direct| sample_files(directories[usize::from(direct)].path(), direct, &contents));
        let mut arena = Arena::new(SLOTS * SLOT_BYTES).unwrap();
        for_every_seed(10_000, |seed| {
            let mut random = Random::new(seed);
            let files = &files[random.below(2)];
            let drive = Drive {
                badness: Badness::random(&mut random),
                depth: 1 + random.below(8),
                random: Random::new(random.next()),
                in_flight: Vec::new(),
                files: Arc::clone(files),
                contents: Arc::clone(&contents),
                failed: HashMap::new(),
            };
            // Small blocks make many parts of little data; every file's alignment is at most a page.
            let queue = Queue::new(SLOTS, 4096 << random.below(4));
            let fates = (0..SLOTS).map(|_| Fate::Free).collect();
            Case { random, queue, drive, reports: Reports::default(), fates, start: arena.as_mut_ptr(), generation: 1 }
                .run();
        });
    });
}

/// The made-up drive as an engine with a thread of its own.
struct FaultyEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Queue,
    work: Condvar,
    failures: Arc<AtomicUsize>,
}

impl FaultyEngine {
    fn start(
        mut drive: Drive,
        token_count: usize,
        sink: Arc<dyn Sink>,
        (failures, is_well): (Arc<AtomicUsize>, Arc<AtomicBool>),
    ) -> Self {
        let shared = Arc::new(Shared { queue: Queue::new(token_count, 64 << 10), work: Condvar::new(), failures });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let step = |drive: &mut Drive| {
                let step = AssertUnwindSafe(|| drive.step(&for_thread.queue, &*sink));
                catch_unwind(step).unwrap_or_else(|panic| {
                    // Those who wait must learn of it, to name the seed.
                    sink.finished(ReadToken(0), Err(Error::new(ErrorCode::Panic, "the faulty engine found a fault")));
                    resume_unwind(panic)
                })
            };
            loop {
                while step(&mut drive) {
                    if is_well.load(Ordering::Relaxed) {
                        drive.badness = Badness::default();
                    }
                    for_thread.failures.store(drive.failed.len(), Ordering::Relaxed);
                    if drive.random.below(200) == 0 {
                        std::thread::sleep(Duration::from_micros(drive.random.next() % 200));
                    }
                }
                let mut pending = for_thread.queue.lock();
                if pending.stopping {
                    return;
                }
                if !for_thread.queue.has_work(&pending) {
                    for_thread.work.wait(&mut pending);
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }
}

impl Engine for FaultyEngine {
    fn submit(&self, requests: &mut Vec<Request>) {
        self.shared.queue.push(requests);
        self.shared.work.notify_one();
    }

    fn promote(&self, token: ReadToken, generation: u64) {
        self.shared.queue.promote(token, generation);
    }

    fn cancel(&self, token: ReadToken) -> Option<Cancelled> {
        self.shared.queue.cancel(token)
    }

    fn name(&self) -> &'static str {
        "faulty"
    }
}

impl Drop for FaultyEngine {
    fn drop(&mut self) {
        self.shared.queue.stop();
        self.shared.work.notify_one();
        let ended = self.thread.take().expect("dropped once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the faulty engine found a fault; see above");
    }
}

/// Fetches at random until one fails or the count is reached. Every byte that comes is compared by `fetch_all`.
fn random_fetches(model: &Model, session: &Arc<crate::stream::Session>, seed: u64, count: usize) -> Result<()> {
    let mut random = Random::new(seed);
    let mut fetch = session.new_fetch();
    let streamed = model.streamed(session);
    for _ in 0..count {
        let tensor = streamed[random.below(streamed.len())];
        let (routing, tokens) = model.random_routing(&mut random, tensor);
        model.fetch_all(&mut fetch, tensor, &routing, tokens)?;
    }
    Ok(())
}

fn check_session(model: &Model, direct: bool, contents: &Arc<[Vec<u8>]>, seed: u64) {
    let mut random = Random::new(seed);
    let settings = [("HYPURA_DIRECT", if direct { "auto" } else { "off" })];
    let minimum = model.minimum_bytes(&settings);
    let session = model.session_with_ram(minimum * (1 + random.below(3) as u64), &settings).unwrap();
    let mut badness = Badness::random(&mut random);
    // Most sessions should live for a while.
    badness.hard = badness.hard.div_ceil(8) * random.below(2);
    badness.stuck = badness.stuck.min(1);
    let failures = Arc::new(AtomicUsize::new(0));
    let is_well = Arc::new(AtomicBool::new(false));
    session.start_on(|files, token_count, sink| {
        let drive = Drive {
            badness,
            depth: 1 + random.below(8),
            random: Random::new(random.next()),
            in_flight: Vec::new(),
            files,
            contents: Arc::clone(contents),
            failed: HashMap::new(),
        };
        let state = (Arc::clone(&failures), Arc::clone(&is_well));
        Box::new(FaultyEngine::start(drive, token_count, sink, state))
    });
    let errors: Vec<Error> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..1 + random.below(3) as u64)
            .map(|thread| {
                let session = &session;
                scope.spawn(move || random_fetches(model, session, seed * 10 + thread, 12).err())
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    for error in &errors {
        assert!(matches!(error.code(), ErrorCode::Io | ErrorCode::Resource | ErrorCode::Truncated), "{error}");
    }
    // The drive is well again: what failed is read once more, and nothing of it was lost.
    is_well.store(true, Ordering::Relaxed);
    if let Err(error) = model.sweep(&session) {
        // What was in flight when it recovered may still have failed.
        assert!(matches!(error.code(), ErrorCode::Io | ErrorCode::Resource | ErrorCode::Truncated), "{error}");
        model.sweep(&session).unwrap();
    }
    model.sweep(&session).unwrap();
    session.check();
    drop(session);
    // The engine has ended, so the count is final; a speculative prefetch of no one's may have failed unseen.
    assert!(errors.is_empty() || failures.load(Ordering::Relaxed) > 0, "an error without a cause");
}

#[test]
fn a_session_on_a_bad_drive_delivers_right_bytes_or_an_error_and_recovers_with_the_drive() {
    within(300, || {
        let models = [expert_model(TestDirectory::new(), 1, 2), dense_model(TestDirectory::new(), 2, 1)];
        let contents = models
            .each_ref()
            .map(|model| -> Arc<[Vec<u8>]> { model.paths.iter().map(|path| std::fs::read(path).unwrap()).collect() });
        for_every_seed(300, |seed| {
            let index = (seed % 2) as usize;
            check_session(&models[index], seed % 4 < 2, &contents[index], seed);
        });
    });
}
