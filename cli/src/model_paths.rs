//! Where model files lie and what their paths tell: names, parts of a split, and the layout of the Hugging Face cache
//! (`models--OWNER--REPO/snapshots/REVISION/FILE`, where FILE is a link to a blob that is named by its hash).

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders within folders that are looked into: enough for a Hugging Face cache whose repository has folders.
const DEPTH_MAX: usize = 6;

/// The models in a directory and those below it, in no order; later parts of split models are left out, and of a
/// repository in a Hugging Face cache the files that a newer revision has as well. What cannot be read is passed over.
pub fn find_models(directory: &Path) -> Vec<PathBuf> {
    let mut walk = Walk::default();
    walk.enter(directory, 0);
    walk.found
}

/// As [`find_models`], the largest first.
pub fn models_by_size(directory: &Path) -> Vec<PathBuf> {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |status| status.len());
    let mut found: Vec<(u64, PathBuf)> = find_models(directory).into_iter().map(|path| (size(&path), path)).collect();
    found.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    found.into_iter().map(|(_, path)| path).collect()
}

#[derive(Default)]
struct Walk {
    found: Vec<PathBuf>,
    /// Directories that were entered, by device and inode: links may lead in a circle.
    entered: HashSet<(u64, u64)>,
    /// Repositories and files of the Hugging Face cache that were found.
    in_hub: HashSet<(String, PathBuf)>,
}

impl Walk {
    fn enter(&mut self, directory: &Path, depth: usize) {
        let mut is_new = |status: &Metadata| self.entered.insert((status.dev(), status.ino()));
        if depth > DEPTH_MAX || !std::fs::metadata(directory).is_ok_and(|status| is_new(&status)) {
            return;
        }
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        // The revision that the cache calls `main` hides what older ones have.
        let main = directory.parent().and_then(|repository| std::fs::read_to_string(repository.join("refs/main")).ok());
        paths.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()) != main.as_deref().map(str::trim));
        for path in paths {
            let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            if path.is_dir() {
                if !is_hidden {
                    self.enter(&path, depth + 1);
                }
            } else if name_of(&path).is_some() && path.is_file() {
                let is_newest = HubFile::of(&path).is_none_or(|file| self.in_hub.insert((file.repository, file.file)));
                if is_newest {
                    self.found.push(path);
                }
            }
        }
    }
}

/// The name of a model by its file: without `.gguf` and without the number of a split's part. `None` for the later
/// parts of a split, for projectors, and for other files.
pub fn name_of(path: &Path) -> Option<String> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    if is_projector_name(path) {
        return None;
    }
    match split_part(stem) {
        Some((name, 1, _)) => Some(name.to_owned()),
        Some(_) => None,
        None => Some(stem.to_owned()),
    }
}

/// Whether a file is called as projectors are, which give a model eyes or ears.
pub fn is_projector_name(path: &Path) -> bool {
    let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".gguf"));
    stem.is_some_and(|stem| stem.to_lowercase().contains("mmproj"))
}

/// The first part of the split that this file is a later part of.
pub fn first_part(path: &Path) -> Option<PathBuf> {
    let (name, number, count) = split_part(path.file_name()?.to_str()?.strip_suffix(".gguf")?)?;
    (number > 1).then(|| path.with_file_name(format!("{name}-00001-of-{count}.gguf")))
}

/// The name, the number and the count of a part in `NAME-00002-of-00003`.
pub fn split_part(stem: &str) -> Option<(&str, u32, &str)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(count) && is_number(number)).then(|| number.parse().ok()).flatten().map(|number| (name, number, count))
}

/// How a file is quantised by its name: the `Q4_K_M` of `model-Q4_K_M` or `model.Q4_K_M`, the `UD-Q4_K_XL` of
/// `model-UD-Q4_K_XL`.
pub fn quantization_in(name: &str) -> Option<&str> {
    let begin = name.rfind(['-', '.']).map_or(0, |separator| separator + 1);
    let word = &name[begin..];
    let upper = word.to_ascii_uppercase();
    let digits_after = |prefix: &str| {
        upper.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|character: char| character.is_ascii_digit()))
    };
    let is_known = ["Q", "IQ", "TQ", "MXFP", "NVFP"].iter().any(|prefix| digits_after(prefix))
        || matches!(upper.as_str(), "F16" | "F32" | "BF16");
    if !is_known {
        return None;
    }
    let is_dynamic = name[..begin].len() >= 3 && name[..begin - 1].to_ascii_uppercase().ends_with("UD");
    Some(if is_dynamic { &name[begin - 3..] } else { word })
}

/// A file in a Hugging Face cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// `OWNER/REPO`.
    pub repository: String,
    /// Its path in the repository.
    pub file: PathBuf,
}

impl HubFile {
    /// What a path in such a cache tells.
    pub fn of(path: &Path) -> Option<Self> {
        let names: Vec<&str> = path.components().filter_map(|component| component.as_os_str().to_str()).collect();
        let snapshots = names.iter().rposition(|name| *name == "snapshots")?;
        let (owner, repository) = names[..snapshots].last()?.strip_prefix("models--")?.split_once("--")?;
        let file: PathBuf = names.get(snapshots + 2..).filter(|rest| !rest.is_empty())?.iter().collect();
        Some(Self { repository: format!("{owner}/{repository}"), file })
    }

    /// How the file is told from others of its repository: its quantisation, else its name.
    pub fn tag(&self) -> Option<String> {
        let name = name_of(&self.file)?;
        Some(quantization_in(&name).unwrap_or(&name).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn names() {
        let name = |path: &str| name_of(Path::new(path));
        assert_eq!(name("/models/smollm2.gguf").as_deref(), Some("smollm2"));
        assert_eq!(name("Qwen3-30B-00001-of-00003.gguf").as_deref(), Some("Qwen3-30B"));
        assert_eq!(name("a-1-of-3.gguf").as_deref(), Some("a-1-of-3"));
        for other in
            ["Qwen3-30B-00002-of-00003.gguf", "mmproj-F16.gguf", "Qwen3-VL.mmproj-F16.gguf", "notes.txt", "gguf"]
        {
            assert_eq!(name(other), None, "{other}");
        }
        let first = first_part(Path::new("/m/a-00002-of-00003.gguf"));
        assert_eq!(first.as_deref(), Some(Path::new("/m/a-00001-of-00003.gguf")));
        assert_eq!(first_part(Path::new("/m/a-00001-of-00003.gguf")), None);
    }

    #[test]
    fn quantizations() {
        for (name, quantization) in [
            ("Qwen3-30B-A3B-Q4_K_M", Some("Q4_K_M")),
            ("Qwen3-30B-A3B-UD-Q4_K_XL", Some("UD-Q4_K_XL")),
            ("model.IQ2_XXS", Some("IQ2_XXS")),
            ("gpt-oss-20b-MXFP4", Some("MXFP4")),
            ("tiny-f16", Some("f16")),
            ("Q8_0", Some("Q8_0")),
            ("Qwen3-30B-A3B", None),
            ("smollm2", None),
            ("é-x", None),
        ] {
            assert_eq!(quantization_in(name), quantization, "{name}");
        }
    }

    #[test]
    fn a_hugging_face_cache() {
        let scratch = Scratch::make("hub").unwrap();
        let repository = scratch.path().join("hub/models--o--r--gguf");
        let write = |path: &str| {
            let path = repository.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        write("blobs/5a");
        for file in
            ["old/a-Q4_K_M.gguf", "old/only.gguf", "new/a-Q4_K_M.gguf", "new/UD-Q8_0/b-UD-Q8_0-00001-of-00002.gguf"]
        {
            write(&format!("snapshots/{file}"));
        }
        write("refs/main");
        std::fs::write(repository.join("refs/main"), "new").unwrap();
        std::os::unix::fs::symlink(scratch.path(), repository.join("circle")).unwrap();
        let mut tags: Vec<(String, bool)> = find_models(scratch.path())
            .iter()
            .map(|path| (HubFile::of(path).unwrap(), path.components().any(|part| part.as_os_str() == "new")))
            .map(|(file, is_new)| (format!("{}:{}", file.repository, file.tag().unwrap()), is_new))
            .collect();
        tags.sort();
        let expected = [("o/r--gguf:Q4_K_M", true), ("o/r--gguf:UD-Q8_0", true), ("o/r--gguf:only", false)];
        assert_eq!(tags, expected.map(|(name, is_new)| (name.to_owned(), is_new)));
        assert_eq!(HubFile::of(Path::new("/m/snapshots/x/a.gguf")), None);
    }
}
