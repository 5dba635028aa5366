//! The models that can be asked for: one file, or those in a directory.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

use super::errors::{ApiError, ApiResult};
use super::model_names::{self, name_alone, name_in};
use crate::model_file::{ModelFile, elsewhere, parameter_size};
use crate::model_paths::find_models;
use crate::projector::{self, Choice, Projector};

/// A model that can be loaded.
pub struct Model {
    /// Ollama's form of a name: `NAME:TAG`.
    pub name: String,
    /// The first file.
    pub path: PathBuf,
    /// When the file was last changed.
    pub modified: SystemTime,
    /// What tells whether the files are still those that were read.
    versions: Vec<Version>,
    /// Tells it from other models, and one content of a file from another.
    pub digest: String,
    /// Its header.
    pub file: ModelFile,
    /// What gives it eyes or ears.
    pub projector: Option<Projector>,
    /// The files beside it that are called as projectors are: another choice may have to be made when they change.
    beside: Vec<(PathBuf, Version)>,
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
    fn read(path: &Path, name: String, choice: &Choice) -> Result<Self, String> {
        let file = ModelFile::open_model(path)?;
        let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        // Asked before the content is looked at: a change meanwhile shows as one after it.
        let versions =
            file.paths().iter().map(|path| Version::of(path)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let beside = projectors_beside(path, choice);
        let digest = file.fingerprint().map_err(failed)?;
        let projector = choice.of(path, &file)?;
        let modified = versions[0].modified;
        Ok(Self { name, path: path.to_owned(), modified, versions, digest, file, projector, beside })
    }

    /// Bytes of its files, the projector's weights among them.
    pub fn size_bytes(&self) -> u64 {
        self.file.size_bytes() + self.projector_bytes()
    }

    /// Memory that its projector's weights take.
    pub fn projector_bytes(&self) -> u64 {
        self.projector.as_ref().map_or(0, Projector::size_bytes)
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

    /// Whether both are the same files, which nobody has written to in between.
    pub fn is_same_file(&self, other: &Model) -> bool {
        self.path == other.path && self.versions == other.versions && self.has_same_projector(other)
    }

    /// Whether both hold the same, as far as samples tell: a file may have been touched, or copied over itself.
    pub fn is_same_content(&self, other: &Model) -> bool {
        self.path == other.path && self.digest == other.digest && self.has_same_projector(other)
    }

    /// What tells these files from any others, and from what they hold after somebody has written to them.
    pub fn identity(&self) -> String {
        format!("{} {:?} {:?}", self.digest, self.versions, self.projector.as_ref().map(|projector| &projector.path))
    }

    fn has_same_projector(&self, other: &Model) -> bool {
        let version = |model: &Model| {
            let path = &model.projector.as_ref()?.path;
            Some((path.clone(), model.beside.iter().find(|(beside, _)| beside == path).map(|(_, version)| *version)))
        };
        version(self) == version(other)
    }

    fn is_current(&self, choice: &Choice) -> bool {
        let now = self.file.paths().iter().map(|path| Version::of(path)).collect::<Result<Vec<_>, _>>();
        now.is_ok_and(|now| now == self.versions) && self.beside == projectors_beside(&self.path, choice)
    }

    /// Whether somebody has written to it a moment ago, and may not be done.
    fn is_being_written(&self) -> bool {
        const QUIET: Duration = Duration::from_secs(1);
        let now = self.file.paths().into_iter().filter_map(|path| Version::of(&path).ok());
        // A time in the future comes from another machine's clock.
        now.into_iter().any(|version| version.modified.elapsed().is_ok_and(|since| since < QUIET))
    }
}

/// The files that a choice of a projector depends on.
fn projectors_beside(model: &Path, choice: &Choice) -> Vec<(PathBuf, Version)> {
    let paths = match &choice.mmproj {
        _ if choice.no_mmproj => Vec::new(),
        Some(path) => std::path::absolute(path).into_iter().collect(),
        None => projector::candidates(model),
    };
    paths.into_iter().filter_map(|path| Version::of(&path).ok().map(|version| (path, version))).collect()
}

/// What the system tells of a file, that changes when the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    size_bytes: u64,
    inode: u64,
}

impl Version {
    fn of(path: &Path) -> std::io::Result<Self> {
        let status = std::fs::metadata(path)?;
        Ok(Self { modified: status.modified()?, size_bytes: status.len(), inode: status.ino() })
    }
}

/// Finds models.
pub struct Catalog {
    /// A file or a directory.
    path: PathBuf,
    /// What the file holds; `None` of a directory.
    only: Option<Mutex<Only>>,
    /// By path, of a directory; `None` for what is no model.
    known: Mutex<HashMap<PathBuf, Option<Arc<Model>>>>,
    /// Which projectors go with the models.
    projector: Choice,
}

struct Only {
    /// The file as it was when it last was a model.
    model: Arc<Model>,
    /// Why it is none now, once that has been told.
    problem: Option<String>,
}

impl Catalog {
    /// The catalog of a file or a directory.
    ///
    /// # Errors
    /// A sentence when the file is no model, when there is nothing, or when a projector is named for many models.
    pub fn open(path: &Path, projector: Choice) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            let hint = elsewhere(path).unwrap_or_else(|| "; name a .gguf file, or a directory of them".to_owned());
            format!("cannot open {}: {error}{hint}", path.display())
        };
        std::fs::metadata(path).map_err(failed)?;
        // Links are not followed: in a Hugging Face cache they lead to files that are named by a hash.
        let path = std::path::absolute(path).map_err(failed)?;
        let only = match path.is_dir() {
            true if projector.mmproj.is_some() => {
                return Err(format!(
                    "--mmproj is one model's and {} is a directory: name the model, or put the projector beside it",
                    path.display()
                ));
            }
            true => None,
            false => {
                let model = Arc::new(Model::read(&path, name_alone(&path), &projector)?);
                Some(Mutex::new(Only { model, problem: None }))
            }
        };
        let catalog = Self { path, only, known: Mutex::default(), projector };
        if catalog.list().is_empty() {
            return Err(format!("no model was found in {}: put a .gguf file there", catalog.place().display()));
        }
        Ok(catalog)
    }

    /// The only model, when a file was given: what the file holds now, if that is a model.
    pub fn only(&self) -> Option<Arc<Model>> {
        let mut only = self.only.as_ref()?.lock();
        if !only.model.is_current(&self.projector) && !only.model.is_being_written() {
            match Model::read(&only.model.path, only.model.name.clone(), &self.projector) {
                Ok(model) => *only = Only { model: Arc::new(model), problem: None },
                Err(problem) if only.problem.as_ref() == Some(&problem) => {}
                Err(problem) => {
                    eprintln!("hypura: the file is not what it was, and no model now: {problem}");
                    only.problem = Some(problem);
                }
            }
        }
        Some(Arc::clone(&only.model))
    }

    /// The directory that is served, unless it is a single file.
    pub fn directory(&self) -> Option<&Path> {
        self.only.is_none().then_some(&self.path)
    }

    /// What was given.
    pub fn place(&self) -> &Path {
        &self.path
    }

    /// All models, by name. A directory is looked through each time; headers are read again only when a file has
    /// changed.
    pub fn list(&self) -> Vec<Arc<Model>> {
        let Some(directory) = self.directory() else { return self.only().into_iter().collect() };
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
            // Half of what is being written would be read, and the model loaded twice.
            if model.is_current(&self.projector) || model.is_being_written() {
                return Some(Arc::clone(model));
            }
        }
        let model = Model::read(path, name_in(directory, path)?, &self.projector).map(Arc::new);
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
