//! The usual memory of slots: anonymous memory of our own.
//!
//! Most systems promise memory freely, and count it when it is touched. Where one promises no more than it has, whatever may be written
//! to counts from the start ([`hw::charges_reservations`]). There an arena is inaccessible but for what is open, so that what one model
//! gives up can be promised to another, or to the host. Whoever touches what is closed is ended by the system.

use std::ptr::NonNull;

use super::Backing;
use super::taken::{Taken, is_chunk_there};
use crate::error::{Error, ErrorCode, Result};
use crate::hw;

/// A private anonymous mapping, page-aligned, costing nothing until touched, or opened where that counts, and unmapped on drop.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    length: usize,
    taken: Taken,
    /// What may be written to counts.
    is_charged: bool,
}

// SAFETY: an `Arena` is the sole owner of its mapping, as a `Vec` is of its allocation; it has no thread affinity.
unsafe impl Send for Arena {}

/// A mapping that is inaccessible until it is opened, and costs nothing so far.
const CLOSED: libc::c_int = libc::PROT_NONE;
const OPEN: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

impl Arena {
    /// Reserves at least `length` bytes of zeroed memory, aligned to pages, all of it open.
    ///
    /// # Errors
    /// `Resource` when the system refuses.
    pub fn new(length: usize) -> Result<Self> {
        Self::reserve(length, length)
    }

    /// The same, of which the first `open_bytes` are open.
    ///
    /// # Errors
    /// `Resource` when the system refuses.
    pub fn reserve(length: usize, open_bytes: usize) -> Result<Self> {
        Self::reserve_where(hw::charges_reservations(), length, open_bytes)
    }

    /// The same where what may be written to counts, or does not.
    fn reserve_where(is_charged: bool, length: usize, open_bytes: usize) -> Result<Self> {
        let length = length.max(1);
        let protection = if is_charged { CLOSED } else { OPEN };
        // SAFETY: a new mapping at an address of the kernel's choice affects no existing memory.
        let start = unsafe { map(std::ptr::null_mut(), length, protection, 0) };
        let start =
            NonNull::new(start.cast::<u8>()).filter(|_| start != libc::MAP_FAILED).ok_or_else(|| refused(length))?;
        let mut arena = Self { start, length, taken: Taken::new(start.addr().get(), length), is_charged };
        arena.prefer_huge_pages(0, length);
        match arena.open(0, open_bytes) {
            true => Ok(arena),
            false => Err(refused(open_bytes)),
        }
    }

    /// Fewer pages to pin for every direct read and to look up for every multiplication. Only advice: where it is refused, small
    /// pages do.
    fn prefer_huge_pages(&mut self, _offset: usize, _length: usize) {
        #[cfg(all(target_os = "linux", not(miri)))]
        // SAFETY: callers pass a range of the mapping, which `self` owns; the advice changes no contents.
        unsafe {
            libc::madvise(self.address(_offset).cast(), _length, libc::MADV_HUGEPAGE);
        }
    }

    /// The first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Returns whole pages to the system: the ends are rounded inwards.
    fn discard(&mut self, offset: usize, length: usize) {
        #[cfg(target_os = "linux")]
        const ADVICE: libc::c_int = libc::MADV_DONTNEED;
        #[cfg(not(target_os = "linux"))]
        const ADVICE: libc::c_int = libc::MADV_FREE;
        let page = hw::page_size();
        let (from, to) = (offset.next_multiple_of(page), (offset + length).min(self.length) / page * page);
        if from >= to || cfg!(miri) || (self.is_charged && self.close(from, to - from)) {
            return;
        }
        // Only advice: where it is refused, the memory stays with us and serves again.
        // SAFETY: the range lies within the mapping, which `self` owns; the caller has exclusive access.
        unsafe {
            libc::madvise(self.address(from).cast(), to - from, ADVICE);
        }
    }

    /// Makes whole pages inaccessible. A new mapping, since one that only loses its protection stays promised. Says whether it worked:
    /// the system has a limit of how many mappings there may be.
    fn close(&mut self, offset: usize, length: usize) -> bool {
        let address = self.address(offset).cast();
        // SAFETY: what is replaced is a range of the mapping, which `self` owns, and to which nobody has a reference: it was released.
        let is_closed = unsafe { map(address, length, CLOSED, libc::MAP_FIXED) } == address;
        if is_closed {
            self.prefer_huge_pages(offset, length);
        }
        is_closed
    }
}

/// Maps private anonymous memory that reserves nothing.
///
/// # Safety
/// With `MAP_FIXED` among the flags, the range must be the caller's, and nobody may have a reference to it.
unsafe fn map(
    address: *mut libc::c_void,
    length: usize,
    protection: libc::c_int,
    flags: libc::c_int,
) -> *mut libc::c_void {
    // Miri knows no mapping that reserves nothing.
    let reserves_nothing = if cfg!(miri) { 0 } else { libc::MAP_NORESERVE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | reserves_nothing | flags;
    // SAFETY: the caller's promise; without `MAP_FIXED`, the kernel chooses addresses where nothing is.
    unsafe { libc::mmap(address, length, protection, flags, -1, 0) }
}

fn refused(length: usize) -> Error {
    let reason = std::io::Error::last_os_error();
    Error::new(ErrorCode::Resource, format!("cannot map {length} bytes for weights: {reason}"))
}

impl Backing for Arena {
    fn length(&self) -> usize {
        self.length
    }

    fn address(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.length);
        self.start.as_ptr().wrapping_add(offset)
    }

    fn open(&mut self, offset: usize, length: usize) -> bool {
        if !self.is_charged || length == 0 {
            return true;
        }
        let page = hw::page_size();
        let (from, to) = (offset / page * page, (offset + length).next_multiple_of(page));
        // SAFETY: the range lies within the mapping, whose last page is whole; allowing more harms nobody.
        unsafe { libc::mprotect(self.address(from).cast(), to - from, OPEN) == 0 }
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
        // SAFETY: the mapping was made by `reserve_where` with this address and length and is unmapped only here.
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

    /// Whether an address may be written to, as the system sees it.
    fn is_writable(address: *mut u8) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
        let is_there = |line: &&str| {
            let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            (number(from)..number(to)).contains(&address.addr())
        };
        let line = maps.lines().find(is_there).expect("it is mapped");
        match line.split(' ').nth(1).unwrap() {
            "rw-p" => true,
            "---p" => false,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_closed_cannot_be_written_to_where_that_would_count() {
        let mut arena = Arena::reserve_where(true, 4 * MIB, MIB).unwrap();
        let open = |arena: &Arena| [0, 1, 2, 3].map(|mebibyte| is_writable(arena.address(mebibyte * MIB)));
        assert_eq!(open(&arena), [true, false, false, false]);
        assert!(arena.open(MIB, 2 * MIB));
        // SAFETY: the byte is the arena's, which nobody else knows of, and it is open.
        unsafe { arena.address(MIB).write(1) };
        arena.release(MIB, MIB);
        arena.release_unwritten(2 * MIB, MIB);
        assert_eq!(open(&arena), [true, false, false, false]);
        assert!(arena.open(MIB, MIB));
        assert_eq!(open(&arena), [true, true, false, false]);
        // SAFETY: as above.
        assert_eq!(unsafe { arena.address(MIB).read() }, 0, "it is new memory");
        let mut free = Arena::reserve_where(false, 4 * MIB, MIB).unwrap();
        free.release(0, MIB);
        assert_eq!(open(&free), [true; 4], "what costs nothing is left as it is");
    }

    #[test]
    fn it_is_known_what_the_system_gave_beside_what_was_written() {
        assert_eq!(taken_beside(8 * MIB), 2 * MIB - (64 << 10));
        assert_eq!(taken_beside(4096), 0, "small pages come one at a time");
    }
}
