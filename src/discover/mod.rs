//! Finds out which model a host is loading, for hosts that do not tell: from the files that this process has open, and from
//! where the bytes lie that the host hands over.
//!
//! Nothing is guessed. A model counts as found when it is the only one among the open files that has the tensor which the
//! host is about to create; a tensor counts as the file's when the kernel says that its bytes are mapped from that place, or
//! when they have been compared. Anything else is an `Uncertain` error, and the host keeps the weights itself.

mod agree;
mod mappings;
mod open_files;

pub use agree::{Source, agree};
pub use open_files::OpenFile;

use std::path::PathBuf;

use crate::error::{Error, ErrorCode, Result};
use crate::gguf::Gguf;

/// A tensor as a loader describes it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// The number of its ggml type.
    pub ggml_type: u32,
    /// Its bytes.
    pub size_bytes: u64,
}

/// A model that is being loaded.
#[derive(Debug)]
pub struct Found {
    /// Its headers.
    pub gguf: Gguf,
    /// Its files as the loader has them open.
    pub files: Vec<OpenFile>,
}

/// The model that this process is loading, given a tensor of it. `None` when no GGUF is open, so that nothing is being loaded from
/// one.
///
/// # Errors
/// `Uncertain` when no open model has such a tensor, or more than one has.
pub fn find(wanted: Wanted<'_>) -> Result<Option<Found>> {
    find_among(&open_files::open_ggufs(), wanted)
}

fn find_among(open: &[OpenFile], wanted: Wanted<'_>) -> Result<Option<Found>> {
    if open.is_empty() {
        return Ok(None);
    }
    let mut found: Vec<Found> = Vec::new();
    let mut others = Vec::new();
    for file in open {
        let path = file.path.display();
        match candidate(file, open) {
            Ok(model) if holds(&model.gguf, wanted) => found.push(model),
            Ok(_) => others.push(format!("{path} has no such tensor")),
            Err(error) => others.push(error.to_string()),
        }
    }
    if found.len() < 2 {
        return match found.pop() {
            Some(model) => Ok(Some(model)),
            None => Err(uncertain(format!(
                "no file that is open holds {} as it is being loaded: {}",
                wanted.name,
                others.join("; ")
            ))),
        };
    }
    let paths: Vec<String> = found.iter().map(|model| model.gguf.files()[0].path.display().to_string()).collect();
    Err(uncertain(format!(
        "{} is in each of {}: which one is being loaded cannot be told",
        wanted.name,
        paths.join(", ")
    )))
}

/// The model that begins with this file, all of whose files are open.
fn candidate(first: &OpenFile, open: &[OpenFile]) -> Result<Found> {
    let gguf = Gguf::open(&[PathBuf::from(&first.path)])?;
    let files = gguf.files().iter().map(|file| {
        let is_it = |open: &&OpenFile| open.identity == file.identity;
        open.iter().find(is_it).cloned().ok_or_else(|| {
            uncertain(format!("{} was replaced, or is not open although its first part is", file.path.display()))
        })
    });
    Ok(Found { files: files.collect::<Result<_>>()?, gguf })
}

fn holds(gguf: &Gguf, wanted: Wanted<'_>) -> bool {
    gguf.find(wanted.name).map(|tensor| &gguf.tensors()[tensor]).is_some_and(|tensor| {
        let has_the_size = tensor.size_bytes == wanted.size_bytes || !tensor.ggml_type.is_known();
        tensor.ggml_type.id() == wanted.ggml_type && has_the_size
    })
}

fn uncertain(message: String) -> Error {
    Error::new(ErrorCode::Uncertain, message)
}

#[cfg(test)]
mod tests;
