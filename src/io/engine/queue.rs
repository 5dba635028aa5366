//! Which requests wait, in which order parts are cut from them, and how many parts of each are not read yet.
//!
//! Invariants:
//! 1. A request is in the queue of its priority until its last part has been handed out; parts are cut when they are
//!    taken, so an urgent request that arrives meanwhile overtakes the rest of a large one.
//! 2. Every part that was handed out comes back through [`Queue::part_done`] exactly once, and is counted off its
//!    requests.
//! 3. Who counts off a request's last part reports it. None of its parts is in flight any more, so the sink may reuse
//!    the destination at once, also after an error.
//! 4. The lock is never held during a system call or while the sink runs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use typed_index_collections::TiVec;

use super::part::{Part, Segment};
use super::{Cancelled, Priority, Request, Sink};
use crate::error::{Error, Result};
use crate::index::ReadToken;

pub(super) struct Queue {
    pending: Mutex<Pending>,
    /// By token.
    progress: TiVec<ReadToken, Progress>,
    block_bytes: usize,
    speculative_in_flight: AtomicUsize,
}

/// How many parts of speculative prefetches may be in flight at once, and how large they are at most: a demand waits for all of them.
const SPECULATIVE_IN_FLIGHT: usize = 4;
const SPECULATIVE_BYTES: usize = 512 << 10;

/// What the lock guards.
pub(super) struct Pending {
    /// By priority.
    waiting: [VecDeque<Waiting>; 3],
    pub(super) stopping: bool,
}

struct Waiting {
    request: Request,
    /// Bytes of it that have been handed out.
    cut: usize,
    /// Bytes of its parts.
    part_bytes: usize,
}

impl Waiting {
    /// How many parts the rest of it makes; a request for nothing is one, too.
    fn parts_left(&self) -> usize {
        (self.request.range.length - self.cut).div_ceil(self.part_bytes).max(1)
    }
}

/// What is left of the request with a token. A token has one request in flight at most, so the entry belongs to that one.
#[derive(Default)]
struct Progress {
    /// Parts that are not read yet, cut or not.
    remaining: AtomicU32,
    /// The generation that was promoted last. When `promote` ran before `push`, that request is not queued yet and
    /// starts as a demand. When its read is over already, the promotion does not apply to the token's next request.
    promoted: AtomicU64,
    error: Mutex<Option<Error>>,
}

impl Queue {
    /// A queue for tokens below `token_count` that cuts requests into parts of `block_bytes`.
    pub(super) fn new(token_count: usize, block_bytes: usize) -> Self {
        // Room for every token, so that queueing never allocates.
        let waiting = [(); 3].map(|()| VecDeque::with_capacity(token_count));
        let pending = Pending { waiting, stopping: false };
        let progress = (0..token_count).map(|_| Progress::default()).collect();
        Self { pending: Mutex::new(pending), progress, block_bytes, speculative_in_flight: AtomicUsize::new(0) }
    }

    /// Queues requests and empties the list; returns into how many parts they will be cut, at most.
    pub(super) fn push(&self, requests: &mut Vec<Request>) -> usize {
        let mut parts = 0;
        let mut pending = self.pending.lock();
        for request in requests.drain(..) {
            let promoted = self.progress[request.token].promoted.load(Ordering::Relaxed);
            let priority = if promoted == request.generation { Priority::Demand } else { request.priority };
            let waiting = self.uncut(request, priority);
            parts += waiting.parts_left();
            pending.waiting[priority as usize].push_back(waiting);
        }
        parts
    }

    /// A request that is to be cut as its priority demands.
    fn uncut(&self, request: Request, priority: Priority) -> Waiting {
        let is_speculative = priority == Priority::Speculative;
        let part_bytes = if is_speculative { self.block_bytes.min(SPECULATIVE_BYTES) } else { self.block_bytes };
        let waiting = Waiting { request, cut: 0, part_bytes };
        self.progress[request.token].remaining.store(waiting.parts_left() as u32, Ordering::Relaxed);
        waiting
    }

    pub(super) fn promote(&self, token: ReadToken, generation: u64) {
        let mut pending = self.pending.lock();
        self.progress[token].promoted.store(generation, Ordering::Relaxed);
        let [demand, later @ ..] = &mut pending.waiting;
        for queue in later {
            if queue.iter().any(|waiting| waiting.request.token == token && waiting.request.generation != generation) {
                return; // the read that was to be promoted is over, and the token has another one
            }
            let found = remove(queue, token);
            demand.extend(found.map(|waiting| match waiting.cut {
                0 => self.uncut(waiting.request, Priority::Demand),
                _ => waiting,
            }));
        }
    }

    pub(super) fn cancel(&self, token: ReadToken) -> Option<Cancelled> {
        let mut pending = self.pending.lock();
        let [_, later @ ..] = &mut pending.waiting;
        let waiting = later.iter_mut().find_map(|queue| remove(queue, token))?;
        let progress = &self.progress[token];
        let left = waiting.parts_left() as u32;
        let is_in_flight = progress.remaining.fetch_sub(left, Ordering::AcqRel) > left;
        if !is_in_flight {
            *progress.error.lock() = None;
        }
        Some(Cancelled { begun_bytes: waiting.cut, is_in_flight })
    }

    /// Forgets what is queued and lets nothing more be taken.
    pub(super) fn stop(&self) {
        let mut pending = self.pending.lock();
        pending.stopping = true;
        pending.waiting.iter_mut().for_each(VecDeque::clear);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }

    /// Whether there is a part to take now.
    pub(super) fn has_work(&self, pending: &Pending) -> bool {
        self.most_urgent(pending).is_some()
    }

    /// The highest priority that is not empty. `None` if only speculative prefetches wait and as many parts of speculative prefetches are in flight
    /// as may be.
    fn most_urgent(&self, pending: &Pending) -> Option<usize> {
        let priority = pending.waiting.iter().position(|queue| !queue.is_empty())?;
        let too_many = self.speculative_in_flight.load(Ordering::Relaxed) >= SPECULATIVE_IN_FLIGHT;
        (priority != Priority::Speculative as usize || !too_many).then_some(priority)
    }

    /// Takes the most urgent part.
    pub(super) fn take(&self, pending: &mut Pending) -> Option<Part> {
        let priority = self.most_urgent(pending)?;
        let is_speculative = priority == Priority::Speculative as usize;
        let queue = &mut pending.waiting[priority];
        let waiting = queue.front_mut()?;
        let Request { token, file, range, destination, .. } = waiting.request;
        let start = waiting.cut;
        let (length, part_bytes) = (waiting.part_bytes.min(range.length - start), waiting.part_bytes);
        let segment = Segment { token, destination: destination.at(start), length };
        let required = range.required.saturating_sub(start).min(length);
        let mut part = Part::new(file, range.offset + start as u64, segment, required);
        part.is_speculative = is_speculative;
        self.speculative_in_flight.fetch_add(usize::from(is_speculative), Ordering::Relaxed);
        waiting.cut += length;
        if waiting.cut < range.length {
            return Some(part);
        }
        queue.pop_front();
        if start == 0 {
            merge_following(queue, &mut part, part_bytes);
        }
        Some(part)
    }

    /// A part is over: counts it off its requests and reports those that are complete.
    pub(super) fn part_done(&self, part: &Part, outcome: Result<()>, sink: &dyn Sink) {
        self.speculative_in_flight.fetch_sub(usize::from(part.is_speculative), Ordering::Relaxed);
        for segment in part.segments() {
            let progress = &self.progress[segment.token];
            if let Err(error) = &outcome {
                progress.error.lock().get_or_insert_with(|| error.clone());
            }
            // Acquire and release: the last thread must see every other thread's bytes before it reports them.
            if progress.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
                let error = progress.error.lock().take();
                sink.finished(segment.token, error.map_or(Ok(()), Err));
            }
        }
    }
}

/// Takes a token's request out of a queue, if it is there.
fn remove(queue: &mut VecDeque<Waiting>, token: ReadToken) -> Option<Waiting> {
    let index = queue.iter().position(|waiting| waiting.request.token == token)?;
    queue.remove(index)
}

/// Lets a part serve the requests that follow it in the queue and in the file, while they are small.
fn merge_following(queue: &mut VecDeque<Waiting>, part: &mut Part, part_bytes: usize) {
    while let Some(Waiting { request, cut: 0, .. }) = queue.front() {
        let Request { token, file, range, destination, .. } = *request;
        let adjacent = file == part.file && range.offset == part.offset + part.length() as u64;
        let segment = Segment { token, destination, length: range.length };
        if !adjacent || part.length() + range.length > part_bytes || !part.merge(segment, range.required) {
            return;
        }
        queue.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::super::part::MERGED_REQUESTS;
    use super::*;
    use crate::io::{Destination, Widened};

    fn request(token: usize, offset: u64, length: usize, priority: Priority) -> Request {
        // SAFETY: nothing in these tests reads.
        let destination = unsafe { Destination::new(std::ptr::null_mut()) };
        let range = Widened { offset, length, head_padding: 0, required: length };
        Request { token: ReadToken(token), generation: 1, file: 0, range, destination, priority }
    }

    /// Counts reports.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Sink for Counted {
        fn finished(&self, _: ReadToken, _: Result<()>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn broken(&self, _: Error) {}
    }

    fn taken(queue: &Queue) -> Vec<(u64, usize, Vec<usize>)> {
        std::iter::from_fn(|| {
            let part = queue.take(&mut queue.lock())?;
            Some((part.offset, part.length(), part.segments().iter().map(|segment| segment.token.0).collect()))
        })
        .collect()
    }

    #[test]
    fn demand_overtakes_even_the_rest_of_a_request_made_ahead() {
        let queue = Queue::new(4, 100);
        queue.push(&mut vec![request(0, 0, 250, Priority::Ahead)]);
        assert_eq!(queue.take(&mut queue.lock()).unwrap().length(), 100);
        queue.push(&mut vec![request(1, 1000, 50, Priority::Demand)]);
        assert_eq!(taken(&queue), [(1000, 50, vec![1]), (100, 100, vec![0]), (200, 50, vec![0])]);
    }

    #[test]
    fn speculative_reads_come_last_and_few_at_a_time() {
        let queue = Queue::new(4, 100);
        let prefetch = request(0, 0, 600, Priority::Speculative);
        queue.push(&mut vec![prefetch, request(1, 1000, 50, Priority::Ahead), request(2, 2000, 50, Priority::Demand)]);
        let parts: Vec<Part> = std::iter::from_fn(|| queue.take(&mut queue.lock())).collect();
        assert_eq!(parts.iter().map(|part| part.offset).collect::<Vec<_>>(), [2000, 1000, 0, 100, 200, 300]);
        queue.part_done(&parts[0], Ok(()), &Counted::default());
        assert!(queue.take(&mut queue.lock()).is_none());
        queue.part_done(&parts[2], Ok(()), &Counted::default());
        assert_eq!(taken(&queue), [(400, 100, vec![0])]);
    }

    #[test]
    fn a_promotion_may_come_before_its_request() {
        let queue = Queue::new(4, 100);
        queue.promote(ReadToken(1), 1);
        queue.push(&mut vec![request(0, 0, 10, Priority::Ahead), request(1, 500, 10, Priority::Ahead)]);
        assert_eq!(taken(&queue), [(500, 10, vec![1]), (0, 10, vec![0])]);
    }

    /// Its read ended between the decision to promote it and the call.
    #[test]
    fn a_promotion_that_comes_too_late_promotes_no_other_read() {
        let queue = Queue::new(4, 100);
        queue.push(&mut vec![request(1, 500, 10, Priority::Ahead)]);
        let part = queue.take(&mut queue.lock()).unwrap();
        queue.part_done(&part, Ok(()), &Counted::default());
        queue.promote(ReadToken(1), 1);
        let next = Request { generation: 2, ..request(1, 900, 10, Priority::Speculative) };
        queue.push(&mut vec![next, request(2, 100, 10, Priority::Ahead)]);
        queue.promote(ReadToken(1), 1);
        assert_eq!(taken(&queue), [(100, 10, vec![2]), (900, 10, vec![1])]);
        queue.push(&mut vec![Request { generation: 3, ..next }]);
        assert!(queue.cancel(ReadToken(1)).is_some(), "it can be taken back like any speculative read");
    }

    #[test]
    fn small_adjacent_requests_are_merged_up_to_a_block() {
        let queue = Queue::new(8, 100);
        let demand = |token, offset, length| request(token, offset, length, Priority::Demand);
        queue.push(&mut vec![
            demand(0, 0, 40),
            demand(1, 40, 40),
            demand(2, 80, 40),
            demand(3, 120, 10),
            demand(4, 500, 10),
        ]);
        assert_eq!(taken(&queue), [(0, 80, vec![0, 1]), (80, 50, vec![2, 3]), (500, 10, vec![4])]);
        queue.push(&mut (0..8).map(|token| demand(token, token as u64, 1)).collect());
        assert_eq!(taken(&queue), [(0, 8, (0..8).collect())], "{MERGED_REQUESTS} requests fit one part");
    }

    #[test]
    fn what_the_drive_does_not_have_yet_can_be_taken_back_unless_it_is_a_demand() {
        let queue = Queue::new(4, 100);
        queue.push(&mut vec![
            request(0, 0, 250, Priority::Ahead),
            request(1, 500, 10, Priority::Ahead),
            request(2, 900, 10, Priority::Demand),
        ]);
        assert_eq!(queue.cancel(ReadToken(2)), None, "someone waits for it");
        assert_eq!(queue.take(&mut queue.lock()).unwrap().segments()[0].token, ReadToken(2));
        assert_eq!(queue.cancel(ReadToken(1)), Some(Cancelled { begun_bytes: 0, is_in_flight: false }));
        assert_eq!(queue.cancel(ReadToken(1)), None);

        let reports = Counted::default();
        let first = queue.take(&mut queue.lock()).unwrap();
        let second = queue.take(&mut queue.lock()).unwrap();
        queue.part_done(&first, Ok(()), &reports);
        assert_eq!(queue.cancel(ReadToken(0)), Some(Cancelled { begun_bytes: 200, is_in_flight: true }));
        assert_eq!(taken(&queue), []);
        queue.part_done(&second, Ok(()), &reports);
        assert_eq!(reports.0.load(Ordering::Relaxed), 1, "when the last of it is over");

        queue.push(&mut vec![request(0, 0, 250, Priority::Speculative)]);
        let first = queue.take(&mut queue.lock()).unwrap();
        queue.part_done(&first, Ok(()), &reports);
        assert_eq!(queue.cancel(ReadToken(0)), Some(Cancelled { begun_bytes: 100, is_in_flight: false }));
        assert_eq!(reports.0.load(Ordering::Relaxed), 1, "nothing is left to report");
    }

    #[test]
    fn speculative_reads_are_cut_small_and_whole_again_when_they_are_wanted() {
        let queue = Queue::new(4, 4 * SPECULATIVE_BYTES);
        let prefetch = |token| request(token, 0, 3 * SPECULATIVE_BYTES, Priority::Speculative);
        queue.push(&mut vec![prefetch(0), prefetch(1)]);
        queue.promote(ReadToken(1), 1);
        let lengths: Vec<usize> = taken(&queue).iter().map(|&(_, length, _)| length / SPECULATIVE_BYTES).collect();
        assert_eq!(lengths, [3, 1, 1, 1]);
    }
}
