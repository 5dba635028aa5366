//! Which drives a file lies on, as far as the system tells: through partitions, LVM and encryption (device mapper), RAID,
//! loop devices, and file systems that lay directories over each other.
//!
//! What cannot be seen from here (a container's layers, another machine) is named, and how fast it reads is up to the
//! measurement.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mounts::Mount;

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
    /// What is between the file system and the drives, outermost first: `overlay`, `loop`, `LVM`, `encryption`, `raid0`,
    /// `partition`.
    pub layers: Vec<String>,
    /// The drives.
    pub disks: Vec<Disk>,
    /// What a file system that hides its drives says it shows, such as `server:/models`; empty where drives are known.
    pub source: String,
    /// What could not be told: one sentence, or empty.
    pub note: String,
}

impl Drive {
    /// Tells this drive from others of the same machine: what measurements are remembered by.
    pub fn identity(&self) -> String {
        let disks: Vec<String> = self.disks.iter().map(|disk| format!("{} {}", disk.name, disk.model)).collect();
        let parts = [self.kind.name(), &self.file_system, &self.layers.join("+"), &disks.join("+")];
        let known = parts.map(str::trim).join("/");
        // Two servers are two drives.
        if self.source.is_empty() { known } else { format!("{known} {}", self.source) }
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
    let mut drive = Drive {
        kind: DriveKind::Unknown,
        file_system: String::new(),
        layers: Vec::new(),
        disks: Vec::new(),
        source: String::new(),
        note: String::new(),
    };
    find(root, path, &mut drive, 0);
    drive
}

/// Adds what a path lies on. `depth` counts the file systems and devices around it.
fn find(root: &Path, path: &Path, drive: &mut Drive, depth: usize) {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mount = Mount::of(root, &path);
    let file_system = mount.as_ref().map(|mount| mount.file_system.clone()).unwrap_or_default();
    if depth == 0 {
        drive.file_system.clone_from(&file_system);
    }
    let below = mount.as_ref().filter(|_| depth < DEPTH_MAX).and_then(|mount| mount.file_below(root, &path));
    if let Some(below) = below {
        drive.layers.push(file_system.trim_start_matches("fuse.").to_owned());
        return find(root, &below, drive, depth + 1);
    }
    drive.kind = match &*file_system {
        "overlay" | "aufs" | "fuse.fuse-overlayfs" => DriveKind::Overlay,
        "tmpfs" | "ramfs" => DriveKind::Memory,
        network if NETWORK.contains(&network) => DriveKind::Network,
        _ => DriveKind::Unknown,
    };
    match (drive.kind, &mount) {
        (DriveKind::Memory, _) => return,
        (DriveKind::Unknown, Some(mount)) if mount.file_system.starts_with("fuse.") => {
            return name(mount, &path, drive);
        }
        (DriveKind::Unknown, _) => {}
        (_, Some(mount)) => return name(mount, &path, drive),
        (_, None) => {}
    }
    let directories = device_directories(root, mount.as_ref(), &path);
    for directory in &directories {
        follow(root, directory, drive, depth + 1);
    }
    if !drive.disks.is_empty() {
        drive.kind = DriveKind::Local;
    } else if directories.is_empty() {
        drive.note = format!("the system does not tell which drive {} is on", path.display());
    }
}

/// Names a file system whose drives are not to be seen from here.
fn name(mount: &Mount, path: &Path, drive: &mut Drive) {
    let branches: Vec<String> = mount.branches().iter().map(|branch| branch.display().to_string()).collect();
    let what = match branches.first() {
        // Of an overlay the source is any word; its layers may be dozens, of which the first has what was written last.
        Some(first) if drive.kind == DriveKind::Overlay => format!("{first} and {} more", branches.len() - 1),
        _ => mount.source.clone(),
    };
    if drive.kind != DriveKind::Overlay {
        drive.source.clone_from(&mount.source);
    }
    let kind = if drive.kind == DriveKind::Unknown { "user space" } else { drive.kind.name() };
    let file_system = &mount.file_system;
    drive.note = format!("{} is on a file system of type {file_system} ({kind}), of {what}", path.display());
}

/// Where the kernel describes the devices behind a mount: one, most of the time.
fn device_directories(root: &Path, mount: Option<&Mount>, path: &Path) -> Vec<PathBuf> {
    let number = match mount {
        Some(mount) => Some(mount.device.clone()),
        None => std::fs::metadata(path).ok().map(|file| {
            let device = file.dev();
            format!("{}:{}", libc::major(device), libc::minor(device))
        }),
    };
    let existing = |place: PathBuf| std::fs::canonicalize(place).ok();
    if let Some(directory) = number.and_then(|number| existing(root.join("sys/dev/block").join(number))) {
        return vec![directory];
    }
    // A file system that spans drives has a number of its own. bcachefs names all of its drives, btrfs one of them.
    let named = mount.map(|mount| mount.source.split(':')).into_iter().flatten();
    let named: Vec<PathBuf> = named
        .filter_map(|device| device.strip_prefix("/dev/"))
        .filter_map(|device| existing(root.join("sys/class/block").join(kernel_name(root, device))))
        .collect();
    match named.first() {
        Some(first) if named.len() == 1 => of_same_btrfs(root, first).unwrap_or(named),
        _ => named,
    }
}

/// `/dev/mapper/NAME` is a link, which the kernel does not know by that name.
fn kernel_name(root: &Path, device: &str) -> String {
    let target = std::fs::canonicalize(root.join("dev").join(device)).ok();
    let name = target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| device.to_owned())
}

/// All devices of the btrfs that a device is part of.
fn of_same_btrfs(root: &Path, device: &Path) -> Option<Vec<PathBuf>> {
    let file_systems = std::fs::read_dir(root.join("sys/fs/btrfs")).ok()?.flatten();
    let devices = |place: PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(place.join("devices")).into_iter().flatten().flatten();
        let mut devices: Vec<PathBuf> = entries.filter_map(|entry| std::fs::canonicalize(entry.path()).ok()).collect();
        devices.sort();
        devices
    };
    file_systems.map(|entry| devices(entry.path())).find(|devices| devices.iter().any(|other| other == device))
}

/// Goes from a device to the drives that it is made of.
fn follow(root: &Path, directory: &Path, drive: &mut Drive, depth: usize) {
    if depth >= DEPTH_MAX {
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
        return directory.parent().map_or((), |disk| follow(root, disk, drive, depth + 1));
    }
    if let Some(file) = text("loop/backing_file") {
        layer("loop".to_owned());
        let file = Path::new(file.trim_end_matches(" (deleted)"));
        if file.exists() {
            return find(root, file, drive, depth + 1);
        }
        drive.note = format!("{}, the file of a loop device, cannot be seen from here", file.display());
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
        follow(root, &device, drive, depth + 1);
    }
}
