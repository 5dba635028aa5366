//! A file to stream from: how a range of it is to be read, and what a read's failure means.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::changes::{Known, Look};
use super::open::{Alignment, Widened, open_direct};
use super::page_cache::{Cached, PageCache, pages_in_memory};
use super::{Content, FileIdentity};
use crate::error::{Error, ErrorCode, Result};

/// A file to stream from.
#[derive(Debug)]
pub struct DirectFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) alignment: Alignment,
    pub(super) direct: bool,
    /// The size when it was opened. A file of another size is another file.
    pub(super) size_bytes: u64,
    /// What it must hold, once somebody has said so.
    pub(super) content: OnceLock<Content>,
    pub(super) known: Mutex<Known>,
    /// The same file in the page cache, once somebody has asked for that.
    pub(super) page_cache: OnceLock<PageCache>,
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
        Ok(Self {
            file,
            path: path.to_owned(),
            alignment,
            direct: is_direct,
            size_bytes: identity.size_bytes(),
            content: OnceLock::new(),
            known: Mutex::new(Known { identity, changing: None }),
            page_cache: OnceLock::new(),
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether reads bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// From now on, copies what the page cache holds already instead of reading it from the drive.
    pub fn use_page_cache(&self) {
        let Ok(file) = File::open(&self.path) else { return };
        if FileIdentity::of(&file).is_ok_and(|identity| identity == self.known.lock().identity) {
            let _ = self.page_cache.set(PageCache::new(file)); // somebody else was faster
        }
    }

    /// Of what was read, bytes that the page cache held.
    pub fn page_cache_bytes(&self) -> u64 {
        self.page_cache.get().map_or(0, PageCache::copied_bytes)
    }

    /// Copies `wanted` bytes from a place of the file, if all of it is in the page cache and that is to be used. What has arrived is to be
    /// judged like any read, by [`Self::after_copy`].
    ///
    /// # Safety
    /// The memory behind the vectors may be written to.
    pub(in crate::io) unsafe fn copy_cached(&self, vectors: &[libc::iovec], position: u64, wanted: usize) -> Cached {
        // SAFETY: the contract of this function.
        self.page_cache.get().map_or(Cached::Nothing, |cache| unsafe { cache.copy(vectors, position, wanted) })
    }

    /// As [`Self::after_read`], of what others held in the page cache before, at least half of it: that stays there.
    ///
    /// # Errors
    /// As [`Self::after_read`].
    pub(in crate::io) fn after_copy(&self) -> Result<Look> {
        self.look()
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
        let head_padding = (offset - start) as usize;
        Widened { offset: start, length: (end - start) as usize, head_padding, required: head_padding + length }
    }

    /// To be called after a range was read in full and before its bytes are used: drops what the page cache keeps of
    /// it, and makes sure that the file is still the one that was opened.
    ///
    /// # Errors
    /// `Truncated`, `Changed`, `Io`: the bytes must not be used.
    pub fn after_read(&self, offset: u64, length: usize) -> Result<Look> {
        if !self.direct {
            self.drop_cached(offset, length);
        }
        self.look()
    }

    /// The file's size when it was opened, in bytes.
    pub fn opened_size(&self) -> u64 {
        self.size_bytes
    }

    /// The file's size as of now, in bytes.
    pub(in crate::io) fn size_now(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether the page cache has anything of a range; nothing where the system does not tell.
    pub(in crate::io) fn is_in_page_cache(&self, offset: u64, length: usize) -> Option<bool> {
        pages_in_memory(&self.file, offset, length as u64).map(|pages| pages > 0)
    }

    /// Gives back the page cache of a range that was just read: the bytes live in our memory now, once is enough.
    pub(in crate::io) fn drop_cached(&self, offset: u64, length: usize) {
        drop_from_page_cache(&self.file, offset, length as u64);
    }

    /// Fills a buffer that may lie anywhere from any offset of a file that was opened as this one was.
    pub(super) fn read_exact(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = self.widen(offset, buffer.len());
        let alignment = self.alignment.memory_bytes.max(1);
        let mut bytes = vec![0_u8; range.length + alignment];
        let start = bytes.as_mut_ptr().align_offset(alignment);
        let aligned = &mut bytes[start..start + range.length];
        let mut done = 0;
        while done < range.required {
            match file.read_at(&mut aligned[done..], range.offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // A direct read goes on from an aligned place.
                Ok(count) if done + count < range.required && count < self.alignment.offset_bytes => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(count) if done + count >= range.required => done += count,
                Ok(count) => done += count / self.alignment.offset_bytes * self.alignment.offset_bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.copy_from_slice(&aligned[range.head_padding..range.required]);
        Ok(())
    }

    pub(in crate::io) fn changed(&self, what: &str) -> Error {
        Error::new(ErrorCode::Changed, format!("{} {what}; load the model again", self.path.display()))
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

    /// Whether a failed system call may succeed when it is made again a little later.
    pub(in crate::io) fn is_transient(error: &io::Error) -> bool {
        matches!(
            error.raw_os_error(),
            Some(
                libc::EIO
                    | libc::EAGAIN
                    | libc::EBUSY
                    | libc::ESTALE
                    | libc::ETIMEDOUT
                    | libc::ENOMEM
                    | libc::ENOBUFS
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::ENODEV
                    | libc::ENXIO
                    | libc::ENOTCONN
                    | libc::ECONNABORTED
                    | libc::ECONNRESET
                    | libc::EHOSTDOWN
                    | libc::EHOSTUNREACH
                    | libc::ENETDOWN
                    | libc::ENETRESET
                    | libc::ENETUNREACH
                    | libc::ENOLINK
                    | libc::EREMOTEIO
            )
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

/// Reads exactly `length` bytes of a file, which end up in memory that need not be initialised.
///
/// # Errors
/// What the system says; `UnexpectedEof` for a file that ends before.
///
/// # Safety
/// `destination` is valid for writing `length` bytes.
pub unsafe fn read_exact_to(file: &File, destination: *mut u8, length: usize, offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let to = destination.wrapping_add(done).cast();
        // SAFETY: what is left of the destination, for which the caller vouches, is valid for `length - done` bytes.
        let read = unsafe { libc::pread(file.as_raw_fd(), to, length - done, (offset + done as u64) as libc::off_t) };
        match read {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1.. => done += read as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl AsRawFd for DirectFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn open_error(path: &Path, error: &io::Error) -> Error {
    Error::new(ErrorCode::Open, format!("cannot open {}: {error}", path.display()))
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
                assert_eq!(range.offset + range.head_padding as u64, offset);
                assert_eq!(range.required, range.head_padding + length);
                assert!(range.head_padding < unit as usize && range.length - range.required < unit as usize);
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
