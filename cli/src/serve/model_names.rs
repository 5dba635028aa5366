//! What models are called. Ollama's form is `NAME:TAG`, and `latest` where no tag is written; a file of a Hugging Face
//! cache is called as Ollama calls those, `hf.co/OWNER/REPO:QUANTISATION`.

use std::path::Path;

use crate::model_paths::{HubFile, name_of};

/// The name of a file in a directory that is served. One in a folder of its own is called by its file alone, as
/// `llama-server --models-dir` has it; any other by its path.
pub fn name_in(directory: &Path, path: &Path) -> Option<String> {
    if let Some(name) = hub_name(path) {
        return Some(name);
    }
    let name = name_of(path)?;
    let folder = path.parent()?.strip_prefix(directory).ok()?;
    let is_own = folder.file_name().is_none_or(|folder| folder.to_str() == Some(&name));
    let prefix = if is_own { folder.parent().unwrap_or(Path::new("")) } else { folder };
    let prefix = prefix.to_str()?;
    Some(if prefix.is_empty() { format!("{name}:latest") } else { format!("{prefix}/{name}:latest") })
}

/// The name of a file that is served alone.
pub fn name_alone(path: &Path) -> String {
    let stem = || path.file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned());
    format!("{}:latest", name_of(path).unwrap_or_else(stem))
}

fn hub_name(path: &Path) -> Option<String> {
    // A link to a file in the cache is called as that file is.
    let file = HubFile::of(path).or_else(|| HubFile::of(&std::fs::read_link(path).ok()?))?;
    Some(format!("hf.co/{}:{}", file.repository, file.tag()?))
}

/// Which of the models a client means: `(name, path)` of each in, its place out. An exact name wins, then the name of
/// the file, then of a repository without a tag what Ollama takes: `Q4_K_M`, or the first.
pub fn find<'a>(asked: &str, models: impl Iterator<Item = (&'a str, &'a Path)> + Clone) -> Option<usize> {
    let asked = normal(asked);
    let place = |is_it: &dyn Fn(&str, &Path) -> bool| models.clone().position(|(name, path)| is_it(name, path));
    let hub = |path: &Path| hub_name(path).map(|name| normal(&name));
    let in_repository =
        |path: &Path| hub(path).and_then(|name| Some(name.rsplit_once(':')?.0 == asked)).unwrap_or(false);
    place(&|name, path| normal(name) == asked || hub(path).as_ref() == Some(&asked))
        .or_else(|| place(&|_, path| name_of(path).is_some_and(|name| normal(&name) == asked)))
        .or_else(|| place(&|_, path| in_repository(path) && hub(path).is_some_and(|name| name.ends_with(":q4_k_m"))))
        .or_else(|| place(&|_, path| in_repository(path)))
}

/// A name without what may be left out: the registry that Ollama's own models come from, `:latest`, `.gguf`, the case.
fn normal(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    let name = name.strip_prefix("https://").unwrap_or(&name);
    let name = ["registry.ollama.ai/", "hf.co/", "huggingface.co/", "hf:"]
        .iter()
        .find_map(|registry| name.strip_prefix(registry))
        .unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let name = name.strip_suffix(":latest").unwrap_or(name);
    name.strip_suffix(".gguf").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_directory() {
        let name = |path: &str| name_in(Path::new("/m"), Path::new(path));
        assert_eq!(name("/m/a.gguf").as_deref(), Some("a:latest"));
        assert_eq!(name("/m/a/a.gguf").as_deref(), Some("a:latest"));
        assert_eq!(name("/m/a/a-00001-of-00002.gguf").as_deref(), Some("a:latest"));
        assert_eq!(name("/m/author/a.gguf").as_deref(), Some("author/a:latest"));
        assert_eq!(name("/m/author/a/a.gguf").as_deref(), Some("author/a:latest"));
        assert_eq!(name("/m/a/a-00002-of-00002.gguf"), None);
        let cached = "/m/hub/models--o--R-GGUF/snapshots/5a/UD-Q4_K_XL/R-UD-Q4_K_XL-00001-of-00002.gguf";
        assert_eq!(name(cached).as_deref(), Some("hf.co/o/R-GGUF:UD-Q4_K_XL"));
    }

    #[test]
    fn one_model_has_many_names() {
        let hub = "/m/models--o--R-GGUF/snapshots/5a";
        let paths = ["/m/a.gguf".to_owned(), format!("{hub}/R-Q8_0.gguf"), format!("{hub}/R-Q4_K_M.gguf")];
        let models: Vec<(String, &Path)> =
            paths.iter().map(|path| (name_in(Path::new("/m"), Path::new(path)).unwrap(), Path::new(path))).collect();
        let place = |asked: &str| find(asked, models.iter().map(|(name, path)| (name.as_str(), *path)));
        for asked in [
            "a",
            "A:latest",
            "a.gguf",
            "registry.ollama.ai/library/a",
            "registry.ollama.ai/library/a:latest",
            "library/a",
        ] {
            assert_eq!(place(asked), Some(0), "{asked}");
        }
        for asked in
            ["hf.co/o/R-GGUF:Q8_0", "o/r-gguf:q8_0", "hf:o/R-GGUF:Q8_0", "huggingface.co/o/R-GGUF:Q8_0", "R-Q8_0"]
        {
            assert_eq!(place(asked), Some(1), "{asked}");
        }
        assert_eq!(place("hf.co/o/R-GGUF"), Some(2), "as Ollama chooses");
        assert_eq!(place("hf.co/o/R-GGUF:latest"), Some(2));
        for asked in ["b", "a:7b", "o/R-GGUF:Q2_K", ""] {
            assert_eq!(place(asked), None, "{asked}");
        }
    }
}
