//! Where a table's rows are in its file.

use crate::error::{Error, ErrorCode, Result};
use crate::gguf::Gguf;

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::stream) struct Table {
    /// Its index in [`Gguf::tensors`].
    pub(in crate::stream) tensor: usize,
    pub(super) file: usize,
    offset: u64,
    pub(super) row_bytes: usize,
    row_count: u64,
}

impl Table {
    pub(in crate::stream) fn of(gguf: &Gguf, tensor: usize) -> Self {
        let info = &gguf.tensors()[tensor];
        let row_count = info.shape[1..].iter().product::<u64>().max(1);
        Self {
            tensor,
            file: info.file,
            offset: info.offset,
            row_bytes: (info.size_bytes / row_count) as usize,
            row_count,
        }
    }

    pub(in crate::stream) fn bytes(&self) -> u64 {
        self.row_bytes as u64 * self.row_count
    }

    /// Where a row begins in the file, if there is such a row.
    pub(super) fn find_row(&self, id: i32) -> Option<u64> {
        let id = u64::try_from(id).ok().filter(|&id| id < self.row_count)?;
        Some(self.offset + id * self.row_bytes as u64)
    }

    /// The same, for a row that is demanded.
    pub(super) fn row(&self, id: i32) -> Result<u64> {
        let outside = || {
            Error::new(ErrorCode::InvalidArgument, format!("there is no row {id}: the table has {}", self.row_count))
        };
        self.find_row(id).ok_or_else(outside)
    }
}
