//! The usage profile kept between runs: a file for each model in the cache directory, named after the model's fingerprint.
//!
//! Nothing here fails: what cannot be read is unknown, what cannot be written is lost. A file is replaced by a rename. Two
//! processes that run a model take turns: each puts what the other has written meanwhile into what it writes. Should both
//! read and replace it in the same instant, what one has learned since its last turn is lost to the file, not to itself.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::UsageProfile;
use super::encoding::{decode, encode};
use crate::fnv::Fnv;
use crate::persist;

/// Models whose usage profile is kept: those used last.
const FILES_MAX: usize = 64;

const PREFIX: &str = "habits-";
const SUFFIX: &str = ".bin";

/// The file of one model's usage profile.
#[derive(Debug)]
pub struct ProfileFile {
    directory: PathBuf,
    path: PathBuf,
    /// The hash of the file as we know it.
    seen: Option<u64>,
}

impl ProfileFile {
    /// The file in a directory, which need not exist, of a model with this fingerprint.
    pub fn new(directory: &Path, fingerprint: &str) -> Self {
        let path = directory.join(format!("{PREFIX}{fingerprint}{SUFFIX}"));
        Self { directory: directory.to_owned(), path, seen: None }
    }

    /// Adds what is stored to the usage profile.
    pub fn load(&mut self, usage_profile: &mut UsageProfile) {
        if let Some(stored) = self.read(usage_profile.expert_count) {
            usage_profile.merge(&stored);
        }
    }

    /// Stores the usage profile, together with what others have stored since the last time, and forgets the models that were not used for
    /// longest if there are too many.
    pub fn save(&mut self, mut usage_profile: UsageProfile) {
        let seen = self.seen;
        if let Some(stored) = self.read(usage_profile.expert_count) {
            // What we have seen is contained in ours already, but for layers that this run has nothing to do with.
            if self.seen != seen {
                usage_profile.merge(&stored);
            }
            usage_profile.adopt(stored);
        }
        let bytes = encode(&usage_profile);
        let written = persist::create_directory(&self.directory).and_then(|()| persist::replace(&self.path, &bytes));
        match written {
            Ok(()) => {
                self.seen = Some(Fnv::of(&bytes));
                self.forget_old();
            }
            Err(error) => tracing::debug!("cannot keep the usage profile in {}: {error}", self.path.display()),
        }
    }

    fn read(&mut self, expert_count: usize) -> Option<UsageProfile> {
        let bytes = persist::read_bytes(&self.path)?;
        let hash = Some(Fnv::of(&bytes));
        let is_new = std::mem::replace(&mut self.seen, hash) != hash;
        match decode(&bytes, expert_count) {
            Ok(usage_profile) => Some(usage_profile),
            Err(problem) => {
                if is_new {
                    tracing::info!("{} is ignored: {problem}", self.path.display());
                }
                None
            }
        }
    }

    fn forget_old(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        let changed =
            |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut files: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| *path != self.path && is_ours(path))
            .map(|path| (changed(&path), path))
            .collect();
        files.sort();
        let excess = (files.len() + 1).saturating_sub(FILES_MAX);
        for (_, path) in &files[..excess] {
            // Another process may have been faster.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}
