//! A file opened for reading past the page cache, with the alignment that this demands.
//!
//! The alignment is asked of the kernel, never assumed. That opening with `O_DIRECT` succeeds proves nothing (tmpfs
//! accepts it and reads fail later), so a probe read decides.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorCode, Result};

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
    pub lead: usize,
    /// Bytes from `offset` on that must arrive: up to the end of the wanted range.
    pub required: usize,
}

/// What identifies the contents of an open file as far as the system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        })
    }
}

/// A file to stream from.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    path: PathBuf,
    alignment: Alignment,
    direct: bool,
    identity: Identity,
}

impl DirectFile {
    /// Opens a file; with `direct`, past the page cache where the file system can.
    ///
    /// # Errors
    /// `Open` when the file cannot be opened. That it cannot be read directly is no error: see [`Self::is_direct`].
    pub fn open(path: &Path, direct: bool) -> Result<Self> {
        let direct_file = if direct { open_direct(path) } else { None };
        let is_direct = direct_file.is_some();
        let (file, alignment) = match direct_file {
            Some(opened) => opened,
            None => (File::open(path).map_err(|error| open_error(path, &error))?, Alignment::NONE),
        };
        let identity = Identity::of(&file).map_err(|error| open_error(path, &error))?;
        Ok(Self { file, path: path.to_owned(), alignment, direct: is_direct, identity })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether reads bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// What reads must be aligned to.
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// Extends a range to the file's alignment.
    pub fn widen(&self, offset: u64, length: usize) -> Widened {
        let unit = self.alignment.offset_bytes as u64;
        let start = offset / unit * unit;
        let end = (offset + length as u64).div_ceil(unit) * unit;
        let lead = (offset - start) as usize;
        Widened { offset: start, length: (end - start) as usize, lead, required: lead + length }
    }

    /// Reads `length` bytes at `offset` into `destination`; the first `required` of them must exist.
    ///
    /// # Errors
    /// `Truncated` when the file ends too early, `Changed` when it is not the file that was opened any more, `Io` with
    /// the system's reason otherwise. The memory then holds nothing that may be used.
    ///
    /// # Safety
    /// `destination` must be valid for writes of `length` bytes and not accessed by anyone else during the call.
    pub unsafe fn read_at(&self, offset: u64, destination: *mut u8, length: usize, required: usize) -> Result<()> {
        let mut done = 0;
        while done < required {
            // SAFETY: `done < length` because `required <= length`, so the written range stays within the `length`
            // bytes that the caller vouches for; the descriptor is open for as long as `self` lives.
            let count = unsafe {
                libc::pread(
                    self.file.as_raw_fd(),
                    destination.wrapping_add(done).cast(),
                    length - done,
                    (offset + done as u64) as libc::off_t,
                )
            };
            match count {
                0 => return Err(self.truncated(offset + required as u64)),
                count if count > 0 && done + count as usize >= required => break,
                count if count > 0 => done = self.resume_after(offset, done, count as usize, required)?,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(self.failed(offset + done as u64, &error));
                    }
                }
            }
        }
        if !self.direct {
            self.drop_cached(offset, length);
        }
        self.check_unchanged()
    }

    /// Where to go on after a short read. A direct read can only go on from an aligned place, so some bytes are read
    /// twice; one that ends where the file ends is truncation.
    fn resume_after(&self, offset: u64, done: usize, count: usize, required: usize) -> Result<usize> {
        let end = offset + (done + count) as u64;
        let size = self.file.metadata().map_err(|error| self.failed(end, &error))?.len();
        if end >= size {
            return Err(self.truncated(offset + required as u64));
        }
        let unit = self.alignment.offset_bytes;
        let resume = (done + count) / unit * unit;
        if resume > done {
            Ok(resume)
        } else {
            Err(self.failed(end, &io::Error::new(io::ErrorKind::UnexpectedEof, "the read made no progress")))
        }
    }

    /// Gives back the page cache of a range that was just read: the bytes live in our memory now, once is enough.
    fn drop_cached(&self, offset: u64, length: usize) {
        #[cfg(target_os = "linux")]
        // SAFETY: the call takes an open descriptor and plain numbers; it is advice and touches no memory of ours.
        unsafe {
            libc::posix_fadvise(
                self.file.as_raw_fd(),
                offset as libc::off_t,
                length as libc::off_t,
                libc::POSIX_FADV_DONTNEED,
            );
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, length);
    }

    /// Weights of two versions of a file must never be mixed, so a file that changes under us is an error.
    fn check_unchanged(&self) -> Result<()> {
        match Identity::of(&self.file) {
            Ok(identity) if identity == self.identity => Ok(()),
            Ok(identity) if identity.size_bytes < self.identity.size_bytes => {
                Err(self.truncated(self.identity.size_bytes))
            }
            Ok(_) => Err(Error::new(
                ErrorCode::Changed,
                format!("{} was written to while it was in use; load the model again", self.path.display()),
            )),
            Err(error) => Err(self.failed(0, &error)),
        }
    }

    fn truncated(&self, needed_bytes: u64) -> Error {
        let size = self.file.metadata().map(|metadata| metadata.len());
        let now = size.map_or_else(|_| "shorter".to_owned(), |bytes| format!("{bytes} bytes"));
        Error::new(
            ErrorCode::Truncated,
            format!(
                "{} is {now}, but bytes up to {needed_bytes} are needed: it was truncated while it was in use",
                self.path.display()
            ),
        )
    }

    fn failed(&self, offset: u64, error: &io::Error) -> Error {
        Error::new(ErrorCode::Io, format!("cannot read {} at byte {offset}: {error}", self.path.display()))
    }
}

fn open_error(path: &Path, error: &io::Error) -> Error {
    Error::new(ErrorCode::Open, format!("cannot open {}: {error}", path.display()))
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<(File, Alignment)> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    let alignment = direct_alignment(&file)?;
    probe(&file, alignment).then_some((file, alignment))
}

/// macOS has no alignment rules; untested.
#[cfg(target_os = "macos")]
fn open_direct(path: &Path) -> Option<(File, Alignment)> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sample(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hypura-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    /// Reads through a page-aligned buffer, as the pool does.
    fn read(file: &DirectFile, offset: u64, length: usize) -> Result<Vec<u8>> {
        let range = file.widen(offset, length);
        let mut memory = crate::cache::Arena::new(range.length).unwrap();
        // SAFETY: the arena is at least `range.length` bytes and nobody else knows of it.
        unsafe { file.read_at(range.offset, memory.as_mut_ptr(), range.length, range.required)? };
        // SAFETY: the read filled `range.required` bytes, which end where the wanted range ends.
        Ok(unsafe { std::slice::from_raw_parts(memory.as_mut_ptr().add(range.lead), length) }.to_vec())
    }

    #[test]
    fn any_range_reads_the_same_directly_and_buffered() {
        let bytes: Vec<u8> = (0..300_001u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let path = sample("ranges", &bytes);
        for direct in [false, true] {
            let file = DirectFile::open(&path, direct).unwrap();
            for (offset, length) in [(0, 1), (1, 511), (511, 2), (4095, 8194), (299_990, 11), (123, 299_878)] {
                let expected = &bytes[offset as usize..offset as usize + length];
                assert_eq!(read(&file, offset, length).unwrap(), expected, "{offset}+{length} direct={direct}");
            }
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_range_past_the_end_is_truncation() {
        let path = sample("short", &[7; 1000]);
        for direct in [false, true] {
            let file = DirectFile::open(&path, direct).unwrap();
            assert_eq!(read(&file, 990, 11).unwrap_err().code(), ErrorCode::Truncated);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_changes_while_open_is_noticed() {
        let path = sample("changed", &[7; 8192]);
        let file = DirectFile::open(&path, true).unwrap();
        assert!(read(&file, 0, 100).is_ok());
        std::thread::sleep(std::time::Duration::from_millis(20));
        OpenOptions::new().write(true).open(&path).unwrap().write_all(&[8; 16]).unwrap();
        assert_eq!(read(&file, 4096, 100).unwrap_err().code(), ErrorCode::Changed);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert_eq!(read(&file, 0, 100).unwrap_err().code(), ErrorCode::Truncated);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = DirectFile::open(Path::new("/nonexistent/model.gguf"), true).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Open);
        assert!(error.message().contains("/nonexistent/model.gguf"));
    }
}
