//! Which drives a file lies on, as far as the system tells: through partitions, LVM and encryption (device mapper) and
//! RAID.
//!
//! Overlay and network file systems hide their drives. They are named as what they are, and how fast they read is up to
//! the measurement.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::hierarchy::unescape;

/// What a file system keeps its data on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveKind {
    /// Drives of this machine.
    Local,
    /// Another machine.
    Network,
    /// Other file systems, which a container does not see.
    Overlay,
    /// RAM.
    Memory,
    /// It cannot be told.
    Unknown,
}

impl DriveKind {
    /// For logs and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Network => "network",
            Self::Overlay => "overlay",
            Self::Memory => "memory",
            Self::Unknown => "unknown",
        }
    }
}

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, such as `nvme0n1`.
    pub name: String,
    /// What its maker calls it; empty when it does not say.
    pub model: String,
    /// Whether it has to move something to read elsewhere; `None` when the kernel does not tell.
    pub rotates: Option<bool>,
}

/// What a file lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// What kind of thing it is.
    pub kind: DriveKind,
    /// The file system's type, such as `ext4`; empty when unknown.
    pub file_system: String,
    /// What is between the file system and the drives, outermost first: `LVM`, `encryption`, `raid0`, `partition`.
    pub layers: Vec<String>,
    /// The drives.
    pub disks: Vec<Disk>,
    /// What could not be told: one sentence, or empty.
    pub note: String,
}

impl Drive {
    /// Tells this drive from others of the same machine: what measurements are remembered by.
    pub fn identity(&self) -> String {
        let disks: Vec<String> = self.disks.iter().map(|disk| format!("{} {}", disk.name, disk.model)).collect();
        let parts = [self.kind.name(), &self.file_system, &self.layers.join("+"), &disks.join("+")];
        parts.map(str::trim).join("/")
    }
}

const NETWORK: [&str; 14] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.sshfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
    "virtiofs",
];

/// Layers of devices that are followed at most: more is a loop.
const DEPTH_MAX: usize = 16;

/// What a file or directory lies on.
pub fn drive(path: &Path) -> Drive {
    drive_under(Path::new("/"), path)
}

/// Like [`drive`], with `root` in place of `/` for `proc` and `sys`.
pub fn drive_under(root: &Path, path: &Path) -> Drive {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    // Later mounts hide earlier ones at the same place.
    let mount = mounts.lines().filter_map(Mount::parse).filter(|mount| path.starts_with(&mount.point));
    let mount = mount.max_by_key(|mount| mount.point.components().count());
    let mut drive = Drive {
        kind: DriveKind::Unknown,
        file_system: mount.as_ref().map(|mount| mount.file_system.clone()).unwrap_or_default(),
        layers: Vec::new(),
        disks: Vec::new(),
        note: String::new(),
    };
    drive.kind = match &*drive.file_system {
        "overlay" | "aufs" | "fuse.fuse-overlayfs" => DriveKind::Overlay,
        "tmpfs" | "ramfs" => DriveKind::Memory,
        network if NETWORK.contains(&network) => DriveKind::Network,
        _ => DriveKind::Unknown,
    };
    if drive.kind != DriveKind::Unknown {
        if drive.kind != DriveKind::Memory {
            let kind = drive.kind.name();
            drive.note = format!("{} is on a file system of type {} ({kind})", path.display(), drive.file_system);
        }
        return drive;
    }
    match device_directory(root, mount.as_ref(), &path) {
        Some(directory) => {
            follow(&directory, &mut drive, 0);
            drive.kind = if drive.disks.is_empty() { DriveKind::Unknown } else { DriveKind::Local };
        }
        None => drive.note = format!("the system does not tell which drive {} is on", path.display()),
    }
    drive
}

/// What `mountinfo` tells of a mount.
struct Mount {
    /// `MAJOR:MINOR`; the major number is 0 for file systems without a device of their own.
    device: String,
    point: PathBuf,
    file_system: String,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let mut kind = kind.split(' ');
        let device = place.next()?.to_owned();
        let point = unescape(place.nth(1)?).into();
        Some(Self { device, point, file_system: kind.next()?.to_owned(), source: unescape(kind.next()?) })
    }
}

/// Where the kernel describes the device behind a mount.
fn device_directory(root: &Path, mount: Option<&Mount>, path: &Path) -> Option<PathBuf> {
    let number = match mount {
        Some(mount) => mount.device.clone(),
        None => {
            let device = std::fs::metadata(path).ok()?.dev();
            format!("{}:{}", libc::major(device), libc::minor(device))
        }
    };
    // A file system that spans drives, such as btrfs, has a number of its own, but names one of its drives.
    let name = mount.and_then(|mount| mount.source.strip_prefix("/dev/"));
    let places =
        [Some(root.join("sys/dev/block").join(number)), name.map(|name| root.join("sys/class/block").join(name))];
    places.into_iter().flatten().find_map(|place| std::fs::canonicalize(place).ok())
}

/// Goes from a device to the drives that it is made of.
fn follow(directory: &Path, drive: &mut Drive, depth: usize) {
    if depth == DEPTH_MAX {
        return;
    }
    let text = |file: &str| {
        let text = std::fs::read_to_string(directory.join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let mut layer = |name: String| {
        if drive.layers.last() != Some(&name) {
            drive.layers.push(name);
        }
    };
    if directory.join("partition").exists() {
        layer("partition".to_owned());
        return directory.parent().map_or((), |disk| follow(disk, drive, depth + 1));
    }
    let entries = std::fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
    let mut below: Vec<PathBuf> = entries.filter_map(|entry| std::fs::canonicalize(entry.path()).ok()).collect();
    below.sort();
    if below.is_empty() {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let rotates = text("queue/rotational").map(|digit| digit != "0");
        let disk = Disk { name, model: text("device/model").unwrap_or_default(), rotates };
        if !drive.disks.contains(&disk) {
            drive.disks.push(disk);
        }
        return;
    }
    layer(match (text("dm/uuid"), text("md/level")) {
        (_, Some(level)) => level,
        (Some(uuid), _) if uuid.starts_with("LVM-") => "LVM".to_owned(),
        (Some(uuid), _) if uuid.starts_with("CRYPT-") => "encryption".to_owned(),
        _ => "device mapper".to_owned(),
    });
    for device in below {
        follow(&device, drive, depth + 1);
    }
}
