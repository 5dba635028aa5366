//! A cursor over a file's bytes that cannot leave them.
//!
//! Every length in a GGUF header is untrusted. All reading goes through here, so a length is compared with the bytes
//! that are left before anything is done with it, and the error names the file, the range and what was expected there.

use std::path::Path;

use crate::error::{Error, ErrorCode, Result};

/// Bytes that a string takes at least: its length field.
pub(super) const STRING_BYTES_MIN: u64 = 8;

/// A position in the bytes of one file.
pub(super) struct Reader<'a> {
    path: &'a Path,
    /// The first bytes of the file, or all.
    bytes: &'a [u8],
    size_bytes: u64,
    position: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of a file of `size_bytes`, of which `bytes` are there; `path` is only for messages.
    pub(super) fn new(path: &'a Path, bytes: &'a [u8], size_bytes: u64) -> Self {
        Self { path, bytes, size_bytes, position: 0 }
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// The file's size in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    /// Takes `count` bytes; `what` names them in the error when the file ends before.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let Some(taken) = taken else {
            return Err(self.ends_before(count, what));
        };
        self.position += taken.len();
        Ok(taken)
    }

    /// Takes a 32-bit little-endian number.
    pub(super) fn take_u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take_array(what)?))
    }

    /// Takes a 64-bit little-endian number.
    pub(super) fn take_u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take_array(what)?))
    }

    /// Takes a string: a 64-bit length and that many bytes, which need not be UTF-8.
    pub(super) fn take_string(&mut self, what: &str) -> Result<&'a [u8]> {
        let length_bytes = self.take_u64(what)?;
        self.take(length_bytes, what)
    }

    /// Fails when `count` items of at least `item_bytes_min` bytes each cannot fit in what is left, so that a count
    /// is known to be honest in order of magnitude before a loop starts on it.
    pub(super) fn expect_room(&self, count: u64, item_bytes_min: u64, what: &str) -> Result<()> {
        let left_bytes = self.size_bytes.saturating_sub(self.position());
        match count.checked_mul(item_bytes_min) {
            Some(needed_bytes) if needed_bytes <= left_bytes => Ok(()),
            needed_bytes => Err(self.ends_before(needed_bytes.unwrap_or(u64::MAX), what)),
        }
    }

    /// A format error about this file.
    pub(super) fn malformed(&self, problem: impl std::fmt::Display) -> Error {
        malformed(self.path, problem)
    }

    fn take_array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn ends_before(&self, needed_bytes: u64, what: &str) -> Error {
        let start = self.position();
        match start.checked_add(needed_bytes) {
            Some(end) => truncated(self.path, self.size_bytes(), what, start, end),
            None => self.malformed(format_args!("{what} at byte {start} cannot be {needed_bytes} bytes long")),
        }
    }
}

/// The error for a file that is shorter than its header promises.
pub(super) fn truncated(path: &Path, size_bytes: u64, what: &str, start: u64, end: u64) -> Error {
    Error::new(
        ErrorCode::Truncated,
        format!(
            "{} is {size_bytes} bytes, but {what} needs bytes {start}..{end}; the download may be incomplete",
            path.display()
        ),
    )
}

/// The error for a file that contradicts the format or itself.
pub(super) fn malformed(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Format, format!("{} is not a GGUF that can be trusted: {problem}", path.display()))
}

/// A name from a file, fit for a message: quoted, control characters escaped, not longer than a line.
pub(super) fn quoted(name: &[u8]) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 96;
    // Four bytes is the longest character, so this prefix holds all that is shown.
    let prefix = &name[..name.len().min(4 * SHOWN_CHARACTERS_MAX)];
    let text = String::from_utf8_lossy(prefix);
    let shown: String = text.chars().take(SHOWN_CHARACTERS_MAX).collect();
    let ellipsis = if shown.len() < name.len() { "..." } else { "" };
    format!("'{}{ellipsis}'", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &[u8]) -> Reader<'_> {
        Reader::new(Path::new("x.gguf"), bytes, bytes.len() as u64)
    }

    #[test]
    fn takes_in_order_and_stops_at_the_end() {
        let bytes = [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i', 9];
        let mut reader = reader(&bytes);
        assert_eq!(reader.take_u32("number").unwrap(), 1);
        assert_eq!(reader.take_string("text").unwrap(), b"hi");
        let error = reader.take_u32("the last number").unwrap_err();
        assert_eq!(error.code(), ErrorCode::Truncated);
        assert_eq!(
            error.message(),
            "x.gguf is 15 bytes, but the last number needs bytes 14..18; the download may be incomplete"
        );
        assert_eq!(reader.position(), 14, "a failed read must not move");
    }

    #[test]
    fn an_impossible_length_is_a_format_error_not_an_overflow() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.push(0);
        assert_eq!(reader(&bytes).take_string("text").unwrap_err().code(), ErrorCode::Format);
    }

    #[test]
    fn room_is_checked_without_overflow() {
        let bytes = [0; 32];
        let reader = reader(&bytes);
        assert!(reader.expect_room(4, 8, "items").is_ok());
        assert_eq!(reader.expect_room(5, 8, "items").unwrap_err().code(), ErrorCode::Truncated);
        assert!(reader.expect_room(u64::MAX, 8, "items").is_err());
    }

    #[test]
    fn names_in_messages_are_short_and_printable() {
        assert_eq!(quoted(b"blk.0\n"), "'blk.0\\n'");
        assert!(quoted(&[b'a'; 4096]).len() < 128);
        assert_eq!(quoted("é".repeat(20).as_bytes()), format!("'{}'", "é".repeat(20)));
    }
}
