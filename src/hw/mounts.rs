//! Mounts, as `mountinfo` tells of them, and what those that hide their drives are made of.

use std::path::{Path, PathBuf};

use super::hierarchy::unescape;

/// A mount.
pub(super) struct Mount {
    /// `MAJOR:MINOR`; the major number is 0 for file systems without a device of their own.
    pub(super) device: String,
    /// The directory of the file system that is seen at the mount point.
    top: PathBuf,
    pub(super) point: PathBuf,
    pub(super) file_system: String,
    /// What is mounted: a device, another machine's directory, or any word.
    pub(super) source: String,
    options: String,
}

impl Mount {
    /// The mount that a path is in.
    pub(super) fn of(root: &Path, path: &Path) -> Option<Self> {
        let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
        // Later mounts hide earlier ones at the same place.
        let mounts = mounts.lines().filter_map(Self::parse).filter(|mount| path.starts_with(&mount.point));
        mounts.max_by_key(|mount| mount.point.components().count())
    }

    /// `ID PARENT MAJOR:MINOR TOP POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER_OPTIONS`.
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let mut kind = kind.split(' ');
        Some(Self {
            device: place.next()?.to_owned(),
            top: unescape(place.next()?).into(),
            point: unescape(place.next()?).into(),
            file_system: kind.next()?.to_owned(),
            source: unescape(kind.next()?),
            options: unescape(kind.next().unwrap_or_default()),
        })
    }

    /// The directories that it lays over each other, outermost first: of an overlay, and of FUSE file systems that call
    /// themselves after them, as mergerfs does.
    pub(super) fn branches(&self) -> Vec<PathBuf> {
        let is_overlay = matches!(&*self.file_system, "overlay" | "fuse.fuse-overlayfs");
        let directories = |text: &str| -> Vec<PathBuf> {
            text.split(':').filter(|part| part.starts_with('/')).map(PathBuf::from).collect()
        };
        if !is_overlay {
            return if self.file_system.starts_with("fuse") { directories(&self.source) } else { Vec::new() };
        }
        let of = |names: &[&str]| -> Vec<PathBuf> {
            let options = self.options.split(',').filter_map(|option| option.split_once('='));
            options.filter(|(name, _)| names.contains(name)).flat_map(|(_, value)| directories(value)).collect()
        };
        // Kernels since 6.7 name each lower directory in an option of its own.
        [of(&["upperdir"]), of(&["lowerdir", "lowerdir+", "datadir+"])].concat()
    }

    /// The same file in one of its branches, if that can be seen from here: in a container it cannot.
    pub(super) fn file_below(&self, root: &Path, path: &Path) -> Option<PathBuf> {
        let size = |path: &Path| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
        let size_bytes = size(path)?;
        let within = self.top.strip_prefix("/").ok()?.join(path.strip_prefix(&self.point).ok()?);
        let files = self.branches().into_iter().map(|branch| branch.join(&within));
        // What a path of the world outside leads to in the mount itself is another file.
        let is_elsewhere = |file: &PathBuf| Self::of(root, file).is_none_or(|mount| mount.point != self.point);
        files.filter(is_elsewhere).find(|file| size(file) == Some(size_bytes))
    }
}
