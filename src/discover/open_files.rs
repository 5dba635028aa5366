//! The GGUFs that this process has open, as `/proc/self/fd` tells.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::io::FileIdentity;

/// A GGUF that is open for reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Where the kernel says that it is.
    pub path: PathBuf,
    /// What was opened.
    pub identity: FileIdentity,
    /// The numbers by which it is open.
    descriptors: Vec<u32>,
}

impl OpenFile {
    /// Whether any of the descriptors is still open on the same, unchanged file.
    pub fn is_open(&self) -> bool {
        self.descriptors.iter().any(|&descriptor| identity_of(descriptor) == Some(self.identity))
    }
}

/// All of them, each once. Empty where the system does not tell.
pub(super) fn open_ggufs() -> Vec<OpenFile> {
    let mut files: Vec<OpenFile> = Vec::new();
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for descriptor in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        let Some(file) = open_gguf(descriptor) else { continue };
        match files.iter_mut().find(|known| known.identity == file.identity) {
            Some(known) => known.descriptors.push(descriptor),
            None => files.push(file),
        }
    }
    files
}

fn open_gguf(descriptor: u32) -> Option<OpenFile> {
    let link = link(descriptor);
    let path = fs::read_link(&link).ok()?;
    let identity = identity_of(descriptor)?;
    if !path.is_absolute() || !is_a_loaders(descriptor) || !starts_with_magic(&link) {
        return None;
    }
    Some(OpenFile { path, identity, descriptors: vec![descriptor] })
}

fn link(descriptor: u32) -> String {
    format!("/proc/self/fd/{descriptor}")
}

/// `None` for what is not a regular file.
fn identity_of(descriptor: u32) -> Option<FileIdentity> {
    let metadata = fs::metadata(link(descriptor)).ok()?;
    metadata.is_file().then(|| FileIdentity::from_metadata(&metadata))
}

/// Loaders read, and open files with plain `fopen` or `open`. What closes on exec is opened by this library, which
/// streams another model, or by somebody else.
fn is_a_loaders(descriptor: u32) -> bool {
    let information = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap_or_default();
    let flags = information.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & libc::O_ACCMODE == libc::O_RDONLY && flags & libc::O_CLOEXEC == 0)
}

/// Through a descriptor of our own, because a loader's has a position.
fn starts_with_magic(link: impl AsRef<Path>) -> bool {
    let mut magic = [0; 4];
    File::open(link).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}
