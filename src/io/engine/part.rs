//! What one system call reads, and what its outcome means. Both engines share this, so both fail in the same ways.

use std::io;
use std::time::Duration;

use super::Destination;
use crate::error::{Error, ErrorCode};
use crate::index::ReadToken;
use crate::io::file::Cached;
use crate::io::{DirectFile, Look};

/// How many small adjacent requests one part may serve.
pub(super) const MERGED_REQUESTS: usize = 8;

/// How often in a row the system may ask to try again before that is an error.
const ATTEMPTS: u32 = 1000;

/// The pauses before a read is made again that has failed in a way that may pass, 1.4 s together: drives that reset and
/// networks that switch over take about a second, and a user notices no more.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(320),
    Duration::from_millis(1000),
];

/// The memory of one request in a part.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) token: ReadToken,
    pub(super) destination: Destination,
    pub(super) length: usize,
}

/// A contiguous range of a file on its way into the memory of one or more requests.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) file: usize,
    pub(super) offset: u64,
    /// Bytes that must arrive; after them comes only what alignment demanded, and perhaps the end of the file.
    required: usize,
    /// Bytes that have arrived.
    done: usize,
    attempts: u32,
    /// Pauses made since the last progress.
    pauses: usize,
    segments: [Segment; MERGED_REQUESTS],
    segment_count: usize,
    /// Whether others held half of it or more in the page cache before it was read. That stays.
    was_cached: bool,
    /// Whether it was taken as a speculative prefetch.
    pub(super) is_speculative: bool,
}

/// The I/O vectors of a part: what is still to be read.
pub(super) struct Vectors {
    entries: [libc::iovec; MERGED_REQUESTS],
    count: usize,
}

/// What to do after a system call.
pub(super) enum Step {
    /// All bytes are there.
    Finished,
    /// Read on, from [`Part::position`].
    Again,
    /// The same after a pause.
    Later(Duration),
    /// Never mind the rest.
    Failed(Error),
}

impl Part {
    pub(super) fn new(file: usize, offset: u64, first: Segment, required: usize) -> Self {
        Self {
            file,
            offset,
            required,
            done: 0,
            attempts: 0,
            pauses: 0,
            segments: [first; MERGED_REQUESTS],
            segment_count: 1,
            was_cached: false,
            is_speculative: false,
        }
    }

    /// Appends a request that begins where this part ends. Says no when there is no room for one more.
    pub(super) fn merge(&mut self, segment: Segment, required: usize) -> bool {
        if self.segment_count == MERGED_REQUESTS {
            return false;
        }
        self.required = self.length() + required;
        self.segments[self.segment_count] = segment;
        self.segment_count += 1;
        true
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments[..self.segment_count]
    }

    pub(super) fn length(&self) -> usize {
        self.segments().iter().map(|segment| segment.length).sum()
    }

    /// Where in the file the bytes end that must arrive.
    #[cfg(test)]
    pub(super) fn required_end(&self) -> u64 {
        self.offset + self.required as u64
    }

    /// Whether nothing of it is wanted: a tail that only alignment added.
    pub(super) fn is_padding(&self) -> bool {
        self.required == 0
    }

    /// Where the next system call reads.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.done as u64
    }

    /// Where the next system call writes.
    pub(super) fn vectors(&self) -> Vectors {
        let mut vectors = Vectors {
            entries: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MERGED_REQUESTS],
            count: 0,
        };
        let mut skip = self.done;
        for segment in self.segments() {
            let skipped = skip.min(segment.length);
            skip -= skipped;
            if skipped < segment.length {
                vectors.entries[vectors.count] = libc::iovec {
                    iov_base: segment.destination.at(skipped).0.cast(),
                    iov_len: segment.length - skipped,
                };
                vectors.count += 1;
            }
        }
        vectors
    }

    /// Takes the part's bytes from the page cache, if it is new, they are all there and the file is what it was. Else they are to be read.
    pub(super) fn copy_cached(&mut self, file: &DirectFile) -> bool {
        let vectors = self.vectors();
        // SAFETY: the submitter promised (`Destination::new`) that the requests' memory is writable and theirs alone until they are
        // reported, which happens after this call.
        let cached = unsafe { file.copy_cached(vectors.as_slice(), self.offset, self.required) };
        self.was_cached = cached != Cached::Nothing;
        cached == Cached::Whole && matches!(file.after_copy(), Ok(Look::Good))
    }

    /// Judges the outcome of a system call that read at [`Self::position`].
    pub(super) fn advance(&mut self, file: &DirectFile, outcome: io::Result<usize>) -> Step {
        match outcome {
            Ok(0) => Step::Failed(file.truncated(self.offset + self.required as u64)),
            Ok(count) if self.done + count >= self.required => self.complete(file),
            Ok(count) => self.resume(file, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.attempts += 1;
                match self.attempts < ATTEMPTS {
                    true => Step::Again,
                    false => Step::Failed(file.failed(self.position(), &error)),
                }
            }
            Err(error) => {
                let failure = file.failed(self.position(), &error);
                if !DirectFile::is_transient(&error) {
                    return Step::Failed(failure);
                }
                if self.pauses > 0 {
                    file.reopen();
                }
                self.later(failure)
            }
        }
    }

    /// All bytes are there. They are good unless the file is another one by now.
    fn complete(&mut self, file: &DirectFile) -> Step {
        let look = match self.was_cached {
            true => file.after_copy(),
            false => file.after_read(self.offset, self.length()),
        };
        match look {
            Ok(Look::Good) => Step::Finished,
            Ok(Look::Settled) => {
                self.done = 0;
                Step::Again
            }
            Ok(Look::Touched) => {
                self.done = 0;
                self.later(file.changed("is being written to while it is in use"))
            }
            Err(error) if matches!(error.code(), ErrorCode::Io | ErrorCode::Resource) => {
                self.done = 0;
                self.later(error)
            }
            Err(error) => Step::Failed(error),
        }
    }

    /// Tries again after a pause, unless that has been done often enough.
    fn later(&mut self, failure: Error) -> Step {
        let pause = PAUSES.get(self.pauses).copied();
        self.pauses += 1;
        pause.map_or(Step::Failed(failure), Step::Later)
    }

    /// After a short read. A direct read can only go on from an aligned place, so some bytes are read twice; one that
    /// ends where the file ends is truncation.
    fn resume(&mut self, file: &DirectFile, count: usize) -> Step {
        let end = self.position() + count as u64;
        match file.size_now() {
            Ok(size) if end >= size => return Step::Failed(file.truncated(self.offset + self.required as u64)),
            Ok(_) => {}
            Err(error) => return Step::Failed(file.failed(end, &error)),
        }
        let unit = file.alignment().offset_bytes;
        let resume = (self.done + count) / unit * unit;
        if resume > self.done {
            self.done = resume;
            (self.attempts, self.pauses) = (0, 0);
        } else {
            self.attempts += 1;
        }
        if self.attempts < ATTEMPTS {
            Step::Again
        } else {
            Step::Failed(Error::new(
                ErrorCode::Io,
                format!("reading {} at byte {} makes no progress", file.path().display(), self.position()),
            ))
        }
    }
}

impl Vectors {
    pub(super) fn as_ptr(&self) -> *const libc::iovec {
        self.entries.as_ptr()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn as_slice(&self) -> &[libc::iovec] {
        &self.entries[..self.count]
    }

    /// The only vector, if there is just one.
    pub(super) fn single(&self) -> Option<libc::iovec> {
        (self.count == 1).then(|| self.entries[0])
    }
}
