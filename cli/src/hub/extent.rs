//! How long the header of a GGUF file is, told by its beginning: more of it is asked for until it is whole. Whether it
//! is right is for the library's own reader.

/// What the beginning of a file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The header ends before this byte.
    Whole(usize),
    /// It goes on.
    More,
}

/// Follows the header as far as it is there.
///
/// # Errors
/// A sentence when this is no GGUF file.
pub fn extent(bytes: &[u8]) -> Result<Extent, String> {
    let mut walk = Walk { bytes, at: 0 };
    match walk.header() {
        Ok(()) => Ok(Extent::Whole(walk.at)),
        Err(Stop::More) => Ok(Extent::More),
        Err(Stop::Wrong(problem)) => Err(problem),
    }
}

enum Stop {
    More,
    Wrong(String),
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn header(&mut self) -> Result<(), Stop> {
        if self.take(4)? != b"GGUF" {
            return Err(Stop::Wrong("it is no GGUF file".to_owned()));
        }
        self.u32()?;
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        for _ in 0..pairs {
            self.text()?;
            let kind = self.u32()?;
            self.value(kind)?;
        }
        for _ in 0..tensors {
            self.text()?;
            let dimensions = self.u32()?;
            // A length a dimension, then type and offset.
            self.skip(u64::from(dimensions) * 8 + 4 + 8)?;
        }
        Ok(())
    }

    fn value(&mut self, kind: u32) -> Result<(), Stop> {
        const TEXT: u32 = 8;
        const ARRAY: u32 = 9;
        match kind {
            TEXT => self.text(),
            ARRAY => {
                let (element, count) = (self.u32()?, self.u64()?);
                match fixed_bytes(element) {
                    Some(bytes) => self.skip(count.saturating_mul(bytes)),
                    None if element == TEXT => (0..count).try_for_each(|_| self.text()),
                    None => Err(Stop::Wrong(format!("an array has elements of the unknown type {element}"))),
                }
            }
            other => match fixed_bytes(other) {
                Some(bytes) => self.skip(bytes),
                None => Err(Stop::Wrong(format!("a value has the unknown type {other}"))),
            },
        }
    }

    fn text(&mut self) -> Result<(), Stop> {
        let length = self.u64()?;
        self.skip(length)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Stop> {
        self.take(usize::try_from(bytes).unwrap_or(usize::MAX)).map(|_| ())
    }

    fn take(&mut self, bytes: usize) -> Result<&[u8], Stop> {
        let end = self.at.checked_add(bytes).filter(|&end| end <= self.bytes.len()).ok_or(Stop::More)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
}

/// The size of a value of a type of GGUF; `None` for texts, arrays and what there is not.
fn fixed_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_gguf::TestModel;

    #[test]
    fn a_header_is_whole_exactly_at_its_end() {
        let model = TestModel::mixture();
        let file = std::fs::read(&model.path).unwrap();
        let Ok(Extent::Whole(end)) = extent(&file) else { panic!("the whole file holds the whole header") };
        assert!(end < file.len());
        for length in 0..end {
            assert_eq!(extent(&file[..length]), Ok(Extent::More), "{length}");
        }
        assert_eq!(extent(&file[..end]), Ok(Extent::Whole(end)));
        assert!(extent(b"not a model").is_err());
    }
}
