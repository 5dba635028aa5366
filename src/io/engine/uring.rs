//! The Linux engine: one thread that keeps an io_uring filled to its depth.
//!
//! The thread owns the ring, so that nothing is shared with it but the queue. It sleeps in `poll` until a read
//! completes or the wake-up event is signalled; who submits signals only when the thread has said that it would take
//! more work. Not in
//! `io_uring_enter`, which would save a system call: valgrind lets no other thread go on meanwhile, and so nobody would
//! wake it.
//!
//! A part's memory, and the vectors that describe it to the kernel, live in a table of fixed places until that part's
//! own completion has arrived, whatever happens to others.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use io_uring::{IoUring, Probe, opcode, types};

use super::part::{Part, Step, Vectors};
use super::queue::Queue;
use super::{Cancelled, Engine, Request, Sink, run_thread};
use crate::error::Result;
use crate::index::ReadToken;
use crate::io::{DirectFile, Tuning};

/// How often in a row the kernel may refuse to be entered, and the pause after each time.
const REFUSALS: u32 = 1000;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// Reads through io_uring.
pub(super) struct UringEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    files: Arc<[DirectFile]>,
    sink: Arc<dyn Sink>,
    queue: Queue,
    wake: OwnedFd,
    /// The thread sleeps, or is about to, and would take more work.
    wants_work: AtomicBool,
}

/// Whether this system lets us read through io_uring.
pub(super) fn available() -> std::result::Result<(), String> {
    open_ring(2).map(drop)
}

fn open_ring(depth: usize) -> std::result::Result<IoUring, String> {
    let ring = IoUring::builder().setup_single_issuer().build(depth as u32).or_else(|_| {
        // Kernels before 6.0 do not know the hint.
        IoUring::new(depth as u32)
    });
    let mut ring = ring.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            format!("io_uring is forbidden here ({error}); a container's seccomp filter is the usual reason")
        }
        Some(libc::ENOMEM) => format!(
            "io_uring gets no memory ({error}); rings count as locked memory, of which this process may have {}: raise \
             RLIMIT_MEMLOCK (ulimit -l)",
            locked_memory_limit()
        ),
        _ => format!("io_uring cannot be set up: {error}"),
    })?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| format!("io_uring cannot be probed: {error}"))?;
    for (name, code) in [("READ", opcode::Read::CODE), ("READV", opcode::Readv::CODE)] {
        if !probe.is_supported(code) {
            return Err(format!("this kernel's io_uring lacks {name}"));
        }
    }
    enter(&mut ring).map_err(|error| format!("io_uring lets nothing be submitted here: {error}"))?;
    Ok(ring)
}

/// RLIMIT_MEMLOCK, for people.
fn locked_memory_limit() -> String {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes to `limit`, which outlives it.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    match (status, limit.rlim_cur) {
        (0, libc::RLIM_INFINITY) => "any amount".to_owned(),
        (0, bytes) => format!("{} KiB", bytes >> 10),
        _ => "an unknown amount".to_owned(),
    }
}

/// Carries out nothing, once: a filter may allow a ring to be made and forbid its use, and then no read would ever end.
fn enter(ring: &mut IoUring) -> io::Result<()> {
    // SAFETY: the operation refers to no memory and no descriptor.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    ring.completion().next().map(drop).ok_or_else(|| io::ErrorKind::TimedOut.into())
}

impl UringEngine {
    pub(super) fn start(
        files: Arc<[DirectFile]>,
        tuning: &Tuning,
        token_count: usize,
        sink: Arc<dyn Sink>,
    ) -> std::result::Result<Self, String> {
        available()?;
        // SAFETY: the call takes plain numbers and returns a descriptor or -1.
        let wake = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if wake < 0 {
            return Err(format!("no event descriptor: {}", io::Error::last_os_error()));
        }
        let shared = Arc::new(Shared {
            files,
            sink,
            queue: Queue::new(token_count, tuning.block_bytes),
            // SAFETY: the descriptor was just made and belongs to nobody else.
            wake: unsafe { OwnedFd::from_raw_fd(wake) },
            wants_work: AtomicBool::new(false),
        });
        let (for_thread, depth) = (Arc::clone(&shared), tuning.depth);
        let (ready, opened) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("hypura-uring".to_owned())
            // The ring is made on the thread that uses it, as its single-issuer mode demands.
            .spawn(move || match open_ring(depth) {
                Ok(ring) => {
                    let _ = ready.send(Ok(()));
                    let sink = Arc::clone(&for_thread.sink);
                    run_thread(&*sink, || Driver::new(for_thread, ring, depth).run());
                }
                Err(reason) => drop(ready.send(Err(reason))),
            })
            .map_err(|error| format!("cannot start a read thread: {error}"))?;
        let engine = Self { shared, thread: Some(thread) };
        opened.recv().unwrap_or_else(|_| Err("the read thread ended".to_owned()))?;
        Ok(engine)
    }
}

impl Engine for UringEngine {
    fn submit(&self, requests: &mut Vec<Request>) {
        self.shared.queue.push(requests);
        self.shared.announce();
    }

    fn promote(&self, token: ReadToken, generation: u64) {
        self.shared.queue.promote(token, generation);
        // It may have been held back with other speculative prefetches while the thread slept.
        self.shared.announce();
    }

    fn cancel(&self, token: ReadToken) -> Option<Cancelled> {
        self.shared.queue.cancel(token)
    }

    fn name(&self) -> &'static str {
        "uring"
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        self.shared.queue.stop();
        self.shared.signal();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has waited for its reads as well, in the driver's `drop`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// There is work: wakes the thread, if that is why it sleeps.
    fn announce(&self) {
        if self.wants_work.swap(false, Ordering::SeqCst) {
            self.signal();
        }
    }

    fn signal(&self) {
        let one = 1u64;
        // SAFETY: writes the 8 bytes of `one` to an open descriptor. It can only fail when the counter is full, and
        // then the thread is woken anyhow.
        unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    fn clear_signal(&self) {
        let mut count = 0u64;
        // SAFETY: reads at most 8 bytes into `count` from an open, non-blocking descriptor.
        unsafe { libc::read(self.wake.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

/// A part that the kernel is working on.
struct InFlight {
    part: Part,
    vectors: Vectors,
}

/// The thread's side.
struct Driver {
    shared: Arc<Shared>,
    ring: IoUring,
    /// Places never move: the kernel reads `vectors` where they are.
    table: Box<[Option<InFlight>]>,
    free: Vec<usize>,
    /// Places whose part is read once more at a time.
    paused: Vec<(Instant, usize)>,
    /// Parts that are over and not reported yet. Has room for all places, so that it never grows.
    over: Vec<(Part, Result<()>)>,
    refusals: u32,
}

impl Driver {
    fn new(shared: Arc<Shared>, ring: IoUring, depth: usize) -> Self {
        let table = (0..depth).map(|_| None).collect();
        let (free, over) = ((0..depth).rev().collect(), Vec::with_capacity(depth));
        Self { shared, ring, table, free, paused: Vec::with_capacity(depth), over, refusals: 0 }
    }

    fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    fn run(&mut self) {
        loop {
            self.fill();
            if !self.over.is_empty() {
                // The drive goes first: it works on the next parts while we report the last ones.
                self.submit();
                for (part, outcome) in self.over.drain(..) {
                    self.shared.queue.part_done(&part, outcome, &*self.shared.sink);
                }
                continue;
            }
            let stopping = self.shared.queue.lock().stopping;
            if stopping && self.in_flight() == self.paused.len() {
                return;
            }
            self.resume_due();
            if !self.free.is_empty() && !stopping {
                // Announce first, look again after: a submitter that saw no announcement queued before this look.
                self.shared.wants_work.store(true, Ordering::SeqCst);
                let queue = &self.shared.queue;
                if queue.has_work(&queue.lock()) {
                    self.shared.wants_work.store(false, Ordering::SeqCst);
                    continue;
                }
            }
            self.submit();
            self.sleep();
            self.reap();
        }
    }

    /// Submits what was pushed. Refusals pass: interruptions, want of memory, a completion queue that is full until it
    /// is reaped. One that does not pass ends the thread, and so the engine.
    fn submit(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        match self.ring.submit() {
            Ok(_) => self.refusals = 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                self.refusals += 1;
                assert!(self.refusals < REFUSALS, "io_uring is refused: {error}");
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Queues again what has paused for long enough.
    fn resume_due(&mut self) {
        let now = Instant::now();
        while let Some(index) = self.paused.iter().position(|&(due, _)| due <= now) {
            let (_, place) = self.paused.swap_remove(index);
            if let Some(InFlight { part, .. }) = self.table[place].take() {
                self.push(place, part);
            }
        }
    }

    /// Polls the ring's and the event's descriptors until a read is complete, the event is signalled or a pause is
    /// over. The timeout is 0 while entries wait to be submitted.
    fn sleep(&mut self) {
        let timeout = match self.paused.iter().map(|&(due, _)| due).min() {
            _ if !self.ring.submission().is_empty() => 0,
            // Rounded up, or the last millisecond would be spent asking.
            Some(due) => due.saturating_duration_since(Instant::now()).as_millis() as i32 + 1,
            None => -1,
        };
        let watch =
            |descriptor: &dyn AsRawFd| libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut watched = [watch(&self.ring), watch(&self.shared.wake)];
        // SAFETY: the array is as long as said, and its descriptors are open while `self` lives. A failure (an
        // interruption) wakes us early, which is harmless.
        unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, timeout) };
        if watched[1].revents != 0 {
            self.shared.clear_signal();
        }
    }

    /// Gives the kernel as many parts as the depth allows.
    fn fill(&mut self) {
        while let Some(&place) = self.free.last() {
            let part = {
                let mut pending = self.shared.queue.lock();
                if pending.stopping { None } else { self.shared.queue.take(&mut pending) }
            };
            let Some(mut part) = part else { return };
            if part.is_padding() {
                self.shared.queue.part_done(&part, Ok(()), &*self.shared.sink);
                continue;
            }
            if part.copy_cached(&self.shared.files[part.file]) {
                // The drive goes on meanwhile with what it was given before.
                self.submit();
                self.shared.queue.part_done(&part, Ok(()), &*self.shared.sink);
                continue;
            }
            self.free.pop();
            self.push(place, part);
        }
    }

    /// Queues the system call for a part at its place in the table.
    fn push(&mut self, place: usize, part: Part) {
        let in_flight = self.table[place].insert(InFlight { part, vectors: part.vectors() });
        let descriptor = types::Fd(self.shared.files[part.file].as_raw_fd());
        let vectors = &in_flight.vectors;
        let entry = match vectors.single() {
            Some(vector) => opcode::Read::new(descriptor, vector.iov_base.cast(), vector.iov_len as u32)
                .offset(part.position())
                .build(),
            None => {
                opcode::Readv::new(descriptor, vectors.as_ptr(), vectors.count() as u32).offset(part.position()).build()
            }
        };
        // SAFETY: the memory behind the vectors is the requests' alone until they are reported (`Destination::new`),
        // which happens after this entry's completion; the vectors themselves stay in the table until then; the
        // descriptor is open while `files` lives, and the driver holds `files` until the ring is empty.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(place as u64)) };
        assert!(pushed.is_ok(), "the ring has an entry for every place in the table");
    }

    fn reap(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(completion) = next else { return };
            let place = completion.user_data() as usize;
            let in_flight = self.table.get_mut(place).and_then(Option::take);
            // Whose bytes have arrived is not known then: the engine ends, and with it what it reads for.
            let InFlight { mut part, vectors } = in_flight.expect("the kernel completes what it was given, once");
            let result = completion.result();
            let outcome = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            let outcome: Result<()> = match part.advance(&self.shared.files[part.file], outcome) {
                Step::Again => {
                    self.push(place, part);
                    continue;
                }
                Step::Later(pause) => {
                    self.table[place] = Some(InFlight { part, vectors });
                    self.paused.push((Instant::now() + pause, place));
                    continue;
                }
                Step::Finished => Ok(()),
                Step::Failed(error) => Err(error),
            };
            self.free.push(place);
            self.over.push((part, outcome));
        }
    }
}

impl Drop for Driver {
    /// Closing a ring does not wait for its reads. When a panic unwinds the thread, what the kernel still works on must
    /// end before anyone frees the memory that it writes to.
    fn drop(&mut self) {
        for (_, place) in self.paused.drain(..) {
            self.table[place] = None;
        }
        while self.table.iter().any(Option::is_some) {
            if self.ring.submit_and_wait(1).is_err() {
                std::thread::sleep(PAUSE);
            }
            while let Some(completion) = { self.ring.completion().next() } {
                if let Some(place) = self.table.get_mut(completion.user_data() as usize) {
                    *place = None;
                }
            }
        }
    }
}
