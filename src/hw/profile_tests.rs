//! Profiles from trees that look like `/proc` and `/sys` of machines and containers.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::common::TestDirectory;

const MOUNT_CPU: &str = "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
const MOUNT_MEMORY: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
const MOUNT_TWO: &str = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

fn tree(cgroups: &str, mounts: &str) -> TestDirectory {
    let root = TestDirectory::new();
    root.write("proc/self/cgroup", cgroups);
    root.write("proc/self/mountinfo", mounts);
    root
}

#[test]
fn cores_are_those_allowed_within_the_tightest_quota() {
    let root = tree("0::/a/b\n", MOUNT_TWO);
    root.write("proc/self/status", "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-3,8,10-11\n");
    root.write("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
    root.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    let cores = cores_under(root.path());
    assert_eq!(cores, Cores { usable: 7, quota: Some(2.5), note: String::new() });
    assert_eq!(cores.parallel(), 3);

    let root = tree("3:cpu,cpuacct:/job\n", MOUNT_CPU);
    root.write("proc/self/status", "Cpus_allowed_list:\t0\n");
    root.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    root.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    root.write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "400000\n");
    root.write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
    let cores = cores_under(root.path());
    assert_eq!((cores.usable, cores.quota, cores.parallel()), (1, Some(4.0), 1));
}

#[test]
fn cores_that_are_not_told_are_guessed_and_the_note_says_so() {
    let usable = std::thread::available_parallelism().unwrap().get();
    for list in
        ["", "Cpus_allowed_list:\t3-1\n", "Cpus_allowed_list:\tall\n", "Cpus_allowed_list:\t0-99999999999999999999\n"]
    {
        let root = tree("", "");
        root.write("proc/self/status", list);
        let cores = cores_under(root.path());
        assert_eq!((cores.usable, cores.parallel()), (usable, usable), "{list}");
        assert!(cores.note.contains("are assumed"), "{}", cores.note);
    }
}

#[test]
fn pressure_is_the_highest_around_the_process() {
    let root = tree("0::/a/b\n", MOUNT_TWO);
    let line = |some, full| {
        format!("some avg10={some} avg60=0.00 avg300=0.00 total=1\nfull avg10={full} avg60=0.00 avg300=0.00 total=1\n")
    };
    root.write("sys/fs/cgroup/a/b/memory.pressure", line(1.5, 1.0));
    root.write("sys/fs/cgroup/a/memory.pressure", line(40.0, 0.5));
    assert_eq!(memory_pressure_under(root.path()), Some(MemoryPressure { some: 0.4, full: 0.01 }));
    root.write("proc/pressure/memory", line(50.0, 25.0));
    assert_eq!(memory_pressure_under(root.path()), Some(MemoryPressure { some: 0.5, full: 0.25 }));

    let root = tree("0::/a\n", MOUNT_TWO);
    for rubbish in ["", "some avg10=NaN\n", "some avg10=-1\n", "some avg10=900\n", "full avg10=1\n", "something\n"] {
        root.write("proc/pressure/memory", rubbish);
        assert_eq!(memory_pressure_under(root.path()), None, "{rubbish}");
    }
}

#[test]
fn events_are_summed_up_the_tree() {
    let root = tree("0::/a/b\n", MOUNT_TWO);
    root.write("sys/fs/cgroup/a/memory.events", "low 0\nhigh 2\nmax 3\noom 1\noom_kill 9\n");
    root.write("sys/fs/cgroup/a/b/memory.events", "low 0\nhigh 10\nmax 20\noom 0\noom_kill 0\n");
    let events = MemoryEvents { throttled: 12, limit_met: 23, out_of_memory: 1 };
    assert_eq!(memory_events_under(root.path()), Some(events));

    let root = tree("4:memory:/job\n", MOUNT_MEMORY);
    root.write("sys/fs/cgroup/memory/job/memory.failcnt", "7\n");
    root.write("sys/fs/cgroup/memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 3\n");
    let events = MemoryEvents { throttled: 0, limit_met: 7, out_of_memory: 1 };
    assert_eq!(memory_events_under(root.path()), Some(events));
    assert_eq!(memory_events_under(tree("", "").path()), None);
}

/// A device as `/sys` shows it: described under `devices`, found by its number.
fn device(root: &TestDirectory, number: &str, place: &str) {
    root.write(&format!("sys/devices/{place}/dev"), number);
    let by_number = root.path().join("sys/dev/block");
    std::fs::create_dir_all(&by_number).unwrap();
    symlink(format!("../../devices/{place}"), by_number.join(number)).unwrap();
}

fn slave(root: &TestDirectory, of: &str, place: &str) {
    let slaves = root.path().join(format!("sys/devices/{of}/slaves"));
    std::fs::create_dir_all(&slaves).unwrap();
    let name = Path::new(place).file_name().unwrap();
    symlink(root.path().join("sys/devices").join(place), slaves.join(name)).unwrap();
}

fn disk(name: &str, model: &str, rotates: Option<bool>) -> Disk {
    Disk { name: name.to_owned(), model: model.to_owned(), rotates }
}

#[test]
fn a_drive_is_found_through_lvm_encryption_raid_and_partitions() {
    let mounts =
        "27 1 8:1 / / rw - ext4 /dev/sda1 rw\n28 27 253:3 / /data/my\\040models rw - xfs /dev/mapper/vg-lv rw\n";
    let root = tree("", mounts);
    for (disk, minor) in [("nvme0n1", 0), ("nvme1n1", 5)] {
        device(&root, &format!("259:{minor}"), &format!("pci/nvme/{disk}"));
        root.write(&format!("sys/devices/pci/nvme/{disk}/queue/rotational"), "0\n");
        root.write(&format!("sys/devices/pci/nvme/{disk}/device/model"), "Fast 990   \n");
        device(&root, &format!("259:{}", minor + 1), &format!("pci/nvme/{disk}/{disk}p1"));
        root.write(&format!("sys/devices/pci/nvme/{disk}/{disk}p1/partition"), "1\n");
    }
    device(&root, "9:0", "virtual/block/md0");
    root.write("sys/devices/virtual/block/md0/md/level", "raid0\n");
    slave(&root, "virtual/block/md0", "pci/nvme/nvme0n1/nvme0n1p1");
    slave(&root, "virtual/block/md0", "pci/nvme/nvme1n1/nvme1n1p1");
    device(&root, "253:2", "virtual/block/dm-2");
    root.write("sys/devices/virtual/block/dm-2/dm/uuid", "CRYPT-LUKS2-abc\n");
    slave(&root, "virtual/block/dm-2", "virtual/block/md0");
    device(&root, "253:3", "virtual/block/dm-3");
    root.write("sys/devices/virtual/block/dm-3/dm/uuid", "LVM-abc\n");
    slave(&root, "virtual/block/dm-3", "virtual/block/dm-2");
    device(&root, "8:0", "pci/ata/sda");
    root.write("sys/devices/pci/ata/sda/queue/rotational", "1\n");
    device(&root, "8:1", "pci/ata/sda/sda1");
    root.write("sys/devices/pci/ata/sda/sda1/partition", "1\n");

    let found = drive_under(root.path(), Path::new("/data/my models/model.gguf"));
    assert_eq!((found.kind, &*found.file_system, &*found.note), (DriveKind::Local, "xfs", ""));
    assert_eq!(found.layers, ["LVM", "encryption", "raid0", "partition"]);
    assert_eq!(found.disks, [disk("nvme0n1", "Fast 990", Some(false)), disk("nvme1n1", "Fast 990", Some(false))]);
    assert_eq!(found.identity(), "local/xfs/LVM+encryption+raid0+partition/nvme0n1 Fast 990+nvme1n1 Fast 990");

    let found = drive_under(root.path(), Path::new("/data/other.gguf"));
    assert_eq!((found.kind, found.layers), (DriveKind::Local, vec!["partition".to_owned()]));
    assert_eq!(found.disks, [disk("sda", "", Some(true))]);
}

#[test]
fn a_file_system_with_a_number_of_its_own_is_found_by_the_drive_that_it_names() {
    let root = tree("", "27 1 0:25 / / rw - btrfs /dev/vda rw\n");
    root.write("sys/devices/virtio/vda/queue/rotational", "0\n");
    std::fs::create_dir_all(root.path().join("sys/class/block")).unwrap();
    symlink("../../devices/virtio/vda", root.path().join("sys/class/block/vda")).unwrap();
    let found = drive_under(root.path(), Path::new("/model.gguf"));
    assert_eq!((found.kind, found.disks), (DriveKind::Local, vec![disk("vda", "", Some(false))]));
}

#[test]
fn all_drives_of_a_btrfs_are_named() {
    let root = tree("", "27 1 0:25 / / rw - btrfs /dev/vdb rw\n28 1 0:26 / /big rw - bcachefs /dev/vda:/dev/vdc rw\n");
    std::fs::create_dir_all(root.path().join("sys/class/block")).unwrap();
    for name in ["vda", "vdb", "vdc"] {
        root.write(&format!("sys/devices/virtio/{name}/queue/rotational"), "0\n");
        symlink(format!("../../devices/virtio/{name}"), root.path().join("sys/class/block").join(name)).unwrap();
    }
    for (file_system, names) in [("5a5a", vec!["vdc"]), ("c0ffee", vec!["vda", "vdb"])] {
        let devices = root.path().join("sys/fs/btrfs").join(file_system).join("devices");
        std::fs::create_dir_all(&devices).unwrap();
        for name in names {
            symlink(format!("../../../../devices/virtio/{name}"), devices.join(name)).unwrap();
        }
    }
    let names = |path: &str| -> Vec<String> {
        let found = drive_under(root.path(), Path::new(path));
        assert_eq!(found.kind, DriveKind::Local);
        found.disks.into_iter().map(|disk| disk.name).collect()
    };
    assert_eq!(names("/model.gguf"), ["vda", "vdb"]);
    assert_eq!(names("/big/model.gguf"), ["vda", "vdc"]);
}

#[test]
fn a_loop_device_and_what_lies_in_layers_is_followed_to_the_drive() {
    let root = tree("", "");
    let at = |place: &str| root.path().join(place);
    for directory in ["image", "lower", "upper", "merged", "pool", "disk1", "disk2", "looped", "gone"] {
        std::fs::create_dir_all(at(directory)).unwrap();
    }
    let path = |place: &str| std::fs::canonicalize(at(place)).unwrap().display().to_string();
    let options = format!("rw,lowerdir={}:{},upperdir={},workdir=/w", path("gone"), path("lower"), path("upper"));
    let mounts = [
        "27 1 8:0 / / rw - ext4 /dev/sda rw".to_owned(),
        format!("28 1 7:3 / {} rw - ext4 /dev/loop3 rw", path("looped")),
        format!("29 1 0:30 / {} rw - overlay none {options}", path("merged")),
        format!("30 1 0:31 / {} rw - fuse.mergerfs {}:{} rw", path("pool"), path("disk1"), path("disk2")),
    ];
    root.write("proc/self/mountinfo", mounts.join("\n"));
    device(&root, "8:0", "pci/ata/sda");
    device(&root, "7:3", "virtual/block/loop3");
    root.write("sys/devices/virtual/block/loop3/loop/backing_file", format!("{}/disk.img\n", path("image")));
    for file in ["image/disk.img", "looped/m.gguf", "merged/m.gguf", "lower/m.gguf", "pool/m.gguf", "disk2/m.gguf"] {
        root.write(file, "model");
    }
    root.write("disk1/m.gguf", "another file of this name");
    for (file, layers) in [("looped/m.gguf", "loop"), ("merged/m.gguf", "overlay"), ("pool/m.gguf", "mergerfs")] {
        let found = drive_under(root.path(), &at(file));
        assert_eq!((found.kind, &*found.note, found.layers), (DriveKind::Local, "", vec![layers.to_owned()]), "{file}");
        assert_eq!(found.disks, [disk("sda", "", None)], "{file}");
    }
    std::fs::remove_file(at("image/disk.img")).unwrap();
    let found = drive_under(root.path(), &at("looped/m.gguf"));
    assert_eq!(found.disks, [disk("loop3", "", None)]);
    assert!(found.note.contains("disk.img") && found.note.contains("cannot be seen"), "{}", found.note);
    std::fs::remove_file(at("lower/m.gguf")).unwrap();
    let found = drive_under(root.path(), &at("merged/m.gguf"));
    assert_eq!(found.kind, DriveKind::Overlay);
    assert!(found.note.contains(&format!("{} and 2 more", path("upper"))), "{}", found.note);
}

#[test]
fn file_systems_that_hide_their_drives_are_named() {
    let mounts = "1 1 0:25 / / rw - overlay overlay rw,lowerdir=/a:/b,upperdir=/c\n5 1 0:29 / /cloud rw - fuse.rclone remote: rw\n2 1 0:26 / /nas rw - nfs4 server:/x rw\n\
                  3 1 0:27 / /ram rw - tmpfs tmpfs rw\n4 1 0:28 / /odd rw - oddfs none rw\nnonsense\n";
    let root = tree("", mounts);
    for (path, kind, note) in [
        ("/model.gguf", DriveKind::Overlay, "overlay (overlay), of /c and 2 more"),
        ("/nas/model.gguf", DriveKind::Network, "nfs4 (network), of server:/x"),
        ("/cloud/model.gguf", DriveKind::Unknown, "fuse.rclone (user space), of remote:"),
        ("/ram/model.gguf", DriveKind::Memory, ""),
        ("/odd/model.gguf", DriveKind::Unknown, "does not tell which drive"),
    ] {
        let found = drive_under(root.path(), Path::new(path));
        assert_eq!((found.kind, found.disks.len()), (kind, 0), "{path}");
        assert!(found.note.contains(note) && found.note.is_empty() == note.is_empty(), "{path}: {}", found.note);
    }
    assert_eq!(drive_under(root.path(), Path::new("/nas/model.gguf")).identity(), "network/nfs4// server:/x");
}

#[test]
fn devices_that_contain_each_other_do_not_trap() {
    let root = tree("", "1 1 253:0 / / rw - ext4 /dev/dm-0 rw\n");
    device(&root, "253:0", "virtual/block/dm-0");
    slave(&root, "virtual/block/dm-0", "virtual/block/dm-0");
    assert_eq!(drive_under(root.path(), Path::new("/x")).kind, DriveKind::Unknown);
}

#[test]
fn a_profile_tells_everything_that_it_read() {
    let root = tree("0::/a\n", &format!("{MOUNT_TWO}27 1 8:0 / / rw - ext4 /dev/sda rw\n"));
    root.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: A Processor 9000\nprocessor\t: 1\n");
    root.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 500 kB\nSwapTotal: 64 kB\nSwapFree: 32 kB\n");
    root.write("proc/self/status", "Cpus_allowed_list:\t0-1\n");
    root.write("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    root.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    root.write("sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n");
    device(&root, "8:0", "ata/sda");
    let mut profile = profile_under(root.path(), Path::new("/model.gguf"));
    assert_eq!(profile.notes, Vec::<String>::new());
    assert_eq!(profile.machine(), "A Processor 9000, 2 cores");
    assert_eq!(profile.swap, Some(Swap { total_bytes: 64 << 10, free_bytes: 32 << 10 }));
    assert_eq!(profile.huge_pages, HugePages { mode: HugePageMode::OnRequest, page_bytes: Some(2 << 20) });
    profile.drive_bytes_per_second = Some(6e9);
    let json = profile.to_json();
    assert_eq!(json["memory"]["available_bytes"], 500 << 10);
    assert_eq!(json["cores"]["parallel"], 2);
    assert_eq!(json["drive"]["disks"][0]["name"], "sda");
    assert_eq!(json["drive"]["bytes_per_second"], 6e9);
    assert_eq!(json["huge_pages"]["mode"], "madvise");
    assert_eq!(json["events"], serde_json::Value::Null);
}

#[test]
fn an_empty_tree_gives_a_cautious_profile_that_says_what_it_guessed() {
    let root = TestDirectory::new();
    let profile = profile_under(root.path(), &root.path().join("model.gguf"));
    assert!(profile.memory.available_bytes > 0 && profile.cores.parallel() > 0);
    assert_eq!((profile.swap, profile.pressure, profile.events), (None, None, None));
    for about in ["memory is a guess", "swap", "huge pages", "cores", "memory pressure", "which drive"] {
        assert_eq!(profile.notes.iter().filter(|note| note.contains(about)).count(), 1, "{about}: {:?}", profile.notes);
    }
}

#[test]
fn this_machine_has_a_profile() {
    let profile = profile(&std::env::temp_dir());
    assert!(profile.cores.usable > 0 && profile.memory.limit_bytes > 0, "{profile:?}");
    assert_eq!(profile.to_json()["cores"]["usable"], profile.cores.usable);
}
