//! The queue between threads that submit, promote, take back and read, in orders that a seed decides (`make test-schedules`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::schedule::{explore, thread};
use parking_lot::{Condvar, Mutex};

use super::queue::Queue;
use super::{Destination, Priority, Request, Sink};
use crate::common::Random;
use crate::error::{Error, ErrorCode, Result};
use crate::index::ReadToken;
use crate::io::Widened;

const TOKENS: usize = 4;
const BLOCK_BYTES: usize = 100;

/// What is known of a token's read, beside what the queue knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Read {
    is_wanted: bool,
    parts_in_flight: usize,
    /// Bytes handed out.
    begun_bytes: usize,
    length: usize,
    /// A part of it has failed.
    has_failed: bool,
    was_cancelled: bool,
}

struct Drive {
    queue: Queue,
    reads: Mutex<[Read; TOKENS]>,
    work: Condvar,
    reported: Condvar,
}

impl Sink for Drive {
    fn finished(&self, token: ReadToken, outcome: Result<()>) {
        let mut reads = self.reads.lock();
        let read = &mut reads[token.0];
        assert!(read.is_wanted, "{token:?} is reported that nobody waits for");
        assert_eq!(read.parts_in_flight, 0, "{token:?} is reported while the drive writes to it");
        assert!(
            read.was_cancelled || read.begun_bytes == read.length,
            "{token:?} is reported before all of it was read"
        );
        assert_eq!(outcome.is_err(), read.has_failed, "{token:?}");
        *read = Read::default();
        drop(reads);
        self.reported.notify_all();
    }

    fn broken(&self, error: Error) {
        panic!("{error}");
    }
}

/// A reading thread: some parts fail.
fn read(drive: &Drive, seed: u64) {
    let mut random = Random::new(seed);
    loop {
        let part = {
            let mut pending = drive.queue.lock();
            loop {
                if pending.stopping {
                    return;
                }
                if let Some(part) = drive.queue.take(&mut pending) {
                    let mut reads = drive.reads.lock();
                    for segment in part.segments() {
                        reads[segment.token.0].parts_in_flight += 1;
                        reads[segment.token.0].begun_bytes += segment.length;
                    }
                    break part;
                }
                drive.work.wait(&mut pending);
            }
        };
        let outcome = if random.below(5) == 0 { Err(Error::new(ErrorCode::Io, "made up")) } else { Ok(()) };
        {
            let mut reads = drive.reads.lock();
            for segment in part.segments() {
                reads[segment.token.0].parts_in_flight -= 1;
                reads[segment.token.0].has_failed |= outcome.is_err();
            }
        }
        drive.queue.part_done(&part, outcome, drive);
        drive.work.notify_one();
    }
}

/// Reads with one token over and over, each promoted or taken back while it is under way.
fn submit(drive: &Drive, token: usize, seed: u64) {
    let mut random = Random::new(seed);
    for generation in 1..4 {
        let length = 1 + random.below(3 * BLOCK_BYTES);
        drive.reads.lock()[token] = Read { is_wanted: true, length, ..Read::default() };
        // SAFETY: nothing here reads from a drive.
        let destination = unsafe { Destination::new(std::ptr::null_mut()) };
        let range = Widened { offset: 1000 * token as u64, length, head_padding: 0, required: length };
        let priority = [Priority::Demand, Priority::Ahead, Priority::Speculative][random.below(3)];
        let promotes = random.below(3) == 0;
        if promotes && random.below(2) == 0 {
            drive.queue.promote(ReadToken(token), generation);
        }
        drive.queue.push(&mut vec![Request {
            token: ReadToken(token),
            generation,
            file: 0,
            range,
            destination,
            priority,
        }]);
        drive.work.notify_one();
        if promotes {
            drive.queue.promote(ReadToken(token), generation);
            drive.work.notify_one();
        } else if random.below(2) == 0 {
            // As the owner of the slots does it, the answer and its own notes belong together.
            let mut reads = drive.reads.lock();
            if reads[token].is_wanted {
                reads[token].was_cancelled = true;
                drop(reads);
                let cancelled = drive.queue.cancel(ReadToken(token));
                reads = drive.reads.lock();
                match cancelled {
                    Some(cancelled) if !cancelled.is_in_flight => reads[token] = Read::default(),
                    Some(_) => {}
                    None => reads[token].was_cancelled = false,
                }
            }
        }
        let mut reads = drive.reads.lock();
        while reads[token].is_wanted {
            drive.reported.wait(&mut reads);
        }
    }
}

#[test]
fn every_read_is_reported_once_and_when_nothing_writes_to_it_any_more() {
    static RUN: AtomicU64 = AtomicU64::new(0);
    explore(2000, 1, || {
        let seed = RUN.fetch_add(1, Ordering::Relaxed) * 100;
        let drive = Arc::new(Drive {
            queue: Queue::new(TOKENS, BLOCK_BYTES),
            reads: Mutex::default(),
            work: Condvar::new(),
            reported: Condvar::new(),
        });
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let drive = Arc::clone(&drive);
                thread::spawn(move || read(&drive, seed + reader))
            })
            .collect();
        let submitters: Vec<_> = (0..TOKENS)
            .map(|token| {
                let drive = Arc::clone(&drive);
                thread::spawn(move || submit(&drive, token, seed + 50 + token as u64))
            })
            .collect();
        submitters.into_iter().for_each(|thread| thread.join().unwrap());
        drive.queue.stop();
        drive.work.notify_all();
        readers.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*drive.reads.lock(), [Read::default(); TOKENS], "something was read for nobody");
    });
}
