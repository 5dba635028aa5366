//! The alignment that direct I/O demands: asked of the kernel, never assumed.

#[cfg(target_os = "linux")]
use std::fs::File;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;

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

/// The kernel's word on direct I/O for this file; `None` when it says that there is none.
#[cfg(target_os = "linux")]
pub(super) fn direct_alignment(file: &File) -> Option<Alignment> {
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
pub(super) fn probe(file: &File, alignment: Alignment) -> bool {
    let unit = alignment.offset_bytes.max(alignment.memory_bytes);
    let mut buffer = vec![0u8; 2 * unit];
    let start = buffer.as_mut_ptr().align_offset(unit);
    // SAFETY: `start + unit <= 2 * unit`, so the read stays inside `buffer`, which outlives the call.
    unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().add(start).cast(), unit, 0) >= 0 }
}
