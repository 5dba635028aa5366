//! Reads the headers of GGUF files: which tensors a model has and which bytes of which file hold them.
//!
//! Only headers are read, never tensor data. A file is untrusted: every count, length, offset and alignment is
//! compared with the file before it is used, nothing is allocated in proportion to an unchecked number, and what
//! [`Gguf`] hands out holds for the files as they were when opened: extents lie within their file and do not overlap.
//! Versions 2 and 3 of the format are read, little-endian only.
//!
//! The way through: `reader` bounds every access, `metadata` walks the key-value pairs, `hyper` and `split` pick their
//! keys from them, `tensors` reads and checks the table with the sizes in `types`.

mod hyper;
mod metadata;
mod reader;
mod role;
mod split;
mod tensors;
mod types;
mod values;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use hyper::HyperParameters;
pub use role::{Role, label_of, layer_of, rank_in_layer, role_of};
pub use tensors::TensorInfo;
pub use types::GgmlType;

use crate::error::{Error, ErrorCode, Result};
use crate::fnv::Fnv;
use crate::io::{Content, FileIdentity};
use metadata::Metadata;
use reader::{Reader, malformed, quoted, truncated};
use split::Part;

/// Where tensor data is aligned when the file does not say.
const ALIGNMENT_DEFAULT: u64 = 32;

/// Largest alignment that is believed, in bytes: beyond a huge page there is no use for one.
const ALIGNMENT_MAX: u64 = 16 << 20;

/// The headers of a model, which may be split over several files.
#[derive(Clone, Debug)]
pub struct Gguf {
    files: Vec<GgufFile>,
    tensors: Vec<TensorInfo>,
    tensor_by_name: HashMap<String, usize>,
    hyper_parameters: HyperParameters,
    model_bytes: u64,
    fingerprint: String,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufFile {
    /// As given, or derived from the first part's path.
    pub path: PathBuf,
    /// The size in bytes when it was opened.
    pub size_bytes: u64,
    /// What was opened: the header is that file's and no other's.
    pub identity: FileIdentity,
    /// What it holds.
    pub content: Content,
}

impl GgufFile {
    /// Opens the file once more, through the page cache.
    ///
    /// # Errors
    /// `Open` when that is not possible, `Changed` when it does not hold any more what the file held that was opened first.
    pub fn reopen(&self) -> Result<File> {
        let path = self.path.display();
        let failed = |error| Error::new(ErrorCode::Open, format!("cannot open {path}: {error}"));
        let file = File::open(&self.path).map_err(failed)?;
        let identity = FileIdentity::of(&file).map_err(failed)?;
        let holds = || self.content.is_still(|offset, buffer| file.read_exact_at(buffer, offset)).unwrap_or(false);
        if identity != self.identity && !(identity.size_bytes() == self.size_bytes && holds()) {
            return Err(Error::new(ErrorCode::Changed, format!("{path} was written to while it was in use")));
        }
        Ok(file)
    }
}

impl Gguf {
    /// Reads the headers of a model.
    ///
    /// One path: that file, and when it is the first of a split its siblings, found by name
    /// (`PREFIX-00001-of-00003.gguf`). Several paths: exactly these, which must be all parts in order.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` when `paths` is empty, `Open` for a file that is missing or unreadable, `Truncated` for a file
    /// that ends before the bytes that its header promises, `Format` for one that contradicts the format or itself.
    pub fn open(paths: &[PathBuf]) -> Result<Gguf> {
        let Some(first) = paths.first() else {
            return Err(Error::new(ErrorCode::InvalidArgument, "no model file was named"));
        };
        let mut fingerprint = Fnv::default();
        let (file, header) = read_header(first, 0, &mut fingerprint)?;
        let count = if paths.len() == 1 { header.part.count } else { paths.len() as u64 };
        header.part.expect(first, 0, count)?;

        let expected_tensor_count = header.part.tensor_count;
        let hyper_parameters = header.hyper_parameters;
        let mut files = vec![file];
        let mut tensors = header.tensors;
        for number in 1..count {
            let path = match paths.get(number as usize) {
                Some(path) => path.clone(),
                None => split::sibling(first, number, count)?,
            };
            let (file, header) = read_header(&path, files.len(), &mut fingerprint)?;
            header.part.expect(&path, number, count)?;
            files.push(file);
            tensors.extend(header.tensors);
        }

        if let Some(expected) = expected_tensor_count.filter(|expected| *expected != tensors.len() as u64) {
            return Err(malformed(
                first,
                format_args!("it promises {expected} tensors, but its parts hold {}", tensors.len()),
            ));
        }
        let tensor_by_name = index_by_name(&files, &tensors)?;
        // Extents are apart and within their files, so the sum is at most the sum of the sizes of the files.
        let model_bytes = tensors.iter().map(|tensor| tensor.size_bytes).fold(0, u64::saturating_add);
        let fingerprint = format!("{:016x}", fingerprint.value());
        warn_of_unknown_types(first, &tensors);
        Ok(Gguf { files, tensors, tensor_by_name, hyper_parameters, model_bytes, fingerprint })
    }

    /// The files, first part first.
    pub fn files(&self) -> &[GgufFile] {
        &self.files
    }

    /// The tensors of all files, in the order of the files and of their tables.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of a name, as an index into [`Gguf::tensors`].
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensor_by_name.get(name).copied()
    }

    /// What the first file says about the architecture.
    pub fn hyper_parameters(&self) -> &HyperParameters {
        &self.hyper_parameters
    }

    /// Goes by another number than the file has under a key, because whoever computes does.
    pub fn override_key(&mut self, key: &str, value: u64) {
        self.hyper_parameters.set(key, value);
    }

    /// Sixteen hexadecimal digits that tell this model from others by its content, wherever its files lie and whenever they were
    /// touched. Two fine-tunes of a model may share every key and shape, so samples of the weights count too. An equal
    /// fingerprint of another model makes a run start with that one's usage profile, which costs time and never changes a result.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Bytes of all tensors together, without headers and padding.
    pub fn model_bytes(&self) -> u64 {
        self.model_bytes
    }
}

/// All key-value pairs of one file, as JSON; see [`Gguf::open`] for what is wrong with a file. Arrays of more than
/// `array_elements_max` elements and numbers that JSON cannot express are `null`.
///
/// # Errors
///
/// As [`Gguf::open`].
pub fn key_values(path: &Path, array_elements_max: u64) -> Result<serde_json::Map<String, serde_json::Value>> {
    let opened = Opened::open(path)?;
    opened.with_bytes(path, Access::ALL, |bytes| values::read(path, bytes, opened.size_bytes(), array_elements_max))
}

/// What one file's header says.
struct Header {
    part: Part,
    hyper_parameters: HyperParameters,
    tensors: Vec<TensorInfo>,
    /// Up to the end of the table of tensors.
    size_bytes: usize,
}

fn read_header(path: &Path, file_index: usize, fingerprint: &mut Fnv) -> Result<(GgufFile, Header)> {
    let opened = Opened::open(path)?;
    let size_bytes = opened.size_bytes();
    let header = opened.with_bytes(path, Access::ALL, |bytes| parse(path, bytes, size_bytes, file_index))?;
    let read = |offset: u64, buffer: &mut [u8]| opened.file.read_exact_at(buffer, offset);
    let content = Content::sample(size_bytes, header.size_bytes as u64, read)
        .map_err(|error| Error::new(ErrorCode::Open, format!("cannot read {}: {error}", path.display())))?;
    fingerprint.add(&content.digest().to_le_bytes());
    Ok((GgufFile { path: path.to_owned(), size_bytes, identity: opened.identity, content }, header))
}

/// A file that has any bytes, open to be read by this module.
struct Opened {
    file: File,
    identity: FileIdentity,
}

/// How a header may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// A shared mapping, as llama.cpp's own. File systems of the network and in user space may refuse it.
    Shared,
    /// A private mapping, which some of those allow.
    Private,
    /// Plain reads, from the start on until the header ends.
    Reads,
}

impl Access {
    /// The cheapest first; reads always work.
    const ALL: [Self; 3] = [Self::Shared, Self::Private, Self::Reads];
}

/// As much is read at first where files cannot be mapped; a header with a vocabulary has some MiB.
const FIRST_READ_BYTES: u64 = 4 << 20;

impl Opened {
    fn open(path: &Path) -> Result<Self> {
        let cannot_open = |reason: &dyn std::fmt::Display| cannot_open(path, reason);
        // Asked before opening, because opening a named pipe would wait for a writer.
        let status = std::fs::metadata(path).map_err(|error| cannot_open(&error))?;
        if !status.is_file() {
            return Err(cannot_open(&"it is not a regular file"));
        }
        let file = File::open(path).map_err(|error| cannot_open(&error))?;
        let identity = FileIdentity::of(&file).map_err(|error| cannot_open(&error))?;
        if identity.size_bytes() == 0 {
            // Nothing can be mapped.
            return Err(truncated(path, 0, "the magic", 0, 4));
        }
        Ok(Self { file, identity })
    }

    fn size_bytes(&self) -> u64 {
        self.identity.size_bytes()
    }

    /// Calls `parse` with the file's bytes, or, where they cannot be mapped, with as many from the start on as it takes.
    fn with_bytes<T>(
        &self,
        path: &Path,
        ways: impl IntoIterator<Item = Access>,
        mut parse: impl FnMut(&[u8]) -> Result<T>,
    ) -> Result<T> {
        let mut refused = None;
        for way in ways {
            if way == Access::Reads {
                return self.with_reads(path, parse);
            }
            // Nobody but another process could write to the file meanwhile. Numbers and names are copied before they are checked, so
            // what was checked is what is used even then; only cutting the file short in this moment would raise SIGBUS, as it
            // would under llama.cpp's own mapping of the same file.
            let options = memmap2::MmapOptions::new();
            let mapping = match way {
                // SAFETY: `file` is open for reading. Its bytes are borrowed only within `parse`, which returns copies, and nothing
                // in this process writes to a model's file.
                Access::Shared => unsafe { options.map(&self.file) },
                // SAFETY: as above.
                _ => unsafe { options.map_copy_read_only(&self.file) },
            };
            match mapping {
                Ok(mapping) => return parse(&mapping),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.map_or_else(|| cannot_open(path, &"there is no way to read it"), |error| cannot_open(path, &error)))
    }

    fn with_reads<T>(&self, path: &Path, mut parse: impl FnMut(&[u8]) -> Result<T>) -> Result<T> {
        let size_bytes = self.size_bytes();
        let mut length = FIRST_READ_BYTES.min(size_bytes);
        loop {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(length as usize).map_err(|_| {
                Error::new(ErrorCode::Resource, format!("no {length} bytes to read {}", path.display()))
            })?;
            bytes.resize(length as usize, 0);
            self.file.read_exact_at(&mut bytes, 0).map_err(|error| cannot_open(path, &error))?;
            match parse(&bytes) {
                Err(error) if error.code() == ErrorCode::Truncated && length < size_bytes => {
                    length = length.saturating_mul(4).min(size_bytes);
                }
                outcome => return outcome,
            }
        }
    }
}

fn cannot_open(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::Open, format!("cannot open {}: {reason}", path.display()))
}

/// Parses the header at the start of a file of `size_bytes`, of which `bytes` are the first. `Truncated` when they are too few.
fn parse(path: &Path, bytes: &[u8], size_bytes: u64, file_index: usize) -> Result<Header> {
    let mut reader = Reader::new(path, bytes, size_bytes);
    check_magic_and_version(&mut reader)?;
    let tensor_count = reader.take_u64("the number of tensors")?;
    let pair_count = reader.take_u64("the number of key-value pairs")?;
    let metadata = Metadata::read(&mut reader, pair_count)?;
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        return Err(reader
            .malformed(format_args!("general.alignment is {alignment}, not a power of two up to {ALIGNMENT_MAX}")));
    }
    let mut tensors = tensors::read(&mut reader, tensor_count, file_index)?;
    let size_bytes = reader.position() as usize;
    tensors::place(&reader, &mut tensors, alignment)?;
    let hyper_parameters = HyperParameters::read(&metadata)?;
    Ok(Header { part: Part::read(&metadata, path)?, hyper_parameters, tensors, size_bytes })
}

fn check_magic_and_version(reader: &mut Reader<'_>) -> Result<()> {
    let magic = reader.take(4, "the magic")?;
    if magic != b"GGUF" {
        return Err(reader.malformed(format_args!("it starts with {} instead of 'GGUF'", quoted(magic))));
    }
    match reader.take_u32("the version")? {
        2 | 3 => Ok(()),
        1 => Err(reader.malformed("it has version 1 of the format, which is obsolete; convert the model again")),
        // The version is a small number, so it fits the low half only when read in the file's own byte order.
        version if version & 0xffff == 0 && version != 0 => {
            Err(reader.malformed("it is big-endian; only little-endian files can be read"))
        }
        version => Err(reader.malformed(format_args!("it has version {version} of the format; 2 and 3 can be read"))),
    }
}

/// Says which tensors only the host can make sense of.
fn warn_of_unknown_types(path: &Path, tensors: &[TensorInfo]) {
    let unknown = || tensors.iter().filter(|tensor| !tensor.ggml_type.is_known());
    if let Some(example) = unknown().next() {
        tracing::warn!(
            "{}: {} tensors, {} among them, are of a type (number {}) that this version of libhypura does not know; \
             they are not streamed, but left to the host",
            path.display(),
            unknown().count(),
            example.name,
            example.ggml_type.id()
        );
    }
}

fn index_by_name(files: &[GgufFile], tensors: &[TensorInfo]) -> Result<HashMap<String, usize>> {
    let mut tensor_by_name = HashMap::with_capacity(tensors.len());
    for (index, tensor) in tensors.iter().enumerate() {
        if let Some(earlier) = tensor_by_name.insert(tensor.name.clone(), index) {
            return Err(malformed(
                &files[tensor.file].path,
                format_args!(
                    "tensor {} is also in {}",
                    quoted(tensor.name.as_bytes()),
                    files[tensors[earlier].file].path.display()
                ),
            ));
        }
    }
    Ok(tensor_by_name)
}
