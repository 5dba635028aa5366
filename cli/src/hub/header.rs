//! A model's header, read by range requests into files that have the model's sizes and nothing else: the library's
//! reader takes them for the model.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use super::client::Client;
use super::extent::{Extent, extent};
use super::listing::{self, RemoteFile};
use crate::model_file::ModelFile;
use crate::model_paths::{first_part, split_part};
use crate::scratch::Scratch;

/// What is read first: most headers of later parts are shorter, a vocabulary is longer.
const FIRST_BYTES: u64 = 256 << 10;

/// A header beyond this is damaged.
const HEADER_BYTES_MAX: u64 = 256 << 20;

/// A model of which only the header is here.
pub struct RemoteModel {
    /// The header.
    pub file: ModelFile,
    _directory: Scratch,
}

/// A file to read the header of: its name, its address, its size where that is known.
struct Part {
    name: String,
    url: String,
}

impl RemoteModel {
    /// Reads the header of a model of a repository.
    ///
    /// # Errors
    /// A sentence that says what the server answered, or why it is no model.
    pub fn in_repository(client: &Client, repository: &str, files: &[RemoteFile]) -> Result<Self, String> {
        let parts = files.iter().map(|file| Part {
            name: file.path.rsplit('/').next().unwrap_or(&file.path).to_owned(),
            url: listing::address(client, repository, "main", &file.path),
        });
        Self::read(client, parts.collect())
    }

    /// Reads the header of a model behind an address; of a split model, of all parts.
    ///
    /// # Errors
    /// As [`RemoteModel::in_repository`].
    pub fn at(client: &Client, url: &str) -> Result<Self, String> {
        let (path, query) =
            url.split_once('?').map_or((url, String::new()), |(path, query)| (path, format!("?{query}")));
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if first_part(std::path::Path::new(name)).is_some() {
            return Err(format!("{url} is a later part of a split model; name its first"));
        }
        let names = match split_part(name.strip_suffix(".gguf").unwrap_or(name)) {
            Some((stem, 1, count)) => {
                let parts = count.parse::<u32>().unwrap_or(1);
                (1..=parts).map(|part| format!("{stem}-{part:05}-of-{count}.gguf")).collect()
            }
            _ => vec![name.to_owned()],
        };
        let parts = names.into_iter().map(|name| Part { url: format!("{folder}/{name}{query}"), name });
        Self::read(client, parts.collect())
    }

    fn read(client: &Client, parts: Vec<Part>) -> Result<Self, String> {
        let directory = Scratch::make("header")?;
        let paths = parts.iter().map(|part| directory.path().join(&part.name));
        let paths: Vec<PathBuf> = paths.collect();
        for (part, path) in parts.iter().zip(&paths) {
            let (header, size_bytes) = header_of(client, &part.url)?;
            let failed =
                |error: std::io::Error| format!("cannot write {}: {error}; TMPDIR names another place", path.display());
            let mut file = File::create(path).map_err(failed)?;
            file.write_all(&header).map_err(failed)?;
            // A hole: it takes no room.
            file.set_len(size_bytes).map_err(failed)?;
        }
        let first = paths.first().ok_or("a model without files")?;
        let file = ModelFile::open_model(first).map_err(|problem| {
            problem.replace(&first.display().to_string(), parts.first().map_or("", |part| part.url.as_str()))
        })?;
        Ok(Self { file, _directory: directory })
    }
}

/// The header of a file, and the file's size.
fn header_of(client: &Client, url: &str) -> Result<(Vec<u8>, u64), String> {
    let mut bytes = Vec::new();
    let mut wanted = FIRST_BYTES;
    loop {
        let (more, size_bytes) = client.range(url, bytes.len() as u64, wanted)?;
        let received = more.len();
        bytes.extend(more);
        match extent(&bytes).map_err(|problem| format!("{url}: {problem}"))? {
            Extent::Whole(end) => {
                bytes.truncate(end);
                return Ok((bytes, size_bytes));
            }
            Extent::More if received == 0 || bytes.len() as u64 >= size_bytes => {
                return Err(format!("{url} ends within its header: was it uploaded completely?"));
            }
            Extent::More if wanted >= HEADER_BYTES_MAX => return Err(format!("{url}: its header has no end")),
            // Vocabularies are megabytes: few requests, and little that is not needed.
            Extent::More => wanted = (wanted + (2 << 20)).min(size_bytes),
        }
    }
}
