//! A file opened for reading past the page cache, with the alignment that this demands.
//!
//! The alignment is asked of the kernel, never assumed. That opening with `O_DIRECT` succeeds proves nothing (tmpfs
//! accepts it and reads fail later), so a probe read decides.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use super::FileIdentity;
use super::align::{Alignment, Widened};
#[cfg(target_os = "linux")]
use super::align::{direct_alignment, probe};
use crate::error::{Error, ErrorCode, Result};

/// A file to stream from.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    path: PathBuf,
    alignment: Alignment,
    direct: bool,
    identity: FileIdentity,
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
        let identity = FileIdentity::of(&file).map_err(|error| open_error(path, &error))?;
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

    /// What was opened.
    pub fn identity(&self) -> FileIdentity {
        self.identity
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

    /// To be called after a range was read in full and before its bytes are used: drops what the page cache keeps of it, and
    /// makes sure that the file is still the one that was opened.
    ///
    /// # Errors
    /// `Truncated`, `Changed`, `Io`: the bytes must not be used.
    pub fn after_read(&self, offset: u64, length: usize) -> Result<()> {
        if !self.direct {
            self.drop_cached(offset, length);
        }
        self.check_unchanged()
    }

    /// The file's size when it was opened, in bytes.
    pub fn opened_size(&self) -> u64 {
        self.identity.size_bytes()
    }

    /// The file's size as of now, in bytes.
    pub(in crate::io) fn size_now(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Gives back the page cache of a range that was just read: the bytes live in our memory now, once is enough.
    pub(in crate::io) fn drop_cached(&self, offset: u64, length: usize) {
        drop_from_page_cache(&self.file, offset, length as u64);
    }

    /// Weights of two versions of a file must never be mixed, so a file that changes under us is an error.
    fn check_unchanged(&self) -> Result<()> {
        match FileIdentity::of(&self.file) {
            Ok(identity) if identity == self.identity => Ok(()),
            Ok(identity) if identity.size_bytes() < self.identity.size_bytes() => {
                Err(self.truncated(self.identity.size_bytes()))
            }
            Ok(_) => Err(Error::new(
                ErrorCode::Changed,
                format!("{} was written to while it was in use; load the model again", self.path.display()),
            )),
            Err(error) => Err(self.failed(0, &error)),
        }
    }

    pub(in crate::io) fn truncated(&self, needed_bytes: u64) -> Error {
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

    /// The error for a failed system call. Want of memory or descriptors is told apart from a failing drive.
    pub(in crate::io) fn failed(&self, offset: u64, error: &io::Error) -> Error {
        let code = match error.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOBUFS | libc::EMFILE | libc::ENFILE | libc::ENOSPC | libc::EDQUOT) => {
                ErrorCode::Resource
            }
            _ => ErrorCode::Io,
        };
        Error::new(code, format!("cannot read {} at byte {offset}: {error}", self.path.display()))
    }
}

/// Advises the system that a range of a file will not be needed soon.
pub fn drop_from_page_cache(file: &File, offset: u64, length: u64) {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes an open descriptor and plain numbers; it is advice and touches no memory of ours.
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), offset as libc::off_t, length as libc::off_t, libc::POSIX_FADV_DONTNEED);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, length);
}

impl AsRawFd for DirectFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn open_error(path: &Path, error: &io::Error) -> Error {
    Error::new(ErrorCode::Open, format!("cannot open {}: {error}", path.display()))
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<(File, Alignment)> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    // Slots and parts are aligned to pages; what demands more is read through the cache.
    let fits = |alignment: &Alignment| alignment.memory_bytes.max(alignment.offset_bytes) <= crate::hw::page_size();
    let alignment = direct_alignment(&file).filter(fits)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sample(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hypura-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    #[test]
    fn widening_covers_the_range_and_no_more_than_a_unit_at_each_end() {
        let path = sample("widen", &[7; 10_000]);
        for direct in [false, true] {
            let file = DirectFile::open(&path, direct).unwrap();
            let unit = file.alignment().offset_bytes as u64;
            for (offset, length) in [(0, 1), (1, 511), (511, 2), (4095, 4098), (9_999, 1)] {
                let range = file.widen(offset, length);
                assert_eq!((range.offset % unit, range.length as u64 % unit), (0, 0));
                assert_eq!(range.offset + range.lead as u64, offset);
                assert_eq!(range.required, range.lead + length);
                assert!(range.lead < unit as usize && range.length - range.required < unit as usize);
            }
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = DirectFile::open(Path::new("/nonexistent/model.gguf"), true).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Open);
        assert!(error.message().contains("/nonexistent/model.gguf"));
    }
}
