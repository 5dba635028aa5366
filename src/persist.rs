//! Small facts kept between runs: files, most of them JSON, in the user's cache directory.
//!
//! They only make a later start better informed, so nothing here fails: what cannot be read is unknown, what cannot be
//! written is lost.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

/// The directory for a user's cached facts, if the environment names one: `$XDG_CACHE_HOME/hypura`, or
/// `~/.cache/hypura`.
pub fn cache_directory() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("hypura"))
}

/// The contents of a file in a directory; `None` unless it is there and well-formed.
pub fn read(directory: &Path, name: &str) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(directory.join(name)).ok()?).ok()
}

/// Replaces a file in a directory. Readers see the old or the new contents, never a mixture.
pub fn write(directory: &Path, name: &str, value: &Value) {
    let written = std::fs::create_dir_all(directory).and_then(|()| replace(&directory.join(name), value.to_string()));
    if let Err(error) = written {
        tracing::debug!("cannot keep {name} in {}: {error}", directory.display());
    }
}

/// Replaces a file by a rename.
///
/// # Errors
/// What the system says; the file is then as it was.
pub fn replace(path: &Path, contents: impl AsRef<[u8]>) -> std::io::Result<()> {
    // Two models of a process may write to the same file at once.
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.{}.tmp", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
    let replaced = std::fs::write(&draft, contents).and_then(|()| std::fs::rename(&draft, path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_written_is_read_and_rubbish_is_unknown() {
        let directory = std::env::temp_dir().join(format!("hypura-persist-{}", std::process::id()));
        assert_eq!(read(&directory, "facts.json"), None);
        write(&directory, "facts.json", &json!({"speed": 1}));
        write(&directory, "facts.json", &json!({"speed": 2}));
        assert_eq!(read(&directory, "facts.json"), Some(json!({"speed": 2})));
        std::fs::write(directory.join("facts.json"), "{").unwrap();
        assert_eq!(read(&directory, "facts.json"), None);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "no drafts are left");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
