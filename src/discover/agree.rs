//! Makes sure that bytes in memory are those of a tensor in its file, and gives back the memory that the file's copy of
//! them takes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::mappings::{Place, place_of};
use super::uncertain;
use crate::error::{Error, ErrorCode, Result};
use crate::gguf::{GgufFile, TensorInfo};
use crate::hw::page_size;
use crate::io::drop_from_page_cache;

/// How much is compared at once.
const CHUNK_BYTES: usize = 1 << 20;

/// How the bytes came to be in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// They are a mapping of the file.
    Mapped,
    /// They are a copy.
    Copied,
}

/// Checks that `bytes` are those of `tensor`, which lies in `file`: by where they are mapped from, else by comparing
/// them. After that, neither the mapping nor the page cache holds more of them than the pages at the ends, which others
/// share.
///
/// # Errors
/// `Uncertain` when they differ; `Open`, `Io` and `Changed` when the file cannot be compared with.
pub fn agree(file: &GgufFile, tensor: &TensorInfo, bytes: &[u8]) -> Result<Source> {
    if bytes.len() as u64 != tensor.size_bytes {
        return Err(uncertain(format!("{} has {} bytes, but {} came", tensor.name, tensor.size_bytes, bytes.len())));
    }
    let opened = file.reopen()?;
    let start = bytes.as_ptr() as u64;
    let source = if place_of(start..start + bytes.len() as u64) == Some(place(file, tensor)) {
        drop_mapped_pages(bytes);
        Source::Mapped
    } else {
        compare(&opened, file, tensor, bytes)?;
        Source::Copied
    };
    drop_from_page_cache(&opened, tensor.offset, tensor.size_bytes);
    Ok(source)
}

fn place(file: &GgufFile, tensor: &TensorInfo) -> Place {
    Place { path: file.path.clone(), offset: tensor.offset }
}

fn compare(opened: &File, file: &GgufFile, tensor: &TensorInfo, bytes: &[u8]) -> Result<()> {
    let mut expected = vec![0; CHUNK_BYTES.min(bytes.len())];
    for (index, found) in bytes.chunks(CHUNK_BYTES).enumerate() {
        let offset = tensor.offset + (index * CHUNK_BYTES) as u64;
        let expected = &mut expected[..found.len()];
        opened.read_exact_at(expected, offset).map_err(|error| {
            Error::new(ErrorCode::Io, format!("cannot read {} at byte {offset}: {error}", file.path.display()))
        })?;
        if expected != found {
            return Err(uncertain(format!(
                "{} is not what is in {} at byte {offset}",
                tensor.name,
                file.path.display()
            )));
        }
    }
    Ok(())
}

/// Takes a file's pages out of a mapping of it that is shared and read-only, and keeps them out.
fn drop_mapped_pages(bytes: &[u8]) {
    let inside = whole_pages(bytes, page_size());
    let (address, length) = (inside.as_ptr().cast_mut().cast(), inside.len());
    // Where the page cache has pages of 2 MiB, a fault in a neighbour maps all of one. A range of another advice is a mapping of its own,
    // into which that does not reach. Where the system refuses, neighbours map more, and nothing else is different.
    // SAFETY: `inside` is mapped while `bytes` is borrowed; advice changes no bytes.
    unsafe { libc::madvise(address, length, libc::MADV_RANDOM) };
    // SAFETY: the range is inside `bytes`, which is mapped while it is borrowed. Its pages are the file's and cannot
    // have been written to through this mapping, so the next access finds the same bytes.
    let status = unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) };
    if status != 0 {
        // Locked pages stay. Unlocking a tensor that is streamed leaves its neighbours locked.
        // SAFETY: as above; unlocking changes no bytes.
        unsafe { libc::munlock(address, length) };
        // SAFETY: as above.
        unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) };
    }
}

/// The part of a range that is made of whole pages.
fn whole_pages(bytes: &[u8], page_bytes: usize) -> &[u8] {
    let address = bytes.as_ptr() as usize;
    let lead = address.next_multiple_of(page_bytes) - address;
    let end = (address + bytes.len()) / page_bytes * page_bytes;
    bytes.get(lead..end.saturating_sub(address)).unwrap_or_default()
}
