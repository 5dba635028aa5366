//! Projectors: files that go with a model and turn pictures or sound into what it reads (`mmproj-*.gguf`).

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::model_file::{ModelFile, explained};
use crate::model_kind::is_projector;
use crate::model_paths::{HubFile, is_projector_name, name_of, quantization_in};

/// Which projector a command takes.
#[derive(Clone, Debug, Default, Args)]
pub struct Choice {
    /// The model's projector, for pictures and sound [default: an mmproj file beside the model, if one fits]
    #[arg(long, value_name = "FILE")]
    pub mmproj: Option<PathBuf>,

    /// Leave a projector beside the model out: its memory is free for weights
    #[arg(long, conflicts_with = "mmproj")]
    pub no_mmproj: bool,
}

impl Choice {
    /// The projector of a model.
    ///
    /// # Errors
    /// A sentence when the one that is named cannot be read or does not fit.
    pub fn of(&self, path: &Path, model: &ModelFile) -> Result<Option<Projector>, String> {
        if self.no_mmproj {
            return Ok(None);
        }
        let Some(named) = &self.mmproj else { return Ok(Projector::beside(path, model)) };
        let projector = Projector::open(named)?;
        match projector.fits(model) {
            true => Ok(Some(projector)),
            false => Err(format!(
                "{} is made for a model of {} values a token, and {} has {}: name the projector that came with the model",
                named.display(),
                projector.width,
                path.display(),
                model.gguf.hyper_parameters().embedding_length
            )),
        }
    }
}

/// A projector.
pub struct Projector {
    /// Its file.
    pub path: PathBuf,
    /// Its header.
    pub file: ModelFile,
    /// Values of a token that it makes; 0 when the header does not say.
    width: u64,
}

impl Projector {
    /// Reads the header of a projector.
    ///
    /// # Errors
    /// A sentence when the file is none.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = ModelFile::open(path).map_err(|error| explained(path, &error))?;
        if !is_projector(&file.pairs) {
            return Err(format!(
                "{} is no projector; those of models for llama.cpp are called mmproj-*",
                path.display()
            ));
        }
        let width = |kind: &str| file.pairs.get(&format!("clip.{kind}.projection_dim")).and_then(Value::as_u64);
        let width = width("vision").or_else(|| width("audio")).unwrap_or(0);
        // As llama.cpp finds it when it is loaded: its own directory may be another then.
        let path = std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, file, width })
    }

    /// The projector that lies beside a model. Of several the one whose name is the model's, then the most precise of 16 bits; where
    /// several models lie together, only one that is named like the model.
    fn beside(path: &Path, model: &ModelFile) -> Option<Self> {
        let name = identity(&name_of(path)?);
        let is_shared = path.parent().is_some_and(|directory| {
            let others = files_of(directory).into_iter().filter_map(|other| name_of(&other));
            others.into_iter().any(|other| identity(&other) != name)
        });
        let mut found: Vec<(bool, usize, PathBuf)> = candidates(path)
            .into_iter()
            .map(|candidate| {
                let stem = candidate.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
                (identity(&stem) != name, precision_rank(&stem), candidate)
            })
            .filter(|(is_other, ..)| !is_other || !is_shared)
            .collect();
        found.sort();
        let readable = found.iter().filter_map(|(_, _, candidate)| Self::open(candidate).ok());
        readable.into_iter().find(|projector| projector.fits(model))
    }

    /// Bytes of its weights, which stay in memory.
    pub fn size_bytes(&self) -> u64 {
        self.file.gguf.model_bytes()
    }

    /// Whether it turns pictures into tokens.
    pub fn sees(&self) -> bool {
        // Older files do not say, and are all for pictures.
        self.encodes("vision") || !self.hears()
    }

    /// Whether it turns sound into tokens.
    pub fn hears(&self) -> bool {
        self.encodes("audio")
    }

    fn encodes(&self, kind: &str) -> bool {
        self.file.pairs.get(&format!("clip.has_{kind}_encoder")) == Some(&Value::Bool(true))
    }

    fn fits(&self, model: &ModelFile) -> bool {
        let wanted = model.gguf.hyper_parameters().embedding_length;
        self.width == 0 || wanted == 0 || self.width == wanted
    }
}

/// Files beside a model that are called as projectors are. In a Hugging Face cache the repository's own folder counts as well: its
/// quantisations may have folders of their own.
pub fn candidates(model: &Path) -> Vec<PathBuf> {
    let inner = HubFile::of(model).map_or(0, |file| file.file.components().count().saturating_sub(1));
    let directories = model.ancestors().skip(1).take(inner + 1);
    let mut found: Vec<PathBuf> = directories.flat_map(files_of).filter(|path| is_projector_name(path)).collect();
    found.sort();
    found
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    // The directory of a plain file name is the current one.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What is left of a name without what tells a projector or a quantisation.
fn identity(name: &str) -> String {
    let whole = quantization_in(name).map_or(name, |quantization| &name[..name.len() - quantization.len()]);
    let words = whole.split(['-', '_', '.']).map(str::to_lowercase);
    words.filter(|word| !matches!(word.as_str(), "mmproj" | "model" | "")).collect::<Vec<_>>().join("-")
}

/// 16 bits before 8, and 32 last: it is small, and its precision shows.
pub fn precision_rank(stem: &str) -> usize {
    let quantization = quantization_in(stem).unwrap_or_default().to_uppercase();
    ["F16", "BF16", "Q8_0"].iter().position(|known| *known == quantization).unwrap_or(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use crate::test_gguf::{Pair, TestModel};

    fn write(path: &Path, pairs: &[(&str, Pair)]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(&TestModel::write(pairs, &[("a.weight", &[8])]).path, path).unwrap();
    }

    fn found(model: &Path) -> Option<String> {
        let projector = Choice::default().of(model, &ModelFile::open(model).unwrap()).unwrap()?;
        Some(projector.path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    const MODEL: [(&str, Pair); 2] =
        [("general.architecture", Pair::Text("a")), ("a.embedding_length", Pair::Number(64))];

    fn projector(width: u32) -> [(&'static str, Pair); 2] {
        [("general.architecture", Pair::Text("clip")), ("clip.vision.projection_dim", Pair::Number(width))]
    }

    #[test]
    fn of_those_that_fit_the_one_of_16_bits() {
        let scratch = Scratch::make("projector").unwrap();
        let model = scratch.path().join("Gemma-Q4_K_M.gguf");
        write(&model, &MODEL);
        assert_eq!(found(&model), None);
        write(&scratch.path().join("mmproj-F32.gguf"), &projector(64));
        write(&scratch.path().join("mmproj-BF16.gguf"), &projector(64));
        write(&scratch.path().join("mmproj-F16.gguf"), &projector(128));
        write(&scratch.path().join("mmproj-none.gguf"), &MODEL);
        assert_eq!(found(&model).as_deref(), Some("mmproj-BF16.gguf"));
        let named = Choice { mmproj: Some(scratch.path().join("mmproj-F16.gguf")), no_mmproj: false };
        let problem = named.of(&model, &ModelFile::open(&model).unwrap()).err().unwrap();
        assert!(problem.contains("128 values a token") && problem.ends_with("came with the model"), "{problem}");
        let none = Choice { mmproj: None, no_mmproj: true };
        assert!(none.of(&model, &ModelFile::open(&model).unwrap()).unwrap().is_none());
    }

    #[test]
    fn among_several_models_the_name_decides() {
        let scratch = Scratch::make("projector").unwrap();
        let (one, other) = (scratch.path().join("Qwen-VL-Q4_K_M.gguf"), scratch.path().join("Qwen-Q4_K_M.gguf"));
        write(&one, &MODEL);
        write(&other, &MODEL);
        write(&scratch.path().join("mmproj-F16.gguf"), &projector(64));
        assert_eq!((found(&one), found(&other)), (None, None), "whose it is is not known");
        write(&scratch.path().join("Qwen-VL.mmproj-Q8_0.gguf"), &projector(64));
        assert_eq!(found(&one).as_deref(), Some("Qwen-VL.mmproj-Q8_0.gguf"));
        assert_eq!(found(&other), None);
    }

    #[test]
    fn in_a_hugging_face_cache_it_lies_above_the_folder_of_a_quantisation() {
        let scratch = Scratch::make("projector").unwrap();
        let snapshot = scratch.path().join("models--o--r/snapshots/c0ffee");
        let model = snapshot.join("UD-Q4_K_XL/r-UD-Q4_K_XL-00001-of-00002.gguf");
        write(&model, &MODEL);
        write(&snapshot.join("mmproj-F16.gguf"), &projector(64));
        write(&scratch.path().join("models--o--r/snapshots/mmproj-F16.gguf"), &projector(64));
        assert_eq!(candidates(&model), [snapshot.join("mmproj-F16.gguf")]);
        assert_eq!(found(&model).as_deref(), Some("mmproj-F16.gguf"));
    }
}
