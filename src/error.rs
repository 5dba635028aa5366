//! What can go wrong, as one type: a code that programs test and a message that people read.
//!
//! A message says what happened, where (file, offset, variable), and what to do about it. The codes are part of the C
//! ABI: append only, never renumber.

use std::fmt;

/// The kinds of failure. The numbers are the ABI's status codes (`hypura_status` in the header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ErrorCode {
    /// A NULL or out-of-range argument, or a call out of order: a bug in the host.
    InvalidArgument = 1,
    /// A `HYPURA_*` variable is malformed.
    Config = 2,
    /// A file does not exist or may not be opened.
    Open = 3,
    /// A file is not a GGUF that can be trusted: bad magic, impossible lengths, overlapping tensors.
    Format = 4,
    /// A file ends before the bytes that its header promises.
    Truncated = 5,
    /// The operating system reported an error while reading.
    Io = 6,
    /// A file is no longer the one that was opened: its size, time or inode changed.
    Changed = 7,
    /// The memory budget is below the working minimum; the message names the smallest that would do.
    Budget = 8,
    /// `HYPURA_VERIFY=1` found bytes in memory that differ from the file.
    Verify = 9,
    /// A panic was caught at the ABI: a bug in libhypura.
    Panic = 10,
    /// The host was built against another version of the ABI.
    Version = 11,
    /// The operating system refused memory or a thread.
    Resource = 12,
    /// It cannot be told for certain which bytes of which file the host means.
    Uncertain = 13,
}

/// An error: a code and a complete sentence.
#[derive(Clone, Debug)]
pub struct Error {
    code: ErrorCode,
    message: String,
}

/// The result of anything that can fail in this library.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind, with its message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The kind.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Whether the same may succeed later without anybody loading the model again, for all that is known here: a drive
    /// or a network that comes back, memory that becomes free, a file that gets its contents back.
    pub fn may_pass(&self) -> bool {
        matches!(
            self.code,
            ErrorCode::Open | ErrorCode::Truncated | ErrorCode::Io | ErrorCode::Changed | ErrorCode::Resource
        )
    }

    /// The sentence for the user.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
