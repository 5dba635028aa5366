//! The models that can be asked for: one file, or those in a directory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use super::errors::{ApiError, ApiResult};
use crate::model_file::{ModelFile, explained, name_of, parameter_size};

/// A model that can be loaded.
pub struct Model {
    /// Ollama's form of a name: `NAME:latest`.
    pub name: String,
    /// The first file.
    pub path: PathBuf,
    /// When the file was last changed.
    pub modified: SystemTime,
    /// The first file's size; with `modified` it tells whether a file is still the one that was read.
    first_file_bytes: u64,
    /// Tells it from other models.
    pub digest: String,
    /// Its header.
    pub file: ModelFile,
}

/// What Ollama tells of a model wherever it names one.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    parent_model: String,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: String,
}

impl Model {
    fn read(path: &Path, name: &str) -> Result<Self, String> {
        let file = ModelFile::open(path).map_err(|error| explained(path, &error))?;
        let status = std::fs::metadata(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        let digest = file.fingerprint().map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(Self {
            name: format!("{name}:latest"),
            path: path.to_owned(),
            modified: status.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            first_file_bytes: status.len(),
            digest,
            file,
        })
    }

    /// Family, size and quantisation.
    pub fn details(&self) -> Details {
        let family = self.file.gguf.hyper_parameters().architecture.clone();
        Details {
            parent_model: String::new(),
            format: "gguf",
            families: vec![family.clone()],
            family,
            parameter_size: parameter_size(self.file.parameter_count()),
            quantization_level: self.file.quantization(),
        }
    }

    /// Whether the model is made for embeddings and not for text.
    pub fn is_embedding(&self) -> bool {
        self.file.architecture_value("pooling_type").is_some()
    }

    /// Whether both are the same file with the same content.
    pub fn is_same_file(&self, other: &Model) -> bool {
        self.path == other.path && self.modified == other.modified && self.first_file_bytes == other.first_file_bytes
    }

    fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|status| {
            status.len() == self.first_file_bytes && status.modified().is_ok_and(|modified| modified == self.modified)
        })
    }

    fn is_called(&self, name: &str) -> bool {
        let own = self.name.trim_end_matches(":latest");
        let asked = name.strip_suffix(":latest").unwrap_or(name);
        own.eq_ignore_ascii_case(asked.strip_suffix(".gguf").unwrap_or(asked))
    }
}

/// Finds models.
pub struct Catalog {
    place: Place,
    known: Mutex<HashMap<PathBuf, Option<Arc<Model>>>>,
}

enum Place {
    File(Arc<Model>),
    Directory(PathBuf),
}

impl Catalog {
    /// The catalog of a file or a directory.
    ///
    /// # Errors
    /// A sentence when the file is no model, or when there is nothing.
    pub fn open(path: &Path) -> Result<Self, String> {
        let path = path.canonicalize().map_err(|error| {
            format!("cannot open {}: {error}; name a .gguf file, or a directory of them", path.display())
        })?;
        let place = if path.is_dir() {
            Place::Directory(path)
        } else {
            let name = name_of(&path).or_else(|| Some(path.file_stem()?.to_string_lossy().into_owned()));
            Place::File(Arc::new(Model::read(&path, &name.unwrap_or_else(|| "model".to_owned()))?))
        };
        let catalog = Self { place, known: Mutex::default() };
        if catalog.list().is_empty() {
            return Err(format!("no model was found in {}: put a .gguf file there", catalog.place().display()));
        }
        Ok(catalog)
    }

    /// The only model, when a file was given.
    pub fn only(&self) -> Option<&Arc<Model>> {
        match &self.place {
            Place::File(model) => Some(model),
            Place::Directory(_) => None,
        }
    }

    /// What was given.
    pub fn place(&self) -> &Path {
        match &self.place {
            Place::File(model) => &model.path,
            Place::Directory(directory) => directory,
        }
    }

    /// All models, by name. A directory is looked through each time; headers are read again only when a file has changed.
    pub fn list(&self) -> Vec<Arc<Model>> {
        let directory = match &self.place {
            Place::File(model) => return vec![Arc::clone(model)],
            Place::Directory(directory) => directory,
        };
        let mut paths = Vec::new();
        find_models(directory, 0, &mut paths);
        paths.sort();
        let mut models: Vec<Arc<Model>> = paths.iter().filter_map(|path| self.model_at(directory, path)).collect();
        models.sort_by(|one, other| one.name.cmp(&other.name));
        models
    }

    /// The model of a name: `NAME`, `NAME:latest` or `NAME.gguf`, in any case.
    ///
    /// # Errors
    /// 404 when there is none, 400 when none is named.
    pub fn find(&self, name: &str) -> ApiResult<Arc<Model>> {
        if name.is_empty() {
            return Err(ApiError::bad_request("model is required"));
        }
        self.list().into_iter().find(|model| model.is_called(name)).ok_or_else(|| ApiError::no_such_model(name))
    }

    fn model_at(&self, directory: &Path, path: &Path) -> Option<Arc<Model>> {
        if let Some(Some(model)) = self.known.lock().get(path) {
            if model.is_current() {
                return Some(Arc::clone(model));
            }
        }
        let model = Model::read(path, &name_in(directory, path)?).map(Arc::new);
        let was_known = self.known.lock().insert(path.to_owned(), model.as_ref().ok().cloned()).is_some();
        match model {
            Ok(model) => Some(model),
            Err(problem) => {
                if !was_known {
                    eprintln!("hypura: left out: {problem}");
                }
                None
            }
        }
    }
}

/// A model in a folder of its own is called by its file alone, as `llama-server --models-dir` has it; any other by its
/// path.
fn name_in(directory: &Path, path: &Path) -> Option<String> {
    let name = name_of(path)?;
    let folder = path.parent()?.strip_prefix(directory).ok()?;
    let is_own = folder.file_name().is_none_or(|folder| folder.to_str() == Some(&name));
    let prefix = if is_own { folder.parent().unwrap_or(Path::new("")) } else { folder };
    let prefix = prefix.to_str()?;
    Some(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
}

fn find_models(directory: &Path, depth: usize, paths: &mut Vec<PathBuf>) {
    /// Deep enough for AUTHOR/MODEL/FILE; a link in a circle ends here, too.
    const DEPTH_MAX: usize = 3;
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            if depth < DEPTH_MAX {
                find_models(&path, depth + 1, paths);
            }
        } else if name_of(&path).is_some() {
            paths.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_directory() {
        let name = |path: &str| name_in(Path::new("/m"), Path::new(path));
        assert_eq!(name("/m/a.gguf").as_deref(), Some("a"));
        assert_eq!(name("/m/a/a.gguf").as_deref(), Some("a"));
        assert_eq!(name("/m/a/a-00001-of-00002.gguf").as_deref(), Some("a"));
        assert_eq!(name("/m/author/a.gguf").as_deref(), Some("author/a"));
        assert_eq!(name("/m/author/a/a.gguf").as_deref(), Some("author/a"));
        assert_eq!(name("/m/a/a-00002-of-00002.gguf"), None);
    }
}
