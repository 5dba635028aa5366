//! Where the cgroups around this process are.
//!
//! A *hierarchy* is one mounted tree of cgroups: the single one of version 2, or the one that a controller of version 1
//! is bound to. Hybrid systems mount both, and only one of them has the controller's files, so both are looked at. A
//! limit binds everything below it, so every cgroup from the process's own up to the top of the mount matters.

use std::path::{Component, Path, PathBuf};

/// What a cgroup limits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }

    /// A file of version 1 that shows that a directory belongs to the controller.
    fn mark(self) -> &'static str {
        match self {
            Self::Memory => "memory.limit_in_bytes",
            Self::Cpu => "cpu.cfs_quota_us",
        }
    }
}

/// A cgroup of this process, or one around it.
pub(super) struct Cgroup {
    pub(super) version: Version,
    pub(super) directory: PathBuf,
    /// The path within its hierarchy, as far as it is visible.
    pub(super) name: String,
}

/// The cgroups around this process that may limit something, innermost first in each hierarchy; `root` replaces `/` in
/// every path.
pub(super) fn cgroups_under(root: &Path, controller: Controller) -> Vec<Cgroup> {
    let memberships = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let mut cgroups = Vec::new();
    for version in [Version::One, Version::Two] {
        let path = memberships.lines().find_map(|line| membership(line, version, controller));
        let mounts: Vec<Mount> = mounts.lines().filter_map(|line| Mount::parse(line, version, controller)).collect();
        if let Some(location) = locate(root, version, controller, path, &mounts) {
            let ancestors = location.ancestors();
            cgroups.extend(ancestors.map(|(directory, name)| Cgroup { version, directory, name }));
        }
    }
    cgroups
}

/// The number in a cgroup's file; `None` when it is missing, unreadable or `max`.
pub(super) fn number(directory: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A mounted hierarchy.
struct Mount {
    /// The cgroup that is visible at the mount point.
    top: PathBuf,
    /// Where it is mounted, without the leading `/`.
    point: PathBuf,
}

impl Mount {
    /// Parses a line of `mountinfo`:
    /// `ID PARENT MAJOR:MINOR TOP POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER_OPTIONS`.
    fn parse(line: &str, version: Version, controller: Controller) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (file_system, super_options) = (kind.next()?, kind.nth(1)?);
        let matches = match version {
            Version::One => {
                file_system == "cgroup" && super_options.split(',').any(|option| option == controller.name())
            }
            Version::Two => file_system == "cgroup2",
        };
        if !matches {
            return None;
        }
        let mut place = place.split(' ').skip(3);
        let (top, point) = (unescape(place.next()?), unescape(place.next()?));
        Some(Self { top: top.into(), point: point.trim_start_matches('/').into() })
    }
}

/// The process's cgroup in one hierarchy, as far as the mount shows it.
struct Location {
    mount_directory: PathBuf,
    top: PathBuf,
    /// The cgroup below the top of the mount; empty when it is the top itself or not visible.
    below: PathBuf,
}

impl Location {
    /// Every directory from the process's cgroup to the mount point, each with its name in the hierarchy.
    fn ancestors(&self) -> impl Iterator<Item = (PathBuf, String)> {
        self.below.ancestors().map(|below| {
            let mut name = self.top.clone();
            // Joining an empty path would only append a slash.
            if !below.as_os_str().is_empty() {
                name.push(below);
            }
            (self.mount_directory.join(below), name.display().to_string())
        })
    }
}

/// The path in a line of `/proc/self/cgroup`, `ID:CONTROLLERS:PATH`, when it belongs to the hierarchy.
fn membership(line: &str, version: Version, controller: Controller) -> Option<&Path> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let matches = match version {
        Version::One => controllers.split(',').any(|bound| bound == controller.name()),
        Version::Two => id == "0" && controllers.is_empty(),
    };
    matches.then(|| Path::new(path))
}

/// Finds the directory of the process's cgroup.
///
/// In a container the path may be told from the host's point of view and mean nothing under the mount. Then the
/// container's own cgroup is what the runtime mounted, so the top of the mount is the one to ask.
fn locate(
    root: &Path,
    version: Version,
    controller: Controller,
    path: Option<&Path>,
    mounts: &[Mount],
) -> Option<Location> {
    for mount in mounts {
        let mount_directory = root.join(&mount.point);
        let below = path.and_then(|path| path.strip_prefix(&mount.top).ok());
        if let Some(below) = below.filter(|below| is_visible(&mount_directory, below)) {
            return Some(Location { mount_directory, top: mount.top.clone(), below: below.to_owned() });
        }
    }
    if let Some(mount) = mounts.first() {
        let mount_directory = root.join(&mount.point);
        return Some(Location { mount_directory, top: "/".into(), below: PathBuf::new() });
    }
    // Without a list of mounts, try where they usually are.
    let (usual, mark) = match version {
        Version::One => (format!("sys/fs/cgroup/{}", controller.name()), controller.mark()),
        Version::Two => ("sys/fs/cgroup".to_owned(), "cgroup.controllers"),
    };
    let mount_directory = root.join(usual);
    if !mount_directory.join(mark).exists() {
        return None;
    }
    let below = path.and_then(|path| path.strip_prefix("/").ok());
    let below = below.filter(|below| is_visible(&mount_directory, below)).unwrap_or(Path::new("")).to_owned();
    Some(Location { mount_directory, top: "/".into(), below })
}

/// Whether a path stays below the mount, which `..` (a cgroup outside of the process's namespace) does not, and exists.
fn is_visible(mount_directory: &Path, below: &Path) -> bool {
    below.components().all(|component| matches!(component, Component::Normal(_)))
        && mount_directory.join(below).is_dir()
}

/// Undoes the octal escapes (`\040` for a space) that `mountinfo` uses in paths.
pub(super) fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = if first == b'\\' { after.get(..3).and_then(octal) } else { None };
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_with_escapes_and_tags() {
        let line = r"41 31 0:38 /a\040b /sys/fs/cgroup/uni\134fied rw,relatime shared:9 master:1 - cgroup2 none rw";
        let mount = Mount::parse(line, Version::Two, Controller::Memory).unwrap();
        assert_eq!(mount.top, Path::new("/a b"));
        assert_eq!(mount.point, Path::new(r"sys/fs/cgroup/uni\fied"));
        assert!(Mount::parse(line, Version::One, Controller::Memory).is_none());
    }

    #[test]
    fn the_memory_controller_is_found_by_its_own_name() {
        let line = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert!(Mount::parse(line, Version::One, Controller::Memory).is_some());
        assert!(
            Mount::parse(&line.replace("rw,memory", "rw,memory_recursiveprot"), Version::One, Controller::Memory)
                .is_none()
        );
        assert_eq!(membership("4:cpu,memory:/a:b", Version::One, Controller::Memory), Some(Path::new("/a:b")));
        assert_eq!(membership("4:memoryx:/a", Version::One, Controller::Memory), None);
        assert_eq!(membership("0::/c", Version::Two, Controller::Memory), Some(Path::new("/c")));
        assert_eq!(membership("1:name=systemd:/c", Version::Two, Controller::Memory), None);
    }
}
