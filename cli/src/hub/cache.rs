//! The cache of the Hugging Face hub, which many programs share: `models--OWNER--REPO` with `blobs/HASH`, links to them
//! in
//! `snapshots/COMMIT/FILE`, and the commit of a branch in `refs/BRANCH`.

use std::path::{Path, PathBuf};

/// Where the hub's programs keep their things: `HF_HOME`, else `huggingface` in the user's cache directory.
pub fn home() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("HF_HOME")
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(path("HOME")?.join(".cache/huggingface")))
}

/// Where models are: `HF_HUB_CACHE`, else `hub` of [`home`].
///
/// # Errors
/// A sentence when no place is known.
pub fn hub() -> Result<PathBuf, String> {
    let named = std::env::var_os("HF_HUB_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
    named
        .or_else(|| Some(home()?.join("hub")))
        .ok_or_else(|| "no place for models is known: set HF_HOME or HOME".to_owned())
}

/// One repository in the cache.
#[derive(Clone, Debug)]
pub struct Repository {
    directory: PathBuf,
}

impl Repository {
    /// The repository `OWNER/REPO` in a cache.
    pub fn new(hub: &Path, repository: &str) -> Self {
        Self { directory: hub.join(format!("models--{}", repository.replace('/', "--"))) }
    }

    /// Where a content is kept.
    pub fn blob(&self, hash: &str) -> PathBuf {
        self.directory.join("blobs").join(hash)
    }

    /// Where a file of a commit is.
    pub fn snapshot(&self, commit: &str, file: &str) -> PathBuf {
        self.directory.join("snapshots").join(commit).join(file)
    }

    /// Makes a file of a commit point to its content.
    ///
    /// # Errors
    /// A sentence when the cache cannot be written to.
    pub fn link(&self, commit: &str, file: &str, hash: &str) -> Result<PathBuf, String> {
        let path = self.snapshot(commit, file);
        // From the file's folder up to the repository's: the cache can be moved as a whole.
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{hash}"));
        make_parent(&path)?;
        if std::fs::read_link(&path).is_ok_and(|existing| existing == target) {
            return Ok(path);
        }
        // One of another content, or none.
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(&target, &path).map_err(|error| cannot_write(&path, &error))?;
        Ok(path)
    }

    /// Notes which commit `main` is.
    ///
    /// # Errors
    /// A sentence when the cache cannot be written to.
    pub fn set_main(&self, commit: &str) -> Result<(), String> {
        let path = self.directory.join("refs/main");
        make_parent(&path)?;
        std::fs::write(&path, commit).map_err(|error| cannot_write(&path, &error))
    }
}

/// Makes the directories above a file.
///
/// # Errors
/// A sentence when they cannot be made.
pub fn make_parent(path: &Path) -> Result<(), String> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|error| cannot_write(parent, &error))
}

/// What is said when a place cannot be written to.
pub fn cannot_write(path: &Path, error: &std::io::Error) -> String {
    format!("cannot write {}: {error}; HF_HOME names another place", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_paths::HubFile;
    use crate::scratch::Scratch;

    #[test]
    fn links_lead_to_contents_wherever_the_cache_is() {
        let scratch = Scratch::make("cache").unwrap();
        let repository = Repository::new(scratch.path(), "o/r");
        make_parent(&repository.blob("5a")).unwrap();
        std::fs::write(repository.blob("5a"), "content").unwrap();
        for file in ["a.gguf", "UD-Q4_K_XL/b.gguf"] {
            let path = repository.link("c0ffee", file, "5a").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "content");
            assert_eq!(repository.link("c0ffee", file, "5a").unwrap(), path, "twice is no failure");
            let told = HubFile::of(&path).unwrap();
            assert_eq!((told.repository.as_str(), told.file.as_path()), ("o/r", Path::new(file)));
        }
    }
}
