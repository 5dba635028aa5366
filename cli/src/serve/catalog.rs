//! The models that can be asked for: one file, or those in a directory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use super::errors::{ApiError, ApiResult};
use super::model_names::{self, name_alone, name_in};
use crate::model_file::{ModelFile, parameter_size};
use crate::model_paths::find_models;

/// A model that can be loaded.
pub struct Model {
    /// Ollama's form of a name: `NAME:TAG`.
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
    #[serde(skip_serializing_if = "is_zero")]
    context_length: u64,
    #[serde(skip_serializing_if = "is_zero")]
    embedding_length: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Model {
    fn read(path: &Path, name: String) -> Result<Self, String> {
        let file = ModelFile::open_model(path)?;
        let status = std::fs::metadata(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        let digest = file.fingerprint().map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(Self {
            name,
            path: path.to_owned(),
            modified: status.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            first_file_bytes: status.len(),
            digest,
            file,
        })
    }

    /// Family, size and quantisation.
    pub fn details(&self) -> Details {
        let hyper = self.file.gguf.hyper_parameters();
        let family = hyper.architecture.clone();
        Details {
            parent_model: String::new(),
            format: "gguf",
            families: vec![family.clone()],
            family,
            parameter_size: parameter_size(self.file.parameter_count()),
            quantization_level: self.file.quantization(),
            context_length: hyper.context_length,
            embedding_length: hyper.embedding_length,
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
        let failed = |error: std::io::Error| {
            format!("cannot open {}: {error}; name a .gguf file, or a directory of them", path.display())
        };
        std::fs::metadata(path).map_err(failed)?;
        // Links are not followed: in a Hugging Face cache they lead to files that are named by a hash.
        let path = std::path::absolute(path).map_err(failed)?;
        let place = if path.is_dir() {
            Place::Directory(path)
        } else {
            Place::File(Arc::new(Model::read(&path, name_alone(&path))?))
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

    /// The directory that is served, unless it is a single file.
    pub fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::File(_) => None,
            Place::Directory(directory) => Some(directory),
        }
    }

    /// What was given.
    pub fn place(&self) -> &Path {
        match &self.place {
            Place::File(model) => &model.path,
            Place::Directory(directory) => directory,
        }
    }

    /// All models, by name. A directory is looked through each time; headers are read again only when a file has
    /// changed.
    pub fn list(&self) -> Vec<Arc<Model>> {
        let directory = match &self.place {
            Place::File(model) => return vec![Arc::clone(model)],
            Place::Directory(directory) => directory,
        };
        let mut paths = find_models(directory);
        paths.sort();
        let mut models: Vec<Arc<Model>> = paths.iter().filter_map(|path| self.model_at(directory, path)).collect();
        models.sort_by(|one, other| one.name.cmp(&other.name));
        models
    }

    /// The model of a name, in any of the forms that [`model_names::find`] knows.
    ///
    /// # Errors
    /// 404 when there is none, 400 when none is named.
    pub fn find(&self, name: &str) -> ApiResult<Arc<Model>> {
        if name.is_empty() {
            return Err(ApiError::bad_request("model is required"));
        }
        let models = self.list();
        let place = model_names::find(name, models.iter().map(|model| (model.name.as_str(), model.path.as_path())));
        place.map(|place| Arc::clone(&models[place])).ok_or_else(|| ApiError::no_such_model(name))
    }

    fn model_at(&self, directory: &Path, path: &Path) -> Option<Arc<Model>> {
        if let Some(Some(model)) = self.known.lock().get(path) {
            if model.is_current() {
                return Some(Arc::clone(model));
            }
        }
        let model = Model::read(path, name_in(directory, path)?).map(Arc::new);
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
