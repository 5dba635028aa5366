//! Small facts kept between runs: files, most of them JSON, in the user's cache directory.
//!
//! They only make a later start better informed, so nothing here fails: what cannot be read is unknown, what cannot be
//! written is lost.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

/// The one place where everything is kept between runs, as `HYPURA_CACHE` says, or none. The settings have it
/// ([`crate::config::Config::store`]) and give it to all that keep something: what a drive can do (`io/tune/store.rs`), what memory and
/// kernels can (`forecast/bandwidth.rs`, `kernels.rs`), what a run taught (`forecast/learned.rs`), and which experts a model uses
/// (`predict/usage_profile/profile_file.rs`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    directory: Option<PathBuf>,
}

impl Store {
    /// Nothing is kept, and nothing is known.
    pub const NOWHERE: Self = Self { directory: None };

    /// In a directory, which need not exist.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()) }
    }

    /// In the directory for the user's cached facts, if the environment names one.
    pub fn of_user() -> Self {
        Self { directory: user_cache_directory() }
    }

    /// The directory, for what is no list of facts.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The facts in a file, by their keys; none while there is no file, or no good one.
    pub fn facts(&self, name: &str) -> Map<String, Value> {
        let Some(directory) = &self.directory else { return Map::new() };
        read_facts(&directory.join(name)).unwrap_or_else(|problem| {
            tracing::info!("{problem}");
            Map::new()
        })
    }

    /// Changes the facts in a file. Readers see the old or the new ones, never a mixture.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let Some(directory) = &self.directory else { return };
        // Whoever changes facts has asked for them before and was told of a file that is no good.
        let mut facts = read_facts(&directory.join(name)).unwrap_or_default();
        change(&mut facts);
        let text = Value::Object(facts).to_string();
        if let Err(error) = create_directory(directory).and_then(|()| replace(&directory.join(name), text)) {
            tracing::debug!("cannot keep {name} in {}: {error}", directory.display());
        }
    }
}

/// The directory for a user's cached facts, if the environment names one: `$XDG_CACHE_HOME/hypura`, or
/// `~/.cache/hypura`.
fn user_cache_directory() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("hypura"))
}

/// More than any of these files has. One that is larger was not written by us.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The bytes of a file that may be anybody's: a regular one of a size that we could have written, or `None`.
pub fn read_bytes(path: &Path) -> Option<Vec<u8>> {
    read(path).ok()
}

/// The same, with the reason why not: [`ErrorKind::InvalidData`] when it is not a file of ours.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    // Not blocking: opening a named pipe would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let status = file.metadata()?;
    if !status.is_file() || status.len() > FILE_BYTES_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The facts in a file, none where there is no file; or a sentence why they are not known.
fn read_facts(path: &Path) -> Result<Map<String, Value>, String> {
    match read(path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
        Ok(Value::Object(facts)) => Ok(facts),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Map::new()),
        Err(error) if !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            Err(format!("{} cannot be read and is ignored: {error}", path.display()))
        }
        _ => Err(format!("{} is not what was written there and is ignored", path.display())),
    }
}

/// Makes a directory, and those above it, for this user alone, unless it is there.
///
/// # Errors
/// What the system says.
pub fn create_directory(directory: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Replaces a file by a rename.
///
/// # Errors
/// What the system says; the file is then as it was.
pub fn replace(path: &Path, contents: impl AsRef<[u8]>) -> std::io::Result<()> {
    let (draft, mut file) = draft_of(path)?;
    let replaced = file.write_all(contents.as_ref()).and_then(|()| std::fs::rename(&draft, path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    replaced
}

/// Whether [`replace`] could write this file.
///
/// # Errors
/// Why not.
pub fn check_replaceable(path: &Path) -> std::io::Result<()> {
    draft_of(path).map(|(draft, _)| drop(std::fs::remove_file(draft)))
}

/// A new file beside another one, which nobody else may read: what is in it tells what its user does.
fn draft_of(path: &Path) -> std::io::Result<(PathBuf, File)> {
    // Two models of a process may write to the same file at once.
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.{}.tmp", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed)));
    let draft = PathBuf::from(draft);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    Ok((draft, file))
}

/// A directory where the running processes of this user meet, which nobody else may enter; `None` where there is no safe place.
pub fn runtime_directory() -> Option<PathBuf> {
    let user = user_id();
    let (runtime, shared) = (PathBuf::from(format!("/run/user/{user}")), Path::new("/dev/shm"));
    private_directory(match (runtime.is_dir(), shared.is_dir()) {
        (true, _) => runtime.join("hypura"),
        (_, true) => shared.join(format!("hypura-{user}")),
        _ => std::env::temp_dir().join(format!("hypura-{user}")),
    })
}

/// Makes a directory that only this user may enter; `None` when what is there is not that.
pub fn private_directory(directory: PathBuf) -> Option<PathBuf> {
    // It may be there already; what it is is looked at below.
    let _ = DirBuilder::new().mode(0o700).create(&directory);
    let status = std::fs::symlink_metadata(&directory).ok()?;
    (status.is_dir() && status.uid() == user_id() && status.mode() & 0o077 == 0).then_some(directory)
}

fn user_id() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// A name that one process has at a time, until this is dropped.
#[derive(Debug)]
pub struct NameLock {
    path: PathBuf,
    _file: File,
}

impl NameLock {
    /// Takes a name in a directory of [`private_directory`]; `None` while another has it.
    pub fn take(directory: &Path, name: &str) -> Option<Self> {
        let path = directory.join(name);
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).ok()?;
            if !lock(&file, libc::LOCK_EX | libc::LOCK_NB) {
                return None;
            }
            // Between the two calls its holder may have removed it, and another one made it anew.
            if file.metadata().is_ok_and(|status| status.nlink() > 0) {
                return Some(Self { path, _file: file });
            }
        }
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `flock` on an open file; says whether it succeeded. The lock goes with the file, also when its process is killed.
pub fn lock(file: &File, operation: libc::c_int) -> bool {
    // SAFETY: the call takes an open descriptor and a number, and touches no memory of ours.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_belongs_to_one_at_a_time_and_files_to_their_user() {
        let directory = std::env::temp_dir().join(format!("hypura-names-{}", std::process::id()));
        let directory = private_directory(directory).unwrap();
        let held = NameLock::take(&directory, "name").unwrap();
        assert!(NameLock::take(&directory, "name").is_none());
        assert!(NameLock::take(&directory, "other").is_some());
        drop(held);
        assert!(NameLock::take(&directory, "name").is_some());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "nothing is left behind");
        Store::at(&directory).change("facts.json", |_| {});
        File::create(directory.join("large")).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(read_bytes(&directory.join("large")), None, "it is not one of ours");
        assert_eq!(read_bytes(&directory), None, "nor is a directory");
        assert_eq!(std::fs::metadata(directory.join("facts.json")).unwrap().mode() & 0o777, 0o600);
        check_replaceable(&directory.join("facts.json")).unwrap();
        assert!(check_replaceable(&directory.join("nowhere").join("facts.json")).is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_was_written_is_read_and_rubbish_is_unknown() {
        let directory = std::env::temp_dir().join(format!("hypura-persist-{}", std::process::id()));
        let store = Store::at(&directory);
        let facts = || Value::Object(store.facts("facts.json"));
        let set = |key: &str, value: u64| {
            store.change("facts.json", |facts| {
                facts.insert(key.to_owned(), json!(value));
            });
        };
        assert_eq!(facts(), json!({}));
        set("speed", 1);
        set("speed", 2);
        set("depth", 3);
        assert_eq!(facts(), json!({"speed": 2, "depth": 3}));
        for rubbish in ["{", "[1]"] {
            std::fs::write(directory.join("facts.json"), rubbish).unwrap();
            assert_eq!(facts(), json!({}), "{rubbish}");
            let problem = read_facts(&directory.join("facts.json")).unwrap_err();
            assert!(problem.contains("is not what was written there"), "{problem}");
        }
        // Permissions do not keep root out; a link to itself does.
        let link = directory.join("link.json");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        let problem = read_facts(&link).unwrap_err();
        assert!(problem.contains("link.json cannot be read and is ignored: "), "{problem}");
        std::fs::remove_file(link).unwrap();
        set("speed", 4);
        assert_eq!(facts(), json!({"speed": 4}));
        Store::NOWHERE.change("facts.json", |_| panic!("nothing is kept"));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "no drafts are left");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
