//! What others hold in the page cache: copied from there instead of being read again.
//!
//! A file that the host's other programs have read, or another container, may be in memory already, charged to somebody else. Copying is
//! faster than any drive. The kernel is asked for each part (`cachestat`, Linux 6.5), and what it has in full is copied on the condition
//! that nothing has to be waited for (`RWF_NOWAIT`). That condition alone would not do: a page that is missing is then read ahead, by the
//! way. The rest is read from the drive. Pages that others put there stay: they are not ours to drop.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// So many stretches in a row of which less than half is there say that a file is not in memory; then it is asked one time in so many whether it is by now.
const MISSES: u32 = 64;

/// How much of a stretch the page cache held when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) enum Cached {
    /// All of it, and it was copied.
    Whole,
    /// Half of it or more, which is somebody else's.
    Part,
    /// Less, or it was not asked.
    Nothing,
}

/// A file as the page cache has it.
#[derive(Debug)]
pub(super) struct PageCache {
    /// Opened without `O_DIRECT`.
    file: File,
    /// Stretches of which less than half was there, since the last that was there in full.
    misses: AtomicU32,
    copied_bytes: AtomicU64,
    /// Whether it is the file that is read.
    is_current: AtomicBool,
}

impl PageCache {
    pub(super) fn new(file: File) -> Self {
        let (misses, copied_bytes) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { file, misses, copied_bytes, is_current: AtomicBool::new(true) }
    }

    /// The file is no longer the one that is read: nothing is copied from it.
    pub(super) fn give_up(&self) {
        self.is_current.store(false, Ordering::Relaxed);
    }

    /// What was copied so far.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.copied_bytes.load(Ordering::Relaxed)
    }

    /// Copies what lies at a place of the file if all of it, `wanted` bytes, is in memory. Else the destination's bytes are anything.
    ///
    /// # Safety
    /// The memory behind the vectors may be written to.
    pub(super) unsafe fn copy(&self, vectors: &[libc::iovec], position: u64, wanted: usize) -> Cached {
        let misses = self.misses.load(Ordering::Relaxed);
        let is_asked = self.is_current.load(Ordering::Relaxed) && (misses < MISSES || misses % MISSES == 0);
        let mut cached = if is_asked { held(&self.file, position, wanted as u64) } else { Cached::Nothing };
        // A page may leave between the question and the copy.
        // SAFETY: the caller vouches for the memory.
        if cached == Cached::Whole && unsafe { read_at_once(&self.file, vectors, position) } < wanted as isize {
            cached = Cached::Part;
        }
        match cached {
            Cached::Whole => {
                self.misses.store(0, Ordering::Relaxed);
                self.copied_bytes.fetch_add(wanted as u64, Ordering::Relaxed);
            }
            // A file that others hold with holes is asked on, so that what they hold stays.
            Cached::Part => {}
            Cached::Nothing => {
                self.misses.fetch_add(1, Ordering::Relaxed);
            }
        }
        cached
    }
}

/// How much of a stretch is in memory; nothing where that cannot be told. Of what is read through the page cache the kernel reads on a little,
/// so that less than half says nothing of others.
fn held(file: &File, offset: u64, length: u64) -> Cached {
    let page_bytes = crate::hw::page_size() as u64;
    let pages = (offset + length).div_ceil(page_bytes) - offset / page_bytes;
    match pages_in_memory(file, offset, length) {
        Some(held) if held >= pages => Cached::Whole,
        Some(held) if held >= pages.div_ceil(2) => Cached::Part,
        _ => Cached::Nothing,
    }
}

/// How many pages of a stretch are in memory. Older kernels do not tell, nor of files that are somebody else's.
#[cfg(target_os = "linux")]
pub(super) fn pages_in_memory(file: &File, offset: u64, length: u64) -> Option<u64> {
    use std::os::fd::AsRawFd;
    /// The system call's number, which is the same on all architectures but alpha.
    const CACHESTAT: libc::c_long = 451;
    let (range, mut counts) = ([offset, length], [0_u64; 5]);
    // SAFETY: the descriptor is open; the kernel reads the two words and writes the five, which outlive the call.
    let outcome = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0) };
    (outcome == 0).then_some(counts[0])
}

/// Reads what needs no waiting; negative where there is nothing.
///
/// # Safety
/// The memory behind the vectors may be written to.
#[cfg(target_os = "linux")]
unsafe fn read_at_once(file: &File, vectors: &[libc::iovec], position: u64) -> isize {
    use std::os::fd::AsRawFd;
    let (descriptor, count) = (file.as_raw_fd(), vectors.len() as libc::c_int);
    // SAFETY: the descriptor is open, and the caller vouches for the memory.
    unsafe { libc::preadv2(descriptor, vectors.as_ptr(), count, position as libc::off_t, libc::RWF_NOWAIT) }
}

/// Other systems cannot be asked.
#[cfg(not(target_os = "linux"))]
pub(super) fn pages_in_memory(_file: &File, _offset: u64, _length: u64) -> Option<u64> {
    None
}

/// What is never asked for.
///
/// # Safety
/// None is needed.
#[cfg(not(target_os = "linux"))]
unsafe fn read_at_once(_file: &File, _vectors: &[libc::iovec], _position: u64) -> isize {
    -1
}
