//! A model's file as people and clients see it: its name, its size, what it is made of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use hypura::error::{Error, ErrorCode};
use hypura::gguf::{Gguf, key_values};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::format::bytes;
use crate::hub::source::Source;
use crate::model_kind::not_a_model;
use crate::model_paths::{first_part, models_by_size, name_of};

/// A model's header, in full.
pub struct ModelFile {
    /// Its tensors.
    pub gguf: Gguf,
    /// Its key-value pairs; long arrays are null.
    pub pairs: Map<String, Value>,
}

/// Arrays up to this length are shown; one value a layer is below it, a vocabulary above.
const ARRAY_ELEMENTS_MAX: u64 = 512;

impl ModelFile {
    /// Reads the header.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let gguf = Gguf::open(&[path.to_owned()])?;
        let pairs = key_values(path, ARRAY_ELEMENTS_MAX)?;
        Ok(Self { gguf, pairs })
    }

    /// Reads the header of a model that a user has named.
    ///
    /// # Errors
    /// A sentence that says what to do next.
    pub fn open_named(path: &Path) -> Result<Self, String> {
        if path.is_dir() {
            let models = models_by_size(path);
            let some: Vec<String> = models.iter().take(5).map(|model| model.display().to_string()).collect();
            return Err(match some.is_empty() {
                true => format!("{} is a directory without models; name a .gguf file", path.display()),
                false => format!("{} is a directory; name a model in it: {}", path.display(), some.join(", ")),
            });
        }
        Self::open_model(path)
    }

    /// Reads the header of a file that must be a model, and not what goes with one.
    ///
    /// # Errors
    /// A sentence that says what to do next.
    pub fn open_model(path: &Path) -> Result<Self, String> {
        if let Some(first) = first_part(path) {
            return Err(format!(
                "{} is a later part of a split model; name its first: {}",
                path.display(),
                first.display()
            ));
        }
        let file = Self::open(path).map_err(|error| explained(path, &error))?;
        match not_a_model(&file.pairs) {
            Some(what) => Err(format!("{} is {what}", path.display())),
            None => Ok(file),
        }
    }

    /// The paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.gguf.files().iter().map(|file| file.path.clone()).collect()
    }

    /// What the model is called: by its author, else by its file.
    pub fn title(&self) -> String {
        let own = self.gguf.hyper_parameters().name.clone().filter(|name| !name.trim().is_empty());
        own.or_else(|| name_of(&self.gguf.files()[0].path)).unwrap_or_else(|| "model".to_owned())
    }

    /// One line: what it is.
    pub fn headline(&self) -> String {
        let hyper = self.gguf.hyper_parameters();
        let architecture = if hyper.architecture.is_empty() { "unknown architecture" } else { &hyper.architecture };
        let experts = match hyper.expert_count {
            0 => String::new(),
            count => format!(", {count} experts a layer of which {} are used", hyper.expert_used_count),
        };
        format!(
            "{}: {architecture}, {} parameters, {}, {} of weights, {} layers{experts}",
            self.title(),
            parameter_size(self.parameter_count()),
            self.quantization(),
            bytes(self.gguf.model_bytes()),
            hyper.block_count
        )
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.gguf.files().iter().map(|file| file.size_bytes).sum()
    }

    /// Elements of all tensors.
    pub fn parameter_count(&self) -> u64 {
        self.gguf.tensors().iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum()
    }

    /// The mixture that the quantised file is called after, such as `Q4_K_M`; where the file does not say, the type
    /// that most of its bytes have.
    pub fn quantization(&self) -> String {
        // A flag that the number was guessed.
        const GUESSED: u64 = 1024;
        let number = self.pairs.get("general.file_type").and_then(Value::as_u64).map(|number| number & !GUESSED);
        let named = number.and_then(|number| FILE_TYPES.iter().find(|(known, _)| *known == number));
        match named {
            Some((_, name)) => (*name).to_owned(),
            None => self
                .bytes_by_type()
                .into_iter()
                .max_by_key(|(_, bytes)| *bytes)
                .map_or_else(|| "unknown".to_owned(), |(name, _)| name.to_uppercase()),
        }
    }

    /// Bytes of the tensors of each type.
    pub fn bytes_by_type(&self) -> BTreeMap<&'static str, u64> {
        let mut bytes_by_type = BTreeMap::new();
        for tensor in self.gguf.tensors() {
            *bytes_by_type.entry(tensor.ggml_type.name()).or_default() += tensor.size_bytes;
        }
        bytes_by_type
    }

    /// A text value.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.pairs.get(key)?.as_str()
    }

    /// A value of the model's architecture, such as `pooling_type`.
    pub fn architecture_value(&self, key: &str) -> Option<&Value> {
        self.pairs.get(&format!("{}.{key}", self.gguf.hyper_parameters().architecture))
    }

    /// The model's own chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// What tells this model from others: a hash of its headers and of samples of its tensors. Not a hash of the whole
    /// file, which would take minutes for a large one.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> std::io::Result<String> {
        const SAMPLE_BYTES: usize = 64 << 10;
        const SAMPLES: u64 = 4;
        let mut hash = Sha256::new();
        for (index, file) in self.gguf.files().iter().enumerate() {
            let offsets = self.gguf.tensors().iter().filter(|tensor| tensor.file == index).map(|tensor| tensor.offset);
            let header_bytes = offsets.min().unwrap_or(file.size_bytes);
            let mut opened = File::open(&file.path)?;
            hash.update(file.size_bytes.to_le_bytes());
            let mut header = Vec::new();
            opened.by_ref().take(header_bytes).read_to_end(&mut header)?;
            hash.update(&header);
            let data_bytes = file.size_bytes.saturating_sub(header_bytes);
            for sample in 0..SAMPLES {
                opened.seek(SeekFrom::Start(header_bytes + data_bytes / SAMPLES * sample))?;
                let mut bytes = Vec::with_capacity(SAMPLE_BYTES);
                opened.by_ref().take(SAMPLE_BYTES as u64).read_to_end(&mut bytes)?;
                hash.update(&bytes);
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Why a model cannot be opened, and what to do next.
pub fn explained(path: &Path, error: &Error) -> String {
    let elsewhere = elsewhere(path);
    let hint = match error.code() {
        ErrorCode::Open if elsewhere.is_some() => elsewhere.as_deref().unwrap_or_default(),
        ErrorCode::Open if !path.exists() => "; is the path right? Models are files that end in .gguf",
        ErrorCode::Format => "; convert_hf_to_gguf.py of llama.cpp makes GGUF files of models in other formats",
        ErrorCode::Truncated => "; was it downloaded completely?",
        _ => "",
    };
    format!("{error}{hint}")
}

/// What to do with a name of the hub, or an address, where a file is wanted.
pub fn elsewhere(path: &Path) -> Option<String> {
    let text = path.to_str().filter(|text| Source::is_meant(text) && !path.exists())?;
    Some(match Source::parse(text) {
        Some(Source::Address(_)) => "; download it first, and name the file".to_owned(),
        Some(Source::Repository { .. }) => format!("; download it first: 'hypura pull {text}' prints where it is then"),
        None => format!("; {}", Source::misspelt(text)),
    })
}

/// Billions or millions of parameters, as models are called: `7.6B`, `134.52M`.
pub fn parameter_size(count: u64) -> String {
    match count {
        1_000_000_000.. => format!("{:.1}B", count as f64 / 1e9),
        1_000_000.. => format!("{:.2}M", count as f64 / 1e6),
        _ => format!("{:.2}K", count as f64 / 1e3),
    }
}

/// `enum llama_ftype` of llama.h.
const FILE_TYPES: [(u64, &str); 36] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4_MOE"),
    (39, "NVFP4"),
    (40, "Q1_0"),
    (41, "Q2_0"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parameter_size(134_515_008), "134.52M");
        assert_eq!(parameter_size(7_615_616_512), "7.6B");
        assert_eq!(parameter_size(4_200), "4.20K");
    }
}
