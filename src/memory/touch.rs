//! Memory is taken from the system before it is needed, by a thread that is in nobody's way.

/// Takes the memory of all pages of a range from the system, as writing to them would; their contents stay. Says whether it did: a system
/// that cannot be asked for that (Linux before 5.14, others) or has no memory does not.
#[cfg(all(target_os = "linux", not(miri)))]
pub fn touch(start: *mut u8, length: usize) -> bool {
    let into_page = start.addr() % crate::hw::page_size();
    let first_page = start.wrapping_sub(into_page);
    // SAFETY: the system checks the range, and the advice changes no contents, whoever reads or writes there meanwhile.
    unsafe { libc::madvise(first_page.cast(), into_page + length, libc::MADV_POPULATE_WRITE) == 0 }
}

/// Cannot be asked for.
#[cfg(any(not(target_os = "linux"), miri))]
pub fn touch(_start: *mut u8, _length: usize) -> bool {
    false
}

/// Makes the calling thread let others go first. It still gets a tenth of a processor that others want: they may wait for a lock that it
/// holds, of ours or the system's. Only a wish: where it is refused, nothing changes.
pub fn yield_to_others() {
    #[cfg(all(target_os = "linux", not(miri)))]
    // Niceness is a thread's own on Linux, and the whole process's elsewhere.
    // SAFETY: the call takes plain numbers; 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;
    use crate::memory::{Arena, Backing};

    /// Whether the system has given the page at an address.
    fn is_there(address: *mut u8) -> bool {
        let page = crate::hw::page_size();
        let mut status = 0_u8;
        // SAFETY: the call writes one byte to `status`; it reads nothing at the address, which the system checks.
        let answer =
            unsafe { libc::mincore(address.wrapping_sub(address.addr() % page).cast(), page, &raw mut status) };
        answer == 0 && status & 1 == 1
    }

    #[test]
    fn memory_is_there_once_it_was_touched_and_holds_what_it_held() {
        let page = crate::hw::page_size();
        let mut arena = Arena::new(8 * page).unwrap();
        // Huge pages would come as a whole.
        // SAFETY: the range is the arena's; the advice changes no contents.
        unsafe { libc::madvise(arena.as_mut_ptr().cast(), arena.length(), libc::MADV_NOHUGEPAGE) };
        // SAFETY: the byte is the arena's, which nobody else knows of.
        unsafe { arena.address(2 * page).write(7) };
        assert!(touch(arena.address(2 * page + 100), 2 * page), "Linux 5.14 can");
        let there: Vec<usize> = (0..8).filter(|index| is_there(arena.address(index * page))).collect();
        assert_eq!(there, [2, 3, 4]);
        // SAFETY: as above.
        assert_eq!(unsafe { arena.address(2 * page).read() }, 7);
        assert!(!touch(std::ptr::without_provenance_mut(page), page), "there is nothing");
    }
}
