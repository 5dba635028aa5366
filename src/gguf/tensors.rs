//! The tensor table of a header, checked against itself and against the file.

use std::collections::HashSet;

use super::reader::{Reader, STRING_BYTES_MIN, quoted, truncated};
use super::types::{GgmlType, removed_name};
use crate::error::Result;

/// Most dimensions that a ggml tensor has.
const DIMENSIONS_MAX: u32 = 4;

/// Bytes that a row of the table takes at least: an empty name, the number of dimensions, a type and an offset.
const ROW_BYTES_MIN: u64 = STRING_BYTES_MIN + 4 + 4 + 8;

/// One tensor: what it is and which bytes of which file hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique within the model; UTF-8 without NUL.
    pub name: String,
    /// How the elements are stored.
    pub ggml_type: GgmlType,
    /// Elements along each dimension, the row first; 1 for dimensions that the tensor does not have, never 0.
    pub shape: [u64; 4],
    /// Which of the model's files, as an index into `Gguf::files`.
    pub file: usize,
    /// Where the first byte is, counted from the start of the file.
    pub offset: u64,
    /// Bytes in the file; `offset + size_bytes` is within it. Of a type that is not known, those up to the next tensor.
    pub size_bytes: u64,
}

/// Reads the rows of a table. Their offsets are still relative to the data section, whose start only becomes known
/// at the end of the table: see [`place`].
pub(super) fn read(reader: &mut Reader<'_>, tensor_count: u64, file: usize) -> Result<Vec<TensorInfo>> {
    reader.expect_room(tensor_count, ROW_BYTES_MIN, "the tensor table")?;
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensor_count {
        let name = reader.take_string("the name of a tensor")?;
        if !names.insert(name) {
            return Err(reader.malformed(format_args!("tensor {} occurs twice", quoted(name))));
        }
        tensors.push(read_row(reader, name, file)?);
    }
    Ok(tensors)
}

/// Turns relative offsets into absolute ones and checks that tensors are aligned, apart and within the file.
pub(super) fn place(reader: &Reader<'_>, tensors: &mut [TensorInfo], alignment: u64) -> Result<()> {
    let data_start = reader.position().next_multiple_of(alignment);
    for tensor in tensors.iter_mut() {
        let name = quoted(tensor.name.as_bytes());
        if tensor.offset % alignment != 0 {
            return Err(reader.malformed(format_args!(
                "tensor {name} has the offset {}, which is not a multiple of the alignment {alignment}",
                tensor.offset
            )));
        }
        let start = data_start.checked_add(tensor.offset);
        let Some(start) = start.filter(|start| start.checked_add(tensor.size_bytes).is_some()) else {
            return Err(reader.malformed(format_args!("tensor {name} has the impossible offset {}", tensor.offset)));
        };
        tensor.offset = start;
    }
    measure_unknown(reader, tensors)?;
    check_apart(reader, tensors)?;
    check_within(reader, tensors)
}

fn read_row(reader: &mut Reader<'_>, name: &[u8], file: usize) -> Result<TensorInfo> {
    let shown = quoted(name);
    // NUL would cut the name short where it crosses the C ABI, and two tensors could become one.
    let text = String::from_utf8(name.to_vec()).ok().filter(|text| !text.is_empty() && !text.contains('\0'));
    let Some(text) = text else {
        return Err(reader.malformed(format_args!("tensor name {shown} is empty, not UTF-8 or contains NUL")));
    };

    let dimension_count = reader.take_u32("the dimensions of a tensor")?;
    if dimension_count > DIMENSIONS_MAX {
        return Err(reader
            .malformed(format_args!("tensor {shown} has {dimension_count} dimensions, more than {DIMENSIONS_MAX}")));
    }
    let mut shape = [1; DIMENSIONS_MAX as usize];
    for length in &mut shape[..dimension_count as usize] {
        *length = reader.take_u64("the dimensions of a tensor")?;
        if *length == 0 {
            return Err(reader.malformed(format_args!("tensor {shown} has a dimension of 0 elements")));
        }
    }

    let id = reader.take_u32("the type of a tensor")?;
    let ggml_type = match (GgmlType::from_id(id), removed_name(id)) {
        (Some(known), _) => known,
        (None, Some(removed)) => {
            return Err(reader.malformed(format_args!(
                "tensor {shown} has the type {id} ({removed}), which ggml no longer supports; convert the model again"
            )));
        }
        // The file may be newer than this library: whoever computes may know the type.
        (None, None) => GgmlType::unknown(id),
    };
    if shape[0] % ggml_type.block_elements() != 0 {
        return Err(reader.malformed(format_args!(
            "tensor {shown} has rows of {} elements, not a multiple of the {} in a block of {}",
            shape[0],
            ggml_type.block_elements(),
            ggml_type.name()
        )));
    }
    let Some(size_bytes) = ggml_type.tensor_bytes(shape) else {
        return Err(reader.malformed(format_args!("tensor {shown} has the impossible shape {shape:?}")));
    };

    let offset = reader.take_u64("the offset of a tensor")?;
    Ok(TensorInfo { name: text, ggml_type, shape, file, offset, size_bytes })
}

/// Gives tensors of unknown types the bytes up to the next tensor, or to the end of the file: no fewer than they have.
fn measure_unknown(reader: &Reader<'_>, tensors: &mut [TensorInfo]) -> Result<()> {
    if tensors.iter().all(|tensor| tensor.ggml_type.is_known()) {
        return Ok(());
    }
    let mut starts: Vec<u64> = tensors.iter().map(|tensor| tensor.offset).collect();
    starts.sort_unstable();
    for tensor in tensors.iter_mut().filter(|tensor| !tensor.ggml_type.is_known()) {
        let next = starts.partition_point(|&start| start <= tensor.offset);
        let end = starts.get(next).copied().unwrap_or(reader.size_bytes());
        if end <= tensor.offset {
            let what = format!("tensor {}", quoted(tensor.name.as_bytes()));
            return Err(truncated(reader.path(), reader.size_bytes(), &what, tensor.offset, tensor.offset + 1));
        }
        tensor.size_bytes = end - tensor.offset;
    }
    Ok(())
}

fn check_apart(reader: &Reader<'_>, tensors: &[TensorInfo]) -> Result<()> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].size_bytes > pair[1].offset {
            return Err(reader.malformed(format_args!(
                "tensors {} and {} overlap",
                quoted(pair[0].name.as_bytes()),
                quoted(pair[1].name.as_bytes())
            )));
        }
    }
    Ok(())
}

fn check_within(reader: &Reader<'_>, tensors: &[TensorInfo]) -> Result<()> {
    for tensor in tensors {
        let end = tensor.offset + tensor.size_bytes;
        if end > reader.size_bytes() {
            let what = format!("tensor {}", quoted(tensor.name.as_bytes()));
            return Err(truncated(reader.path(), reader.size_bytes(), &what, tensor.offset, end));
        }
    }
    Ok(())
}
