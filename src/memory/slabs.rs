//! Memory that the host hands out, a slab at a time.
//!
//! A host with a GPU has memory that the GPU's driver reaches at full speed (pinned). Taking it is slow, about a gigabyte in 0.4 s, so a
//! thread takes what is going to be used while the first weights are being read. A slab goes back when nothing in it is in use any
//! more. Where the host has none left, a slab is memory of our own.

use std::ffi::c_void;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::{Arena, Backing};

/// A slab holds as many slots as fit into so much, or one that is larger.
const SLAB_BYTES: usize = 32 << 20;

/// Hands out memory and takes it back; from any thread.
pub trait HostMemory: Send + Sync + std::fmt::Debug {
    /// Memory of that size, aligned to pages and writable; `None` where there is none to be had.
    fn allocate(&self, size_bytes: usize) -> Option<*mut c_void>;

    /// Takes back what [`Self::allocate`] gave out.
    fn free(&self, memory: *mut c_void);
}

/// A slab that the host gave, handed back on drop.
#[derive(Debug)]
struct Lent {
    start: *mut u8,
    host: Arc<dyn HostMemory>,
}

// SAFETY: a `Lent` is the sole owner of its slab, which `HostMemory` lets any thread use and free.
unsafe impl Send for Lent {}

impl Drop for Lent {
    fn drop(&mut self) {
        self.host.free(self.start.cast());
    }
}

#[derive(Debug)]
enum Slab {
    Absent,
    /// Being taken by the thread.
    Coming,
    Own(Arena),
    Lent(Lent),
}

#[derive(Debug)]
struct State {
    slabs: Vec<Slab>,
    /// The thread takes those before this one.
    wanted: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    has_come: Condvar,
    host: Arc<dyn HostMemory>,
    slab_bytes: usize,
}

impl Shared {
    fn take(&self) -> Slab {
        match self.host.allocate(self.slab_bytes) {
            Some(start) => Slab::Lent(Lent { start: start.cast(), host: Arc::clone(&self.host) }),
            None => Arena::new(self.slab_bytes).map_or(Slab::Absent, Slab::Own),
        }
    }

    /// Takes all that is wanted, in order.
    fn take_wanted(&self) {
        let mut index = 0;
        loop {
            let mut state = self.state.lock();
            if index >= state.wanted {
                return;
            }
            if matches!(state.slabs[index], Slab::Absent) {
                state.slabs[index] = Slab::Coming;
                drop(state);
                let slab = self.take();
                self.state.lock().slabs[index] = slab;
                self.has_come.notify_all();
            }
            index += 1;
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Slabs {
    shared: Arc<Shared>,
    length: usize,
    thread: Option<JoinHandle<()>>,
}

impl Slabs {
    /// Room for `most` slots of a size, of which `now` are going to be used soon.
    pub fn new(slot_bytes: usize, now: usize, most: usize, host: Arc<dyn HostMemory>) -> Self {
        let slab_slots = (SLAB_BYTES / slot_bytes.max(1)).max(1);
        let slabs = (0..most.div_ceil(slab_slots)).map(|_| Slab::Absent).collect();
        let state = Mutex::new(State { slabs, wanted: now.div_ceil(slab_slots) });
        let shared = Arc::new(Shared { state, has_come: Condvar::new(), host, slab_bytes: slab_slots * slot_bytes });
        let takes = Arc::clone(&shared);
        // Without the thread, slabs are taken when they are used.
        let thread =
            std::thread::Builder::new().name("hypura-slabs".to_owned()).spawn(move || takes.take_wanted()).ok();
        Self { shared, length: most * slot_bytes, thread }
    }

    /// Does something with a slab at an offset if it is our own, and an offset within it.
    fn with_own<R>(&self, offset: usize, run: impl FnOnce(&mut Arena, usize) -> R) -> Option<R> {
        let (index, offset) = (offset / self.shared.slab_bytes, offset % self.shared.slab_bytes);
        match &mut self.shared.state.lock().slabs[index] {
            Slab::Own(arena) => Some(run(arena, offset)),
            _ => None,
        }
    }
}

impl Backing for Slabs {
    fn length(&self) -> usize {
        self.length
    }

    fn provide(&mut self, offset: usize) -> bool {
        let index = offset / self.shared.slab_bytes;
        let mut state = self.shared.state.lock();
        while matches!(state.slabs[index], Slab::Coming) {
            self.shared.has_come.wait(&mut state);
        }
        if matches!(state.slabs[index], Slab::Absent) {
            state.slabs[index] = self.shared.take();
        }
        !matches!(state.slabs[index], Slab::Absent)
    }

    fn address(&self, offset: usize) -> *mut u8 {
        let (index, offset) = (offset / self.shared.slab_bytes, offset % self.shared.slab_bytes);
        match &self.shared.state.lock().slabs[index] {
            Slab::Own(arena) => arena.address(offset),
            Slab::Lent(lent) => lent.start.wrapping_add(offset),
            Slab::Absent | Slab::Coming => unreachable!("there is no memory at slab {index}"),
        }
    }

    fn open(&mut self, offset: usize, length: usize) -> bool {
        self.with_own(offset, |arena, offset| arena.open(offset, length)).unwrap_or(true)
    }

    fn release(&mut self, offset: usize, length: usize) {
        self.with_own(offset, |arena, offset| arena.release(offset, length));
    }

    fn release_unwritten(&mut self, offset: usize, length: usize) {
        self.with_own(offset, |arena, offset| arena.release_unwritten(offset, length));
    }

    fn hand_back(&mut self, from: usize, is_used: &dyn Fn(usize) -> bool) {
        let slab_bytes = self.shared.slab_bytes;
        let mut state = self.shared.state.lock();
        state.wanted = state.wanted.min(from.div_ceil(slab_bytes));
        for (index, slab) in state.slabs.iter_mut().enumerate().skip(from.div_ceil(slab_bytes)) {
            if matches!(slab, Slab::Lent(_)) && !is_used(index * slab_bytes) {
                *slab = Slab::Absent;
            }
        }
    }

    fn slab_bytes(&self) -> Option<usize> {
        Some(self.shared.slab_bytes)
    }

    fn untaken_bytes(&self, length: usize) -> Option<usize> {
        let slab_bytes = self.shared.slab_bytes;
        let state = self.shared.state.lock();
        let open = state.slabs.iter().take(length.div_ceil(slab_bytes));
        Some(open.filter(|slab| matches!(slab, Slab::Absent | Slab::Coming)).count() * slab_bytes)
    }
}

impl Drop for Slabs {
    fn drop(&mut self) {
        self.shared.state.lock().wanted = 0;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only what it took ahead.
            let _ = thread.join();
        }
    }
}
