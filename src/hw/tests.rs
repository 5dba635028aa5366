//! Reports from trees that look like `/proc` and `/sys` of machines and containers.

use super::*;
use crate::common::TestDirectory;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Version 1 without a limit, as the kernel writes it.
const UNLIMITED: &str = "9223372036854771712\n";

const MOUNT_ONE: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:13 - cgroup cgroup rw,memory\n";
const MOUNT_TWO: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

/// A machine with 64 GiB, of which 48 are available.
fn machine(cgroups: &str, mounts: &str) -> TestDirectory {
    let root = TestDirectory::new();
    let (total, available) = (64 * GIB / KIB, 48 * GIB / KIB);
    root.write("proc/meminfo", format!("MemTotal: {total:>12} kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n"));
    root.write("proc/self/cgroup", cgroups);
    root.write("proc/self/mountinfo", format!("22 27 0:21 / /proc rw - proc proc rw\nnonsense\n{mounts}"));
    root
}

fn cgroup_one(root: &TestDirectory, path: &str, limit: &str, usage: u64, inactive: u64, active: u64) {
    let directory = format!("sys/fs/cgroup/memory{path}");
    root.write(&format!("{directory}/memory.limit_in_bytes"), limit);
    root.write(&format!("{directory}/memory.usage_in_bytes"), format!("{usage}\n"));
    root.write(
        &format!("{directory}/memory.stat"),
        // The figures without `total_` are those of the cgroup without its children: not the ones to use.
        format!(
            "cache 1\ninactive_file 7\nactive_file 7\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n"
        ),
    );
}

fn cgroup_two(root: &TestDirectory, path: &str, max: &str, high: &str, usage: u64, inactive: u64, active: u64) {
    let directory = format!("sys/fs/cgroup{path}");
    root.write(&format!("{directory}/memory.max"), max);
    root.write(&format!("{directory}/memory.high"), high);
    root.write(&format!("{directory}/memory.current"), format!("{usage}\n"));
    root.write(
        &format!("{directory}/memory.stat"),
        format!("anon 1\ninactive_file {inactive}\nactive_file {active}\n"),
    );
}

#[track_caller]
fn assert_report(root: &TestDirectory, available_bytes: u64, limit_bytes: u64, limited_by: &str) {
    let expected = MemoryReport { available_bytes, limit_bytes, limited_by: limited_by.to_owned() };
    assert_eq!(memory_under(root.path()), expected);
}

#[test]
fn a_machine_without_limits() {
    let root = machine("0::/user.slice\n", MOUNT_TWO);
    cgroup_two(&root, "/user.slice", "max\n", "max\n", GIB, 0, 0);
    assert_report(&root, 48 * GIB, 64 * GIB, "machine");

    let root = machine("4:memory:/\n", MOUNT_ONE);
    cgroup_one(&root, "", UNLIMITED, GIB, 0, 0);
    assert_report(&root, 48 * GIB, 64 * GIB, "machine");
}

#[test]
fn version_one_counts_page_cache_as_available() {
    let root = machine("5:cpu,cpuacct:/x\n4:memory:/app\n", MOUNT_ONE);
    cgroup_one(&root, "", UNLIMITED, 30 * GIB, 0, 0);
    cgroup_one(&root, "/app", &format!("{}\n", 8 * GIB), 6 * GIB, 3 * GIB, GIB);
    assert_report(&root, 6 * GIB, 8 * GIB, "cgroup /app");
}

#[test]
fn version_one_tells_of_limits_above_the_container() {
    let root = machine("4:memory:/\n", MOUNT_ONE);
    cgroup_one(&root, "", UNLIMITED, GIB, 0, 0);
    root.write("sys/fs/cgroup/memory/memory.stat", format!("hierarchical_memory_limit {}\n", 4 * GIB));
    assert_report(&root, 3 * GIB, 4 * GIB, "cgroup /");
}

#[test]
fn version_two_counts_page_cache_as_available() {
    let root = machine("0::/app\n", MOUNT_TWO);
    cgroup_two(&root, "/app", &format!("{}\n", 8 * GIB), "max\n", 6 * GIB, 3 * GIB, GIB);
    assert_report(&root, 6 * GIB, 8 * GIB, "cgroup /app");
}

#[test]
fn version_two_heeds_the_throttling_limit() {
    let root = machine("0::/app\n", MOUNT_TWO);
    cgroup_two(&root, "/app", &(8 * GIB).to_string(), &(5 * GIB).to_string(), GIB, 0, 0);
    assert_report(&root, 4 * GIB, 5 * GIB, "cgroup /app");
}

#[test]
fn the_tightest_ancestor_counts() {
    // The parent has the larger limit, but its other children have used most of it.
    let root = machine("0::/slice/scope/app\n", MOUNT_TWO);
    cgroup_two(&root, "/slice", &(16 * GIB).to_string(), "max\n", 14 * GIB, 0, 0);
    cgroup_two(&root, "/slice/scope", "max\n", "max\n", 2 * GIB, 0, 0);
    cgroup_two(&root, "/slice/scope/app", &(8 * GIB).to_string(), "max\n", GIB, 0, 0);
    assert_report(&root, 2 * GIB, 8 * GIB, "cgroup /slice");
}

#[test]
fn usage_beyond_the_limit_leaves_nothing() {
    let root = machine("0::/app\n", MOUNT_TWO);
    cgroup_two(&root, "/app", &GIB.to_string(), "max\n", 2 * GIB, 0, 0);
    assert_report(&root, 0, GIB, "cgroup /app");
}

#[test]
fn a_limit_beyond_the_machine_changes_nothing() {
    let root = machine("0::/app\n", MOUNT_TWO);
    cgroup_two(&root, "/app", &(900 * GIB).to_string(), "max\n", GIB, 0, 0);
    assert_report(&root, 48 * GIB, 64 * GIB, "machine");
}

#[test]
fn hybrid_mounts_use_the_hierarchy_that_has_memory() {
    let mounts = format!("{MOUNT_ONE}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    let root = machine("4:memory:/app\n1:name=systemd:/app\n0::/app\n", &mounts);
    root.write("sys/fs/cgroup/unified/app/cgroup.procs", "1\n");
    cgroup_one(&root, "/app", &(8 * GIB).to_string(), GIB, 0, 0);
    assert_report(&root, 7 * GIB, 8 * GIB, "cgroup /app");
}

#[test]
fn a_container_whose_mount_is_its_own_cgroup() {
    // Version 1 in the host's cgroup namespace: the mount shows the container's part of the tree only.
    let mount = MOUNT_ONE.replace(" / /sys", " /docker/abc /sys");
    let root = machine("4:memory:/docker/abc/worker\n", &mount);
    cgroup_one(&root, "", &(4 * GIB).to_string(), 2 * GIB, 0, 0);
    cgroup_one(&root, "/worker", &(3 * GIB).to_string(), 512 * MIB, 0, 0);
    assert_report(&root, 2 * GIB, 3 * GIB, "cgroup /docker/abc");
}

#[test]
fn a_container_whose_path_is_not_visible_uses_the_top_of_the_mount() {
    for path in ["/kubepods/pod1/abc", "/../../elsewhere", "/.."] {
        let root = machine(&format!("0::{path}\n"), MOUNT_TWO);
        cgroup_two(&root, "", &(4 * GIB).to_string(), "max\n", GIB, 0, 0);
        assert_report(&root, 3 * GIB, 4 * GIB, "cgroup /");
    }
    // A mount from above the namespace.
    let root = machine("0::/app\n", &MOUNT_TWO.replace(" / /sys", " /../.. /sys"));
    cgroup_two(&root, "", &(4 * GIB).to_string(), "max\n", GIB, 0, 0);
    assert_report(&root, 3 * GIB, 4 * GIB, "cgroup /");
}

#[test]
fn without_a_list_of_mounts_the_usual_places_are_tried() {
    let root = machine("0::/app\n", "");
    root.write("sys/fs/cgroup/cgroup.controllers", "memory\n");
    cgroup_two(&root, "/app", &(4 * GIB).to_string(), "max\n", GIB, 0, 0);
    assert_report(&root, 3 * GIB, 4 * GIB, "cgroup /app");

    let root = machine("4:memory:/gone\n", "");
    cgroup_one(&root, "", &(4 * GIB).to_string(), GIB, 0, 0);
    assert_report(&root, 3 * GIB, 4 * GIB, "cgroup /");
}

#[test]
fn missing_statistics_are_taken_for_the_worst() {
    let root = machine("0::/app\n", MOUNT_TWO);
    root.write("sys/fs/cgroup/app/memory.max", (4 * GIB).to_string());
    root.write("sys/fs/cgroup/app/memory.current", (3 * GIB).to_string());
    assert_report(&root, GIB, 4 * GIB, "cgroup /app");

    std::fs::remove_file(root.path().join("sys/fs/cgroup/app/memory.current")).unwrap();
    let why = "unknown: cgroup /app does not tell its usage; half of its limit is assumed";
    assert_report(&root, 2 * GIB, 4 * GIB, why);
}

#[test]
fn an_old_kernel_does_not_tell_what_is_available() {
    let root = TestDirectory::new();
    root.write("proc/meminfo", format!("MemTotal: {} kB\n", 8 * GIB / KIB));
    let why = "unknown: /proc/meminfo has no MemAvailable; half of the machine's memory is assumed";
    assert_report(&root, 4 * GIB, 8 * GIB, why);
}

#[test]
fn an_empty_tree_falls_back_to_half_of_physical_memory() {
    let root = TestDirectory::new();
    let report = memory_under(root.path());
    assert!(report.limit_bytes > 0);
    assert_eq!(report.available_bytes, report.limit_bytes / 2);
    assert!(report.limited_by.starts_with("unknown: /proc/meminfo"), "{}", report.limited_by);
}

#[test]
fn this_machine_has_memory_and_pages() {
    let report = memory();
    assert!(report.limit_bytes >= report.available_bytes && report.limit_bytes > 0, "{report:?}");
    assert!(page_size().is_power_of_two() && page_size() >= 4096);
}
