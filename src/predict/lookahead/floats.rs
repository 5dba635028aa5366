//! Tensors of the file as floats: norms as they are, a router's matrix in the type that the file has.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::gguf::{Gguf, TensorInfo};

/// A tensor of more bytes is no router.
const BYTES_MAX: u64 = 1 << 30;

/// The files of a model, to read small tensors from.
pub struct Source<'a> {
    gguf: &'a Gguf,
    files: Vec<Option<File>>,
}

/// Rows of floats, stored as the file has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    elements: Elements,
    width: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Elements {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl<'a> Source<'a> {
    /// Opens the files; what cannot be opened has no tensors.
    pub fn open(gguf: &'a Gguf) -> Self {
        Self { gguf, files: gguf.files().iter().map(|file| file.reopen().ok()).collect() }
    }

    /// All tensors of a layer.
    pub fn of_layer(&self, layer: u32) -> impl Iterator<Item = &'a TensorInfo> {
        let prefix = format!("blk.{layer}.");
        self.gguf.tensors().iter().filter(move |tensor| tensor.name.starts_with(&prefix))
    }

    /// A tensor by its name.
    pub fn find(&self, name: &str) -> Option<&'a TensorInfo> {
        self.gguf.find(name).map(|index| &self.gguf.tensors()[index])
    }

    /// A tensor's elements; `None` when they are no floats, or cannot be read.
    pub fn vector(&self, tensor: &TensorInfo) -> Option<Vec<f32>> {
        Some(match self.matrix(tensor)?.elements {
            Elements::F32(values) => values,
            Elements::F16(values) => values.into_iter().map(half_to_single).collect(),
            Elements::Bf16(values) => values.into_iter().map(brain_to_single).collect(),
        })
    }

    /// The same, in the type of the file.
    pub fn matrix(&self, tensor: &TensorInfo) -> Option<Matrix> {
        let two_bytes = |bytes: &[u8]| bytes.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
        let elements = match tensor.ggml_type.name() {
            "f32" => {
                let bytes = self.bytes(tensor)?;
                let four = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                Elements::F32(bytes.chunks_exact(4).map(four).collect())
            }
            "f16" => Elements::F16(two_bytes(&self.bytes(tensor)?)),
            "bf16" => Elements::Bf16(two_bytes(&self.bytes(tensor)?)),
            _ => return None,
        };
        let width = tensor.shape[0] as usize;
        (width > 0).then_some(Matrix { elements, width })
    }

    fn bytes(&self, tensor: &TensorInfo) -> Option<Vec<u8>> {
        if tensor.size_bytes > BYTES_MAX {
            return None;
        }
        let mut bytes = vec![0; tensor.size_bytes as usize];
        self.files.get(tensor.file)?.as_ref()?.read_exact_at(&mut bytes, tensor.offset).ok()?;
        Some(bytes)
    }
}

impl Matrix {
    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many rows there are.
    pub fn row_count(&self) -> usize {
        let elements = match &self.elements {
            Elements::F32(values) => values.len(),
            Elements::F16(values) | Elements::Bf16(values) => values.len(),
        };
        elements / self.width
    }

    /// The product of every row with an input of [`Self::width`] elements.
    pub fn multiply(&self, input: &[f32], products: &mut Vec<f32>) {
        products.clear();
        match &self.elements {
            Elements::F32(values) => {
                products.extend(values.chunks_exact(self.width).map(|row| dot(row, input, |value| value)));
            }
            Elements::F16(values) => {
                products.extend(values.chunks_exact(self.width).map(|row| dot(row, input, half_to_single)));
            }
            Elements::Bf16(values) => {
                products.extend(values.chunks_exact(self.width).map(|row| dot(row, input, brain_to_single)));
            }
        }
    }

    #[cfg(test)]
    pub fn of_rows(rows: &[Vec<f32>]) -> Self {
        Self { elements: Elements::F32(rows.concat()), width: rows[0].len() }
    }
}

/// Sums in lanes, which compilers turn into vector instructions.
fn dot<T: Copy>(row: &[T], input: &[f32], decode: impl Fn(T) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (row_chunks, input_chunks) = (row.chunks_exact(LANES), input.chunks_exact(LANES));
    let rest: f32 = row_chunks.remainder().iter().zip(input_chunks.remainder()).map(|(&a, b)| decode(a) * b).sum();
    for (a, b) in row_chunks.zip(input_chunks) {
        for lane in 0..LANES {
            sums[lane] += decode(a[lane]) * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The upper half of a binary32.
fn brain_to_single(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// IEEE 754 binary16 as binary32, exact.
fn half_to_single(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2_f32.powi(-24),
        0x1f if fraction == 0.0 => f32::INFINITY,
        0x1f => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::common::gguf_writer::GgufWriter;

    #[test]
    fn halves_are_exact() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2_f32.powi(-24)), (0x7bff, 65504.0), (0x0000, 0.0)]
        {
            assert_eq!(half_to_single(bits), value);
        }
        assert!(half_to_single(0x7c01).is_nan());
    }

    #[test]
    fn the_dot_product_counts_every_element() {
        for length in 0..40 {
            let ones = vec![1.0; length];
            assert_eq!(dot(&ones, &ones, |value| value), length as f32);
        }
    }

    #[test]
    fn a_matrix_multiplies_alike_in_every_type_that_is_understood() {
        let values = [1.0_f32, -2.0, 0.5, 4.0, 3.0, -1.5];
        let singles = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let brains = values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
        let halves = [0x3c00_u16, 0xc000, 0x3800, 0x4400, 0x4200, 0xbe00];
        let halves = halves.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        GgufWriter::new()
            .text("general.architecture", "moe")
            .tensor("blk.1.single", 0, &[3, 2], singles)
            .tensor("blk.1.half", 1, &[3, 2], halves)
            .tensor("blk.1.brain", 30, &[3, 2], brains)
            .tensor("blk.1.quantised", 8, &[32, 1], vec![0; 34])
            .tensor("blk.11.other", 0, &[1], vec![0; 4])
            .write(&path);
        let gguf = Gguf::open(&[path]).unwrap();
        let source = Source::open(&gguf);
        assert_eq!(source.of_layer(1).count(), 4);
        let mut products = Vec::new();
        for name in ["single", "half", "brain"] {
            let tensor = source.find(&format!("blk.1.{name}")).unwrap();
            let matrix = source.matrix(tensor).unwrap();
            assert_eq!((matrix.width(), matrix.row_count()), (3, 2));
            matrix.multiply(&[1.0, 2.0, 4.0], &mut products);
            assert_eq!(products, [-1.0, 4.0], "{name}");
            assert_eq!(source.vector(tensor).unwrap(), values);
        }
        assert_eq!(source.matrix(source.find("blk.1.quantised").unwrap()), None);
    }
}
