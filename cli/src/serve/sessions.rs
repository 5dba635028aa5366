//! Prompts that outlive llama-server: what its slots hold is written to the user's cache when a model is unloaded, and read when
//! the same file is loaded with the same context, so that a long system prompt is not computed again.
//!
//! The directory is the user's alone, and so are the files. While llama-server writes or reads a file it has another name: what
//! was cut short, or brought llama-server down, is not tried again.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::catalog::Model;
use super::errors::ApiResult;
use super::llama_server::upstream::Upstream;
use crate::format::bytes;
use crate::kv_cache;

/// Shorter prompts are computed faster than they are worth keeping.
const TOKENS_MIN: u64 = 64;

/// Drives are not filled: of what is free, at least as much stays.
const FREE_SHARE: u64 = 2;

/// Whole files, and those that are being written or read.
const WHOLE: &str = "prompt";
const UNDER_WAY: &str = "part";

/// Where prompts are kept, within a bound.
pub struct Sessions {
    directory: PathBuf,
    bytes_max: u64,
    /// What else decides about a prompt's state: llama-server's own settings.
    settings: String,
    /// Arguments and values among them, any of which may name a file.
    words: Vec<String>,
}

/// Which state belongs to a model that is loaded.
pub struct Key(String);

impl Sessions {
    /// The place for prompts below the user's cache directory; `None` when nothing is to be kept, or cannot be.
    pub fn open(cache: Option<&Path>, bytes_max: u64, arguments: &[String]) -> Option<Self> {
        let directory = cache.filter(|_| bytes_max > 0)?.join("prompts");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        let made = made.and_then(|()| std::fs::set_permissions(&directory, Permissions::from_mode(0o700)));
        if let Err(error) = made {
            eprintln!(
                "hypura: warning: no prompts are kept: {}: {error}; HYPURA_CACHE names another place",
                directory.display()
            );
            return None;
        }
        let mut variables: Vec<_> = std::env::vars().filter(|(name, _)| name.starts_with("LLAMA_ARG_")).collect();
        variables.sort();
        let settings = format!("{arguments:?} {variables:?}");
        let words = arguments.iter().cloned().chain(variables.into_iter().map(|(_, value)| value)).collect();
        let sessions = Self { directory, bytes_max, settings, words };
        sessions.remove_abandoned();
        Some(sessions)
    }

    /// The directory, which llama-server is told with `--slot-save-path`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which files the settings name, and when each was last written to: an adapter decides about a state as the model does.
    ///
    /// To be asked before llama-server starts: what is written to a file later is not what it has loaded.
    pub fn versions_of_files(&self) -> String {
        versions_of_files_in(&self.words)
    }

    /// What tells the states of this model, context, llama-server and these [`Self::versions_of_files`] from others.
    pub fn key(&self, model: &Model, context_tokens: u32, versions: &str, properties: &Value) -> Key {
        let mut hash = Sha256::new();
        let (tokens, build) = (context_tokens.to_string(), properties["build_info"].to_string());
        for part in [&model.identity(), &tokens, &build, &self.settings, versions] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Writes what the slots hold. Failures cost only what would have been gained.
    pub async fn save(&self, key: &Key, model: &Model, upstream: &Upstream) {
        const PATIENCE: Duration = Duration::from_secs(60);
        let saving =
            tokio::time::timeout(PATIENCE, self.save_slots(key, kv_cache::bytes_per_token(&model.file), upstream));
        let (tokens, size_bytes) = saving.await.unwrap_or_default();
        self.remove_oldest();
        if tokens > 0 {
            let size = bytes(size_bytes);
            eprintln!(
                "hypura: prompts of {tokens} tokens are kept for the next start, {size} (HYPURA_CACHE=off keeps nothing)"
            );
        }
    }

    async fn save_slots(&self, key: &Key, token_bytes: u64, upstream: &Upstream) -> (u64, u64) {
        let slots = upstream.get("/slots").await.ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let (mut tokens_kept, mut bytes_kept) = (0, 0);
        for slot in slots.as_ref().and_then(Value::as_array).into_iter().flatten() {
            let (Some(id), tokens) = (slot["id"].as_u64(), slot["n_prompt_tokens"].as_u64().unwrap_or(0)) else {
                continue;
            };
            // One that is computing would be waited for.
            let is_worth_it = tokens >= TOKENS_MIN && slot["is_processing"] == false;
            if !is_worth_it || tokens.saturating_mul(token_bytes) > self.room() {
                continue;
            }
            let (part, whole) = (self.file(key, id, UNDER_WAY), self.file(key, id, WHOLE));
            match self.ask(upstream, id, "save", &part).await {
                Ok(_) if publish(&part, &whole).is_ok() => {
                    tokens_kept += tokens;
                    bytes_kept += std::fs::metadata(&whole).map_or(0, |status| status.len());
                }
                // Pictures cannot be written; the drive may be full.
                _ => drop(std::fs::remove_file(&part)),
            }
        }
        (tokens_kept, bytes_kept)
    }

    /// Gives the slots what they held when the same was last unloaded. Whether llama-server took it: where it did not, it may be
    /// ending, and what it holds is not known.
    pub async fn restore(&self, key: &Key, upstream: &Upstream, slots: u64) -> bool {
        let mut tokens = 0;
        for id in 0..slots {
            let (part, whole) = (self.file(key, id, UNDER_WAY), self.file(key, id, WHOLE));
            if std::fs::rename(&whole, &part).is_err() {
                continue;
            }
            match self.ask(upstream, id, "restore", &part).await {
                Ok(answer) => {
                    tokens += answer["n_restored"].as_u64().unwrap_or(0);
                    let _ = publish(&part, &whole);
                }
                Err(error) => {
                    let _ = std::fs::remove_file(&part);
                    eprintln!("hypura: a kept prompt is of no use and is removed: {}", error.message);
                    return false;
                }
            }
        }
        if tokens > 0 {
            eprintln!("hypura: prompts of {tokens} tokens are there from last time");
        }
        true
    }

    async fn ask(&self, upstream: &Upstream, slot: u64, action: &str, file: &Path) -> ApiResult<Value> {
        let name = file.file_name().map(|name| name.to_string_lossy());
        upstream.ask(&format!("/slots/{slot}?action={action}"), &json!({ "filename": name })).await
    }

    fn file(&self, key: &Key, slot: u64, kind: &str) -> PathBuf {
        self.directory.join(format!("{}-{slot}.{kind}", key.0))
    }

    /// Bytes that a file may have.
    fn room(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.directory)
            .map_or(u64::MAX, |drive| drive.f_bavail.saturating_mul(drive.f_frsize));
        self.bytes_max.min(free / FREE_SHARE)
    }

    /// Removes the files that were longest not used, until the rest is within the bound.
    fn remove_oldest(&self) {
        let mut files = self.files(WHOLE);
        let mut total: u64 = files.iter().map(|(_, size_bytes, _)| size_bytes).sum();
        files.sort();
        for (_, size_bytes, path) in files {
            if total <= self.bytes_max {
                break;
            }
            if std::fs::remove_file(path).is_ok() {
                total -= size_bytes;
            }
        }
    }

    /// Removes what a process that was killed has left. Another one may be writing right now.
    fn remove_abandoned(&self) {
        const LONG: Duration = Duration::from_secs(3600);
        let files = self.files(UNDER_WAY).into_iter();
        let abandoned = files.filter(|(modified, ..)| modified.elapsed().is_ok_and(|since| since > LONG));
        abandoned.for_each(|(.., path)| drop(std::fs::remove_file(path)));
    }

    /// Files of a kind: when they were last written or used, their sizes, where they are.
    fn files(&self, kind: &str) -> Vec<(SystemTime, u64, PathBuf)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let of_kind = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == kind));
        of_kind
            .filter_map(|path| {
                let status = std::fs::metadata(&path).ok()?;
                Some((status.modified().ok()?, status.len(), path))
            })
            .collect()
    }
}

fn versions_of_files_in(words: &[String]) -> String {
    // As arguments write them: a name, which may hold any character, "a.gguf:0.5,b.gguf", or either after "--lora=".
    let names = words.iter().flat_map(|word| {
        let value = word.split_once('=').map(|(_, value)| value);
        [word.as_str()].into_iter().chain(value).chain(word.split(['"', ',', ':', '=']))
    });
    let files = names.filter_map(|name| Some((name, std::fs::metadata(name).ok().filter(|status| status.is_file())?)));
    let versions: BTreeMap<_, _> = files.map(|(name, status)| (name, (status.len(), status.modified().ok()))).collect();
    format!("{versions:?}")
}

/// Gives a file that is complete its name; it counts as used now.
fn publish(part: &Path, whole: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(part, Permissions::from_mode(0o600))?;
    std::fs::File::options().append(true).open(part)?.set_modified(SystemTime::now())?;
    std::fs::rename(part, whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn the_oldest_go_first_and_what_is_too_much_goes() {
        let scratch = Scratch::make("sessions").unwrap();
        let sessions = Sessions::open(Some(scratch.path()), 250, &[]).unwrap();
        let path = |name: &str| sessions.directory().join(name);
        for (age_seconds, name) in
            [(30, "a.prompt"), (10, "b.prompt"), (20, "c.prompt"), (5000, "d.part"), (40, "e.part")]
        {
            std::fs::write(path(name), [0; 100]).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age_seconds);
            std::fs::File::options().append(true).open(path(name)).unwrap().set_modified(time).unwrap();
        }
        sessions.remove_oldest();
        sessions.remove_abandoned();
        let is_there = ["a.prompt", "b.prompt", "c.prompt", "d.part", "e.part"].map(|name| path(name).exists());
        assert_eq!(is_there, [false, true, true, false, true]);
        publish(&path("e.part"), &path("e.prompt")).unwrap();
        assert_eq!(path("e.prompt").metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(sessions.directory().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn files_that_settings_name_count() {
        let scratch = Scratch::make("sessions").unwrap();
        let [list, whole, value] = ["a.gguf", "of mine, v=1:2.gguf", "b,c.jinja"].map(|name| scratch.path().join(name));
        let arguments = [
            "--lora".to_owned(),
            format!("{}:0.5,none.gguf", list.display()),
            whole.display().to_string(),
            format!("-x={}", value.display()),
        ];
        let sessions = Sessions::open(Some(scratch.path()), 250, &arguments).unwrap();
        for file in [list, whole, value] {
            let absent = sessions.versions_of_files();
            std::fs::write(&file, "one").unwrap();
            let first = sessions.versions_of_files();
            std::fs::write(&file, "other").unwrap();
            let second = sessions.versions_of_files();
            assert!(absent != first && first != second && absent != second, "{}: {second}", file.display());
        }
    }

    #[test]
    fn nothing_is_kept_where_nothing_may_be() {
        let scratch = Scratch::make("sessions").unwrap();
        assert!(Sessions::open(None, 1 << 30, &[]).is_none());
        assert!(Sessions::open(Some(scratch.path()), 0, &[]).is_none());
        assert!(!scratch.path().join("prompts").exists());
    }
}
