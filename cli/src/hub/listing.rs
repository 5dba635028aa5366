//! What a repository of the hub holds.

use serde_json::Value;

use super::client::Client;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// What the cache calls its content: the SHA-256 of a large file, git's own hash of a small one.
    pub hash: String,
    /// Whether `hash` is a SHA-256 of the content.
    pub is_sha256: bool,
}

/// The files of a repository, as its `main` has them.
///
/// # Errors
/// A sentence that says what the hub answered.
pub fn files(client: &Client, repository: &str) -> Result<Vec<RemoteFile>, String> {
    let mut url = client.at(&format!("api/models/{repository}/tree/main?recursive=true"));
    let mut files = Vec::new();
    loop {
        let (page, next) = client.json(&url)?;
        files.extend(page.as_array().into_iter().flatten().filter_map(file));
        match next {
            Some(next) => url = next,
            None => return Ok(files),
        }
    }
}

/// Where a file's content is.
pub fn address(client: &Client, repository: &str, revision: &str, path: &str) -> String {
    client.at(&format!("{repository}/resolve/{revision}/{}", escaped(path)))
}

/// The commit that `main` is, by the hub's answer about one of its files.
///
/// # Errors
/// A sentence, also when the hub does not tell.
pub fn commit(client: &Client, repository: &str, path: &str) -> Result<String, String> {
    let url = address(client, repository, "main", path);
    let commit = client.header(&url, "x-repo-commit")?;
    let is_hash = |commit: &String| !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    commit.filter(is_hash).ok_or_else(|| format!("{url}: the server does not tell the file's commit (x-repo-commit)"))
}

fn file(entry: &Value) -> Option<RemoteFile> {
    if entry["type"] != "file" {
        return None;
    }
    let path = entry["path"].as_str()?;
    // The path becomes one on this machine.
    let is_safe = path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\\');
    let (size, lfs) = (entry["size"].as_u64()?, entry["lfs"]["oid"].as_str());
    let hash = lfs.or(entry["oid"].as_str())?.trim_start_matches("sha256:");
    let is_hash = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_safe && is_hash).then(|| RemoteFile {
        path: path.to_owned(),
        size_bytes: entry["lfs"]["size"].as_u64().unwrap_or(size),
        hash: hash.to_owned(),
        is_sha256: lfs.is_some(),
    })
}

/// A path as an address writes it.
fn escaped(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => text.push(byte as char),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_files_with_safe_paths() {
        let large =
            json!({"type": "file", "path": "a/b.gguf", "size": 130, "oid": "1f", "lfs": {"oid": "5a", "size": 7000}});
        let read = file(&large).unwrap();
        assert_eq!((read.size_bytes, read.hash.as_str(), read.is_sha256), (7000, "5a", true));
        let small = json!({"type": "file", "path": "config.json", "size": 9, "oid": "1f"});
        assert!(!file(&small).unwrap().is_sha256);
        for path in ["../a", "a//b", "/a", "a/./b", "a\\b"] {
            assert_eq!(file(&json!({"type": "file", "path": path, "size": 9, "oid": "1f"})), None, "{path}");
        }
        assert_eq!(file(&json!({"type": "directory", "path": "a", "size": 0, "oid": "1f"})), None);
        assert_eq!(file(&json!({"type": "file", "path": "a", "size": 9, "oid": "../x"})), None);
        assert_eq!(escaped("UD Q4/ä.gguf"), "UD%20Q4/%C3%A4.gguf");
    }
}
