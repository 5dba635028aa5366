//! Telling whether a file still holds what it held, without reading all of it.
//!
//! A file's time of change says that somebody wrote to it or only touched it. The header, the size and samples of what
//! follows tell the two apart. They guard against mistakes, not against malice.

use std::io;

use crate::fnv::Fnv;

/// What a file holds, by samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Bytes of the whole file.
    size_bytes: u64,
    /// Bytes at the start that are compared in full.
    header_bytes: u64,
    digest: u64,
}

/// How many places beyond the header are sampled, and how many bytes at each.
const SAMPLES: u64 = 32;
const SAMPLE_BYTES: u64 = 1 << 10;

/// The header is read in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

impl Content {
    /// Samples a file of `size_bytes` whose first `header_bytes` all count. `read` fills a buffer from an offset on.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn sample(
        size_bytes: u64,
        header_bytes: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let header_bytes = header_bytes.min(size_bytes);
        let mut digest = Fnv::default();
        digest.add(&size_bytes.to_le_bytes());
        let mut buffer = vec![0; PIECE_BYTES.min(size_bytes).max(SAMPLE_BYTES) as usize];
        let mut add = |offset: u64, length: u64| {
            let piece = &mut buffer[..length as usize];
            read(offset, piece)?;
            digest.add(piece);
            io::Result::Ok(())
        };
        for start in (0..header_bytes).step_by(PIECE_BYTES as usize) {
            add(start, PIECE_BYTES.min(header_bytes - start))?;
        }
        let data_bytes = size_bytes - header_bytes;
        let last_start = data_bytes.saturating_sub(SAMPLE_BYTES);
        for sample in 0..SAMPLES {
            // The first sample begins where the data does, the last one ends where it ends.
            let start = (u128::from(last_start) * u128::from(sample) / u128::from(SAMPLES - 1)) as u64;
            add(header_bytes + start, SAMPLE_BYTES.min(data_bytes - start))?;
        }
        Ok(Self { size_bytes, header_bytes, digest: digest.value() })
    }

    /// Whether the file that `read` reads, of a size that is the same as ever, holds what was sampled.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn is_still(&self, read: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> io::Result<bool> {
        Ok(Self::sample(self.size_bytes, self.header_bytes, read)? == *self)
    }

    /// A number that stands for the content.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8], header_bytes: u64) -> Content {
        let read = |offset: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
            Ok(())
        };
        Content::sample(bytes.len() as u64, header_bytes, read).unwrap()
    }

    #[test]
    fn header_size_and_samples_count() {
        let mut bytes: Vec<u8> = (0..3_000_000_u32).map(|index| (index >> 4) as u8).collect();
        let header_bytes = 1_500_000;
        let first = of(&bytes, header_bytes);
        assert_eq!(first, of(&bytes, header_bytes));
        assert_ne!(first, of(&bytes[..2_999_999], header_bytes));
        for place in [0, 3, 1_048_577, 1_499_999, 1_500_000, 2_999_999] {
            bytes[place] ^= 1;
            assert_ne!(first.digest(), of(&bytes, header_bytes).digest(), "byte {place}");
            bytes[place] ^= 1;
        }
        // A stretch of a sixteenth of the data is never missed.
        for sixteenth in 0..16 {
            let (start, length) = (1_500_000 + sixteenth * 93_750, 93_750);
            bytes[start..start + length].iter_mut().for_each(|byte| *byte ^= 1);
            assert_ne!(first, of(&bytes, header_bytes), "{start}");
            bytes[start..start + length].iter_mut().for_each(|byte| *byte ^= 1);
        }
        assert_eq!(first, of(&bytes, header_bytes));
    }

    #[test]
    fn small_files_have_one_too_and_errors_are_passed_on() {
        assert_ne!(of(b"", 0), of(b"a", 0));
        assert_ne!(of(b"ab", 2), of(b"ac", 2));
        assert_eq!(of(b"ab", 9), of(b"ab", 2), "a header ends where the file ends");
        let error = Content::sample(10, 4, |_, _| Err(io::ErrorKind::TimedOut.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
