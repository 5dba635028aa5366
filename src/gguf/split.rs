//! Models that are split over several files: their place in the split and the names of their siblings.
//!
//! A *part* is one file of a split. Parts are counted from 0 in the header (`split.no`) and from 1 in file names
//! (`PREFIX-00001-of-00003.gguf`) and in messages.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::reader::malformed;
use crate::error::Result;

/// Most parts that a split has; llama.cpp stores the count in 16 bits.
const PARTS_MAX: u64 = u16::MAX as u64;

/// Where a file says that it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which part, from 0.
    pub(super) number: u64,
    /// Parts of the whole model; 1 when it is not split.
    pub(super) count: u64,
    /// Tensors of the whole model, where the file tells.
    pub(super) tensor_count: Option<u64>,
}

impl Part {
    /// Reads `split.no`, `split.count` and `split.tensors.count`; a file without them is the only part.
    pub(super) fn read(metadata: &Metadata<'_>, path: &Path) -> Result<Self> {
        // Some tools write 0 for a model that is not split.
        let count = metadata.unsigned("split.count")?.unwrap_or(1).max(1);
        let number = metadata.unsigned("split.no")?;
        if count > PARTS_MAX {
            return Err(malformed(path, format_args!("split.count is {count}, more than {PARTS_MAX}")));
        }
        let number = match number {
            None if count > 1 => {
                return Err(malformed(path, format_args!("split.count is {count}, but split.no is missing")));
            }
            number => number.unwrap_or(0),
        };
        if number >= count {
            return Err(malformed(path, format_args!("split.no is {number}, but split.count is {count}")));
        }
        Ok(Self { number, count, tensor_count: metadata.unsigned("split.tensors.count")? })
    }

    /// Fails unless this is the part expected at a position of the list of files.
    pub(super) fn expect(self, path: &Path, number: u64, count: u64) -> Result<()> {
        if self.count != count {
            let problem = if self.count == 1 {
                format!("it is a whole model, but is listed as part {} of {count}", number + 1)
            } else {
                format!("it is one of {} parts, but {count} are expected", self.count)
            };
            return Err(malformed(path, problem));
        }
        if self.number != number {
            return Err(malformed(
                path,
                format_args!(
                    "it is part {} of {count} where part {} is expected; name the first part, or all parts in order",
                    self.number + 1,
                    number + 1
                ),
            ));
        }
        Ok(())
    }
}

/// The name of another part, from the path of the first one.
pub(super) fn sibling(first: &Path, number: u64, count: u64) -> Result<PathBuf> {
    let suffix = part_suffix(0, count);
    let file_name = first.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    // Only the suffix has to be text: the prefix may be any name that the file system allows.
    let prefix = file_name.strip_suffix(suffix.as_bytes()).filter(|prefix| !prefix.is_empty());
    let Some(prefix) = prefix.and_then(|prefix| prefix_of(first, prefix.len())) else {
        return Err(malformed(
            first,
            format_args!(
                "it is part 1 of {count}, but is not named PREFIX{suffix}, so the other parts cannot be found; \
                 restore its name or list every part"
            ),
        ));
    };
    let mut name = prefix;
    name.push(part_suffix(number, count));
    Ok(first.with_file_name(name))
}

fn part_suffix(number: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

#[cfg(unix)]
fn prefix_of(path: &Path, length: usize) -> Option<std::ffi::OsString> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let prefix = path.file_name()?.as_bytes().get(..length)?;
    Some(std::ffi::OsString::from_vec(prefix.to_vec()))
}

#[cfg(not(unix))]
fn prefix_of(path: &Path, length: usize) -> Option<std::ffi::OsString> {
    Some(path.file_name()?.to_str()?.get(..length)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn siblings_keep_directory_and_prefix() {
        let path = sibling(Path::new("/models/a-b-00001-of-00012.gguf"), 11, 12).unwrap();
        assert_eq!(path, Path::new("/models/a-b-00012-of-00012.gguf"));
    }

    #[test]
    fn a_renamed_first_part_is_refused_with_advice() {
        for name in ["model.gguf", "-00001-of-00003.gguf", "a-00001-of-00004.gguf", "a-00002-of-00003.gguf"] {
            let error = sibling(Path::new(name), 1, 3).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Format, "{name}");
            assert!(error.message().contains("PREFIX-00001-of-00003.gguf"), "{}", error.message());
        }
    }
}
