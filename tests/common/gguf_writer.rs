//! Writes GGUF files for tests, the library's and the command's, well-formed unless told otherwise.

#![allow(dead_code)] // not every test needs everything

use std::path::Path;

use hypura::gguf::GgmlType;

/// Builds a GGUF; pairs and tensors come out in the order in which they were added.
pub struct GgufWriter {
    version: u32,
    alignment: u64,
    pair_count: u64,
    pairs: Vec<u8>,
    tensors: Vec<WriterTensor>,
    /// Whether the data is padded behind the last tensor, too.
    pads_end: bool,
}

struct WriterTensor {
    name: String,
    type_id: u32,
    shape: Vec<u64>,
    /// Written to the table in place of the right one.
    false_offset: Option<u64>,
    data: Vec<u8>,
}

impl GgufWriter {
    /// A version 3 file without pairs or tensors, aligned as by default.
    pub fn new() -> Self {
        Self { version: 3, alignment: 32, pair_count: 0, pairs: Vec::new(), tensors: Vec::new(), pads_end: true }
    }

    /// Sets the version of the format.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Aligns tensor data, and says so with a `general.alignment` pair.
    pub fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = u64::from(alignment);
        self.u32("general.alignment", alignment)
    }

    /// Adds a pair with the value in its encoded form.
    pub fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs.extend(encoded_string(key));
        self.pairs.extend(kind.to_le_bytes());
        self.pairs.extend(value);
        self.pair_count += 1;
        self
    }

    /// Adds a 32-bit unsigned pair.
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, &value.to_le_bytes())
    }

    /// Adds a text pair.
    pub fn text(self, key: &str, value: &str) -> Self {
        self.pair(key, 8, &encoded_string(value))
    }

    /// Adds an array pair, with its elements in their encoded form.
    pub fn array(self, key: &str, element_kind: u32, count: u64, elements: &[u8]) -> Self {
        let mut value = element_kind.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        value.extend(elements);
        self.pair(key, 9, &value)
    }

    /// Adds a tensor of a ggml type with the data given; see [`GgufWriter::zeros`] for data of the right size.
    pub fn tensor(mut self, name: &str, type_id: u32, shape: &[u64], data: Vec<u8>) -> Self {
        self.tensors.push(WriterTensor {
            name: name.to_owned(),
            type_id,
            shape: shape.to_vec(),
            false_offset: None,
            data,
        });
        self
    }

    /// Adds a tensor filled with zeros.
    pub fn zeros(self, name: &str, type_id: u32, shape: &[u64]) -> Self {
        let mut padded = [1; 4];
        padded[..shape.len()].copy_from_slice(shape);
        let ggml_type = GgmlType::from_id(type_id).expect("a known type");
        let size_bytes = ggml_type.tensor_bytes(padded).expect("a possible shape");
        self.tensor(name, type_id, shape, vec![0; size_bytes as usize])
    }

    /// Makes the table lie about where the last tensor is, relative to the data section.
    pub fn false_offset(mut self, offset: u64) -> Self {
        self.tensors.last_mut().expect("a tensor").false_offset = Some(offset);
        self
    }

    /// Ends where the last tensor ends, perhaps in the middle of a direct read's block.
    pub fn without_end_padding(mut self) -> Self {
        self.pads_end = false;
        self
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.pair_count.to_le_bytes());
        bytes.extend(&self.pairs);

        let mut data = Vec::new();
        for tensor in &self.tensors {
            self.pad(&mut data);
            bytes.extend(encoded_string(&tensor.name));
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            bytes.extend(tensor.shape.iter().flat_map(|length| length.to_le_bytes()));
            bytes.extend(tensor.type_id.to_le_bytes());
            bytes.extend(tensor.false_offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        if self.pads_end {
            self.pad(&mut data);
        }
        if !data.is_empty() {
            self.pad(&mut bytes);
        }
        bytes.extend(data);
        bytes
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).expect("a writable temporary directory");
    }

    fn pad(&self, bytes: &mut Vec<u8>) {
        // A file may be given a senseless alignment on purpose.
        let alignment = self.alignment.max(1) as usize;
        bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    }
}

/// A string as it is stored: its length and its bytes.
pub fn encoded_string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
