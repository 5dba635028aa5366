//! Anonymous memory of our own: page-aligned, costing nothing until touched.

use std::ptr::NonNull;

use super::Backing;
use crate::error::{Error, ErrorCode, Result};

/// A private anonymous mapping, unmapped on drop.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    length: usize,
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
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice affects no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(mapped) if start != libc::MAP_FAILED => {
                #[cfg(target_os = "linux")]
                // Fewer pages to pin for every direct read and to look up for every multiplication. Only advice: where
                // it is refused, small pages do.
                // SAFETY: the range is the mapping that was just made; the advice changes no contents.
                unsafe {
                    libc::madvise(start, length, libc::MADV_HUGEPAGE);
                }
                Ok(Self { start: mapped, length })
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
}

impl Backing for Arena {
    fn length(&self) -> usize {
        self.length
    }

    fn address(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.length);
        self.start.as_ptr().wrapping_add(offset)
    }

    /// Returns whole pages to the system: the ends are rounded inwards. What was returned reads as zeros on Linux.
    fn release(&mut self, offset: usize, length: usize) {
        #[cfg(target_os = "linux")]
        const ADVICE: libc::c_int = libc::MADV_DONTNEED;
        #[cfg(not(target_os = "linux"))]
        const ADVICE: libc::c_int = libc::MADV_FREE;
        let page = crate::hw::page_size();
        let (from, to) = (offset.next_multiple_of(page), (offset + length).min(self.length) / page * page);
        if from < to {
            // Only advice: where it is refused, the memory stays with us and serves again.
            // SAFETY: the range lies within the mapping, which `self` owns; the caller has exclusive access.
            unsafe {
                libc::madvise(self.address(from).cast(), to - from, ADVICE);
            }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and length and is unmapped only here.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
