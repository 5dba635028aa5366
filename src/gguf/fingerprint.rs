//! Telling models apart by their content, for facts that are kept between runs.
//!
//! A model keeps its fingerprint when it is copied, renamed or touched. Two fine-tunes of a model may share every key and shape, so
//! samples of the weights count too. It guards against mistakes, not against malice: an equal fingerprint makes a run start with the
//! other model's habits, which costs time and never changes a result.

use crate::fnv::Fnv;

/// The hash of all files of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint(Fnv);

/// How many places of a file are sampled, and how many bytes at each.
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 1 << 10;

impl Fingerprint {
    /// Adds a file: its header, its size, and samples of what follows, evenly spread.
    pub(super) fn add_file(&mut self, bytes: &[u8], header_bytes: usize) {
        let (header, data) = bytes.split_at(header_bytes);
        self.0.add(header);
        self.0.add(&(bytes.len() as u64).to_le_bytes());
        for sample in 0..SAMPLES {
            let start = data.len().saturating_sub(SAMPLE_BYTES) / SAMPLES * sample;
            self.0.add(&data[start..data.len().min(start + SAMPLE_BYTES)]);
        }
    }

    /// Sixteen hexadecimal digits.
    pub(super) fn digits(self) -> String {
        format!("{:016x}", self.0.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8], header_bytes: usize) -> String {
        let mut fingerprint = Fingerprint::default();
        fingerprint.add_file(bytes, header_bytes);
        fingerprint.digits()
    }

    #[test]
    fn header_size_and_weights_count() {
        let mut bytes: Vec<u8> = (0..100_000_u32).map(|index| index as u8).collect();
        let first = of(&bytes, 10);
        assert_eq!(first, of(&bytes, 10));
        assert_eq!(first.len(), 16);
        assert_ne!(first, of(&bytes[..99_999], 10));
        bytes[3] ^= 1;
        assert_ne!(first, of(&bytes, 10), "a byte of the header");
        bytes[3] ^= 1;
        bytes[10] ^= 1;
        assert_ne!(first, of(&bytes, 10), "the first weight");
    }

    #[test]
    fn short_files_have_one_too() {
        assert_ne!(of(b"", 0), of(b"a", 0));
        assert_ne!(of(b"ab", 2), of(b"ac", 2));
    }
}
