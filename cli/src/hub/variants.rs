//! The models of a repository: the same one in several quantisations, each a file or a split over several.

use std::collections::BTreeMap;
use std::path::Path;

use super::listing::RemoteFile;
use crate::model_paths::{is_projector_name, quantization_in, split_part};
use crate::projector::precision_rank;

/// One model of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its quantisation, else its name.
    pub tag: String,
    /// Its files, first part first.
    pub files: Vec<RemoteFile>,
}

impl Variant {
    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

/// What a repository offers.
#[derive(Clone, Debug, Default)]
pub struct Variants {
    /// Models, the largest first.
    pub models: Vec<Variant>,
    /// Projectors, which give its models eyes or ears.
    pub projectors: Vec<RemoteFile>,
}

impl Variants {
    /// Sorts a repository's files.
    pub fn of(files: &[RemoteFile]) -> Self {
        let mut groups: BTreeMap<String, Vec<RemoteFile>> = BTreeMap::new();
        let mut projectors = Vec::new();
        for file in files {
            let Some(stem) = file.path.strip_suffix(".gguf") else { continue };
            let name = Path::new(stem).file_name().and_then(|name| name.to_str()).unwrap_or(stem);
            if is_projector_name(Path::new(&file.path)) {
                projectors.push(file.clone());
            } else if !name.contains("imatrix") {
                let whole = split_part(stem).map_or(stem, |(name, _, _)| name);
                groups.entry(whole.to_owned()).or_default().push(file.clone());
            }
        }
        let mut models: Vec<Variant> = groups
            .into_iter()
            .map(|(stem, mut files)| {
                files.sort_by(|one, other| one.path.cmp(&other.path));
                let name = Path::new(&stem).file_name().and_then(|name| name.to_str()).unwrap_or(&stem).to_owned();
                Variant { tag: quantization_in(&name).unwrap_or(&name).to_owned(), files }
            })
            .collect();
        models.sort_by(|one, other| other.size_bytes().cmp(&one.size_bytes()).then_with(|| one.tag.cmp(&other.tag)));
        Self { models, projectors }
    }

    /// The model of a tag, in any case; without one what Ollama takes, `Q4_K_M`, or the only one, or the smallest that
    /// is not smaller than 4 bits a weight would be.
    ///
    /// # Errors
    /// A sentence that lists what there is.
    pub fn choose(&self, repository: &str, tag: Option<&str>) -> Result<&Variant, String> {
        let tags: Vec<&str> = self.models.iter().map(|model| model.tag.as_str()).collect();
        if tags.is_empty() {
            return Err(format!("{repository} holds no GGUF files; repositories that do often end in -GGUF"));
        }
        let of = |tag: &str| self.models.iter().find(|model| model.tag.eq_ignore_ascii_case(tag));
        let by_file = |tag: &str| {
            let stem = tag.strip_suffix(".gguf").unwrap_or(tag);
            self.models.iter().find(|model| model.files[0].path.strip_suffix(".gguf").is_some_and(|path| path == stem))
        };
        let chosen = match tag {
            Some(tag) => of(tag).or_else(|| by_file(tag)),
            None => of("Q4_K_M").or_else(|| of("UD-Q4_K_XL")).or_else(|| of("MXFP4")).or(self.models.last()),
        };
        let asked = tag.unwrap_or_default();
        chosen.ok_or_else(|| format!("{repository} has no {asked}; it has {}", tags.join(", ")))
    }

    /// The projector to take: in 16 bits where there is one, since it is small and its precision shows.
    pub fn projector(&self) -> Option<&RemoteFile> {
        let rank = |file: &&RemoteFile| precision_rank(file.path.strip_suffix(".gguf").unwrap_or(&file.path));
        self.projectors.iter().min_by_key(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, size_bytes: u64) -> RemoteFile {
        RemoteFile { path: path.to_owned(), size_bytes, hash: "5a".to_owned(), is_sha256: true }
    }

    #[test]
    fn files_are_sorted_into_models() {
        let files = [
            file("README.md", 1),
            file("R-Q4_K_M.gguf", 40),
            file("UD-Q8_0/R-UD-Q8_0-00002-of-00002.gguf", 30),
            file("UD-Q8_0/R-UD-Q8_0-00001-of-00002.gguf", 50),
            file("R-IQ2_XXS.gguf", 20),
            file("mmproj-F32.gguf", 9),
            file("mmproj-F16.gguf", 5),
            file("imatrix_unsloth.gguf", 1),
        ];
        let variants = Variants::of(&files);
        let tags: Vec<(&str, u64)> =
            variants.models.iter().map(|model| (model.tag.as_str(), model.size_bytes())).collect();
        assert_eq!(tags, [("UD-Q8_0", 80), ("Q4_K_M", 40), ("IQ2_XXS", 20)]);
        assert!(variants.models[0].files[0].path.contains("00001"));
        let choose = |tag: Option<&str>| variants.choose("o/r", tag).map(|model| model.tag.as_str());
        assert_eq!(choose(None), Ok("Q4_K_M"));
        assert_eq!(choose(Some("ud-q8_0")), Ok("UD-Q8_0"));
        assert_eq!(choose(Some("R-IQ2_XXS.gguf")), Ok("IQ2_XXS"));
        assert_eq!(choose(Some("Q5_0")).unwrap_err(), "o/r has no Q5_0; it has UD-Q8_0, Q4_K_M, IQ2_XXS");
        assert_eq!(variants.projector().map(|file| file.path.as_str()), Some("mmproj-F16.gguf"));
        assert!(Variants::default().choose("o/r", None).unwrap_err().contains("no GGUF files"));
    }
}
