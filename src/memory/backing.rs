//! What a pool of slots lies in: [`Backing`] says what that must do, and [`Arena`] is the usual one, anonymous memory of our own.

use std::ptr::NonNull;

use super::taken::{Taken, is_chunk_there};
use crate::error::{Error, ErrorCode, Result};

/// Memory for slots: one stretch of addresses that stays where it is. Ordinary memory ([`Arena`]) is one; memory that is pinned
/// for a GPU, or mapped from one, is another. Reads write to it, so every address must be one that `pread` may be given.
pub trait Backing: std::fmt::Debug + Send {
    /// Bytes.
    fn length(&self) -> usize;

    /// The address `offset` bytes in, which is less than the length. It stays the same and valid until this is dropped.
    fn address(&self, offset: usize) -> *mut u8;

    /// Nothing in this range is needed any more: what can be given back to the system is. Its contents are undefined afterwards; its
    /// addresses stay valid, and writing to them takes the memory again.
    fn release(&mut self, offset: usize, length: usize);

    /// The same for a range that no slot has written to: huge pages may have come with what was written beside it, and go back whole.
    fn release_unwritten(&mut self, _offset: usize, _length: usize) {}

    /// Sees to it that there is memory at an offset, before its address is asked for. Says whether there is.
    fn provide(&mut self, _offset: usize) -> bool {
        true
    }

    /// How much is taken and given back at once, where that is not as one likes.
    fn slab_bytes(&self) -> Option<usize> {
        None
    }

    /// Gives back slabs that lie wholly behind an offset, unless in use, which is asked with the offset of their first byte.
    fn hand_back(&mut self, _from: usize, _is_used: &dyn Fn(usize) -> bool) {}

    /// How much of the first bytes has not been taken from the system, where that is known better than from what was used.
    fn untaken_bytes(&self, _length: usize) -> Option<usize> {
        None
    }

    /// A slot was written to for the first time since it was released.
    fn written(&mut self, _offset: usize, _length: usize) {}

    /// How much of the first bytes was taken from the system though no slot there was written to.
    fn taken_beside(&self, _length: usize) -> usize {
        0
    }
}

/// A private anonymous mapping, page-aligned, costing nothing until touched, and unmapped on drop.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    length: usize,
    taken: Taken,
}

// SAFETY: an `Arena` is the sole owner of its mapping, as a `Vec` is of its allocation; it has no thread affinity.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves at least `length` bytes of zeroed memory, aligned to pages.
    ///
    /// # Errors
    /// `Resource` when the system refuses.
    pub fn new(length: usize) -> Result<Self> {
        let length = length.max(1);
        // Miri knows no mapping that reserves nothing, nor advice.
        let reserves_nothing = if cfg!(miri) { 0 } else { libc::MAP_NORESERVE };
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice affects no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | reserves_nothing,
                -1,
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(mapped) if start != libc::MAP_FAILED => {
                #[cfg(all(target_os = "linux", not(miri)))]
                // Fewer pages to pin for every direct read and to look up for every multiplication. Only advice: where
                // it is refused, small pages do.
                // SAFETY: the range is the mapping that was just made; the advice changes no contents.
                unsafe {
                    libc::madvise(start, length, libc::MADV_HUGEPAGE);
                }
                Ok(Self { start: mapped, length, taken: Taken::new(mapped.addr().get(), length) })
            }
            _ => Err(Error::new(
                ErrorCode::Resource,
                format!("cannot map {length} bytes for weights: {}", std::io::Error::last_os_error()),
            )),
        }
    }

    /// The first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Returns whole pages to the system: the ends are rounded inwards. What was returned reads as zeros on Linux.
    fn discard(&mut self, offset: usize, length: usize) {
        #[cfg(target_os = "linux")]
        const ADVICE: libc::c_int = libc::MADV_DONTNEED;
        #[cfg(not(target_os = "linux"))]
        const ADVICE: libc::c_int = libc::MADV_FREE;
        let page = crate::hw::page_size();
        let (from, to) = (offset.next_multiple_of(page), (offset + length).min(self.length) / page * page);
        if from < to && !cfg!(miri) {
            // Only advice: where it is refused, the memory stays with us and serves again.
            // SAFETY: the range lies within the mapping, which `self` owns; the caller has exclusive access.
            unsafe {
                libc::madvise(self.address(from).cast(), to - from, ADVICE);
            }
        }
    }
}

impl Backing for Arena {
    fn length(&self) -> usize {
        self.length
    }

    fn address(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.length);
        self.start.as_ptr().wrapping_add(offset)
    }

    fn release(&mut self, offset: usize, length: usize) {
        self.taken.released(offset, length);
        self.discard(offset, length);
    }

    fn release_unwritten(&mut self, offset: usize, length: usize) {
        self.taken.broken_up(offset, length);
        self.discard(offset, length);
    }

    fn written(&mut self, offset: usize, length: usize) {
        let start = self.start.as_ptr();
        self.taken.written(offset, length, |chunk| is_chunk_there(start.wrapping_add(chunk)));
    }

    fn taken_beside(&self, length: usize) -> usize {
        self.taken.beside(length)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and length and is unmapped only here.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Writes to all pages of a range, and says that it did so to the first 64 KiB.
    fn taken_beside(touched_bytes: usize) -> usize {
        let mut arena = Arena::new(8 * MIB).unwrap();
        // SAFETY: the range is the arena's; the advice changes no contents.
        unsafe { libc::madvise(arena.as_mut_ptr().cast(), arena.length(), libc::MADV_NOHUGEPAGE) };
        for page in (0..touched_bytes).step_by(4096) {
            // SAFETY: the byte is the arena's, which nobody else knows of.
            unsafe { arena.address(page).write(1) };
        }
        arena.written(3 * MIB, 64 << 10);
        let beside = arena.taken_beside(8 * MIB);
        arena.release(3 * MIB, 64 << 10);
        assert_eq!(arena.taken_beside(8 * MIB), 0);
        beside
    }

    #[test]
    fn it_is_known_what_the_system_gave_beside_what_was_written() {
        assert_eq!(taken_beside(8 * MIB), 2 * MIB - (64 << 10));
        assert_eq!(taken_beside(4096), 0, "small pages come one at a time");
    }
}
