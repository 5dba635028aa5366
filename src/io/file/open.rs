//! Opening a file past the page cache. The alignment that this demands is asked of the kernel, never assumed.
//!
//! That opening with `O_DIRECT` succeeds proves nothing (tmpfs accepts it and reads fail later), so a probe read decides.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

/// What a read's address, offset and length must be multiples of, in bytes. Powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// For the address of the buffer.
    pub memory_bytes: usize,
    /// For the offset in the file and the length.
    pub offset_bytes: usize,
}

impl Alignment {
    /// No constraint: reads through the page cache.
    pub const NONE: Self = Self { memory_bytes: 1, offset_bytes: 1 };
}

/// A range of a file extended to an alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widened {
    /// First byte that is read, in the file.
    pub offset: u64,
    /// Bytes to read; the file may end before the last of them.
    pub length: usize,
    /// Where the wanted range starts within what is read.
    pub head_padding: usize,
    /// Bytes from `offset` on that must arrive: up to the end of the wanted range.
    pub required: usize,
}

/// Opens a file for reads through the page cache.
pub(super) fn open_buffered(path: &Path) -> Option<(File, Alignment)> {
    File::open(path).ok().map(|file| (file, Alignment::NONE))
}

/// Opens a file for reads past the page cache; `None` where the file system cannot.
#[cfg(target_os = "linux")]
pub(super) fn open_direct(path: &Path) -> Option<(File, Alignment)> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    // Slots and parts are aligned to pages; what demands more is read through the cache.
    let fits = |alignment: &Alignment| alignment.memory_bytes.max(alignment.offset_bytes) <= crate::hw::page_size();
    let alignment = direct_alignment(&file).filter(fits)?;
    probe(&file, alignment).then_some((file, alignment))
}

/// macOS has no alignment rules; untested.
#[cfg(target_os = "macos")]
pub(super) fn open_direct(path: &Path) -> Option<(File, Alignment)> {
    let file = OpenOptions::new().read(true).open(path).ok()?;
    // SAFETY: both commands take an open descriptor and an integer, and change only this descriptor's caching.
    let refused = unsafe {
        libc::fcntl(file.as_raw_fd(), libc::F_NOCACHE, 1) == -1
            || libc::fcntl(file.as_raw_fd(), libc::F_RDAHEAD, 0) == -1
    };
    (!refused).then_some((file, Alignment::NONE))
}

/// The kernel's word on direct I/O for this file; `None` when it says that there is none.
#[cfg(target_os = "linux")]
fn direct_alignment(file: &File) -> Option<Alignment> {
    // From linux/stat.h; the libc crate does not carry the newer of the two.
    const STATX_DIOALIGN: libc::c_uint = 0x2000;
    // SAFETY: `statx` is plain old data, for which all zeros is a valid value.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path is a NUL-terminated string, and `status` outlives the call.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_DIOALIGN, &mut status) };
    if result != 0 || status.stx_mask & STATX_DIOALIGN == 0 {
        // Kernels before 6.1 do not say. The page size satisfies every drive that they support; the probe decides.
        let page_bytes = crate::hw::page_size();
        return Some(Alignment { memory_bytes: page_bytes, offset_bytes: page_bytes });
    }
    let (memory_bytes, offset_bytes) = (status.stx_dio_mem_align as usize, status.stx_dio_offset_align as usize);
    (memory_bytes.is_power_of_two() && offset_bytes.is_power_of_two())
        .then_some(Alignment { memory_bytes, offset_bytes })
}

/// Reads one block: the only proof that direct reads work here.
#[cfg(target_os = "linux")]
fn probe(file: &File, alignment: Alignment) -> bool {
    let unit = alignment.offset_bytes.max(alignment.memory_bytes);
    let mut buffer = vec![0u8; 2 * unit];
    let start = buffer.as_mut_ptr().align_offset(unit);
    // SAFETY: `start + unit <= 2 * unit`, so the read stays inside `buffer`, which outlives the call.
    unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().add(start).cast(), unit, 0) >= 0 }
}

/// Makes `old` refer to what `new` refers to, at once for all threads that use it. Says whether the system agreed.
pub(super) fn replace_descriptor(old: &File, new: &File) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: both descriptors are open and owned by their `File`s; the second one stays open and owned by `old`.
    let replaced = unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) };
    #[cfg(not(target_os = "linux"))]
    // SAFETY: as above. That a child process inherits it does no harm.
    let replaced = unsafe { libc::dup2(new.as_raw_fd(), old.as_raw_fd()) };
    replaced >= 0
}
