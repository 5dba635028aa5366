//! Anonymous memory of our own: page-aligned, costing nothing until touched.

use std::ptr::NonNull;

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

    /// The address `offset` bytes in.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.length);
        self.start.as_ptr().wrapping_add(offset)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and length and is unmapped only here.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
