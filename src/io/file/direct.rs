//! A file opened for reading past the page cache, with the alignment that this demands.
//!
//! The alignment is asked of the kernel, never assumed. That opening with `O_DIRECT` succeeds proves nothing (tmpfs
//! accepts it and reads fail later), so a probe read decides.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::align::{Alignment, Widened};
#[cfg(target_os = "linux")]
use super::align::{direct_alignment, probe};
use super::page_cache::{Cached, PageCache, pages_in_memory};
use super::{Content, FileIdentity};
use crate::error::{Error, ErrorCode, Result};

/// A file to stream from.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    path: PathBuf,
    alignment: Alignment,
    direct: bool,
    /// The size when it was opened. A file of another size is another file.
    size_bytes: u64,
    /// What it must hold, once somebody has said so.
    content: OnceLock<Content>,
    known: Mutex<Known>,
    /// The same file in the page cache, once somebody has asked for that.
    page_cache: OnceLock<PageCache>,
}

/// What is known of a file that is open.
#[derive(Debug)]
struct Known {
    /// Of the file whose content was compared last, or of the one that was opened.
    identity: FileIdentity,
    /// Another time of change that was seen, and when it was seen first.
    changing: Option<(FileIdentity, Instant)>,
}

/// How long a file that was written to must be left alone before its content is compared for good.
const SETTLED: Duration = Duration::from_millis(100);

/// What a look at a file says of bytes that were just read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// They are good.
    Good,
    /// The file was touched, but holds what it held and has been left alone since: they are to be read once more, at
    /// once.
    Settled,
    /// The file was touched just now and holds what it held so far: they are to be read once more, a little later.
    Touched,
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

    /// Says what the file holds, so that one that was only touched goes on. Without, another time of change is an
    /// error.
    ///
    /// # Errors
    /// `Changed` unless it is the file that `identity` names or, of the same size, holds that; `Io` when it cannot be
    /// told.
    pub fn expect(&self, identity: FileIdentity, content: Content) -> Result<()> {
        let opened = self.known.lock().identity;
        let same_size = opened.size_bytes() == identity.size_bytes();
        if opened != identity && !(same_size && self.holds(&content)?) {
            return Err(self.changed("was replaced or written to while it was being loaded"));
        }
        // Said once, by whoever opens a model.
        let _ = self.content.set(content);
        Ok(())
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

    /// As [`Self::after_read`], where the page cache held some of it before: that stays there.
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

    /// Whether reads may go on after a failure.
    ///
    /// # Errors
    /// Why not: `Truncated`, `Changed`, or `Io` when the system does not tell.
    pub fn reexamine(&self) -> Result<()> {
        self.look().map(drop)
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

    /// Weights of two versions of a file must never be mixed, so a file that changes under us is an error. One that was
    /// touched, or written to with what it held, is not, once nobody has written to it for a while.
    fn look(&self) -> Result<Look> {
        let now = FileIdentity::of(&self.file).or_else(|_| {
            self.reopen();
            FileIdentity::of(&self.file)
        });
        let now = now.map_err(|error| self.failed(0, &error))?;
        if now == self.known.lock().identity {
            return Ok(Look::Good);
        }
        if now.size_bytes() < self.size_bytes {
            return Err(self.truncated(self.size_bytes));
        }
        let Some(content) = self.content.get().filter(|_| now.size_bytes() == self.size_bytes) else {
            return Err(self.changed("was written to while it was in use"));
        };
        if !self.holds(content)? {
            return Err(self.changed("was written to while it was in use, and holds other weights now"));
        }
        let mut known = self.known.lock();
        match known.changing {
            Some((seen, since)) if seen == now && since.elapsed() >= SETTLED => {
                *known = Known { identity: now, changing: None };
                drop(known);
                tracing::info!("{} was touched; it holds what it held", self.path.display());
                return Ok(Look::Settled);
            }
            Some((seen, _)) if seen == now => {}
            _ => known.changing = Some((now, Instant::now())),
        }
        Ok(Look::Touched)
    }

    /// Whether the file holds what it should, by samples.
    fn holds(&self, content: &Content) -> Result<bool> {
        let read = |offset: u64, buffer: &mut [u8]| self.read_exact(&self.file, offset, buffer);
        match content.is_still(read) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            outcome => outcome.map_err(|error| self.failed(0, &error)),
        }
    }

    /// Fills a buffer that may lie anywhere from any offset of a file that was opened as this one was.
    fn read_exact(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
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

    /// Opens the file anew by its path, when the open one does not answer any more: a network or a FUSE file system may
    /// have gone away and come back. Whoever reads goes on with it if it holds what the lost one held.
    pub(in crate::io) fn reopen(&self) {
        let opened = if self.direct { open_direct(&self.path) } else { open_buffered(&self.path) };
        let Some((file, alignment)) = opened else { return };
        let Ok(identity) = FileIdentity::of(&file) else { return };
        let is_known = || identity == self.known.lock().identity;
        let holds = |content: &Content| {
            let read = |offset: u64, buffer: &mut [u8]| self.read_exact(&file, offset, buffer);
            identity.size_bytes() == self.size_bytes && content.is_still(read).unwrap_or(false)
        };
        if alignment != self.alignment || !(is_known() || self.content.get().is_some_and(holds)) {
            return;
        }
        // Under its own number, which reads in flight use: each of them gets the one or the other.
        if replace_descriptor(&self.file, &file) {
            *self.known.lock() = Known { identity, changing: None };
            // It has the pages of the lost file, which nobody compares with anything any more.
            if let Some(cache) = self.page_cache.get() {
                cache.give_up();
            }
            tracing::info!("{} was opened anew", self.path.display());
        }
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

/// Makes `old` refer to what `new` refers to, at once for all threads that use it. Says whether the system agreed.
fn replace_descriptor(old: &File, new: &File) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: both descriptors are open and owned by their `File`s; the second one stays open and owned by `old`.
    let replaced = unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) };
    #[cfg(not(target_os = "linux"))]
    // SAFETY: as above. That a child process inherits it does no harm.
    let replaced = unsafe { libc::dup2(new.as_raw_fd(), old.as_raw_fd()) };
    replaced >= 0
}

fn open_buffered(path: &Path) -> Option<(File, Alignment)> {
    File::open(path).ok().map(|file| (file, Alignment::NONE))
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
