//! `HYPURA_VERIFY=1`: compares what is about to be computed on with the file, read another way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::{Error, ErrorCode, Result};

use super::tensors::BlockExtent;

/// Reads the files anew, through descriptors and a path of its own: buffered, unwidened.
pub(super) struct Verifier {
    files: Vec<(PathBuf, File)>,
}

impl Verifier {
    pub(super) fn open<'a>(paths: impl Iterator<Item = &'a std::path::Path>) -> Result<Self> {
        let files = paths
            .map(|path| {
                File::open(path).map(|file| (path.to_owned(), file)).map_err(|error| {
                    Error::new(ErrorCode::Open, format!("cannot open {} to verify it: {error}", path.display()))
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { files })
    }

    /// Compares a block in memory with the file.
    pub(super) fn check(&self, extent: BlockExtent, memory: &[u8]) -> Result<()> {
        let (path, file) = &self.files[extent.file];
        let mut expected = vec![0; extent.size_bytes];
        file.read_exact_at(&mut expected, extent.offset).map_err(|error| {
            let place = format!("{} at byte {}", path.display(), extent.offset);
            Error::new(ErrorCode::Io, format!("cannot read {place} to verify it: {error}"))
        })?;
        if expected == memory {
            return Ok(());
        }
        let position = expected.iter().zip(memory).position(|(expected, found)| expected != found).unwrap_or(0);
        Err(Error::new(
            ErrorCode::Verify,
            format!(
                "byte {} of {} is not what is in memory: the file was written to, or this is a bug of libhypura",
                extent.offset + position as u64,
                path.display()
            ),
        ))
    }
}
