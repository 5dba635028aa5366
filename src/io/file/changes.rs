//! Telling whether an open file is still the one that was opened, or at least holds what that one held.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::open::{open_buffered, open_direct, replace_descriptor};
use super::{Content, DirectFile};
use crate::error::Result;

/// What identifies the contents of a file as far as the system tells: device, inode, size and time of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl FileIdentity {
    /// The identity of an open file, as of now.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from_metadata(&metadata))
    }

    /// The identity of the file that was asked about.
    pub fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        }
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// What is known of a file that is open.
#[derive(Debug)]
pub(super) struct Known {
    /// Of the file whose content was compared last, or of the one that was opened.
    pub(super) identity: FileIdentity,
    /// Another time of change that was seen, and when it was seen first.
    pub(super) changing: Option<(FileIdentity, Instant)>,
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

    /// Whether reads may go on after a failure.
    ///
    /// # Errors
    /// Why not: `Truncated`, `Changed`, or `Io` when the system does not tell.
    pub fn reexamine(&self) -> Result<()> {
        self.look().map(drop)
    }

    /// Weights of two versions of a file must never be mixed, so a file that changes under us is an error. One that was
    /// touched, or written to with what it held, is not, once nobody has written to it for a while.
    pub(super) fn look(&self) -> Result<Look> {
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
}
