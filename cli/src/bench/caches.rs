//! Forgetting what the kernel has cached of a model, so that every run begins as cold as the first.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};

/// How much was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The whole page cache.
    All,
    /// The model's files, as far as nobody else has them mapped.
    Files,
    /// Nothing: the runs may begin warm.
    Nothing,
}

impl Dropped {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "page cache",
            Self::Files => "model's files",
            Self::Nothing => "nothing",
        }
    }
}

/// Drops the page cache where that is allowed, else what it holds of these files.
pub fn drop_caches(paths: &[PathBuf]) -> Dropped {
    rustix::fs::sync();
    if std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Dropped::All;
    }
    let forget = |path: &PathBuf| fadvise(File::open(path)?, 0, None, Advice::DontNeed).map_err(std::io::Error::from);
    match paths.iter().all(|path| forget(path).is_ok()) {
        true => Dropped::Files,
        false => Dropped::Nothing,
    }
}
