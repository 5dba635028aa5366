//! How much memory may be used, from the machine and from every cgroup around the process.
//!
//! Nothing here fails: what cannot be read is replaced by a cautious guess, and the report says so. Too small a budget
//! is slow; too large a one gets the process killed.

use std::path::Path;

use super::cgroup;

/// How much memory the process may use, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes that may still be used: the smaller of the kernel's `MemAvailable` and, over every cgroup from the
    /// process's own to the root, the limit less what is in use and not page cache.
    pub available_bytes: u64,
    /// Bytes that may be used in total: the smallest of the machine's memory and the limits of those cgroups.
    pub limit_bytes: u64,
    /// What `available_bytes` comes from: `cgroup PATH`, `machine`, or `unknown: WHY` when it is a guess.
    pub limited_by: String,
}

/// The memory of this machine as it is now.
#[cfg(target_os = "linux")]
pub fn memory() -> MemoryReport {
    let report = memory_under(Path::new("/"));
    match address_space_limit() {
        Some(limit_bytes) => within_address_space(report, limit_bytes, address_space_bytes()),
        None => report,
    }
}

/// A process with a limit of its addresses (`ulimit -v`) can take no more memory than it has addresses left for.
fn within_address_space(mut report: MemoryReport, limit_bytes: u64, used_bytes: u64) -> MemoryReport {
    let left_bytes = limit_bytes.saturating_sub(used_bytes);
    report.limit_bytes = report.limit_bytes.min(limit_bytes);
    if left_bytes < report.available_bytes {
        report.available_bytes = left_bytes;
        report.limited_by = "RLIMIT_AS of this process".to_owned();
    }
    report
}

/// The limit of this process's addresses (RLIMIT_AS), in bytes; `None` when there is none.
pub fn address_space_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes to `limit`, which outlives it.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    (status == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Bytes of addresses that this process uses.
#[cfg(target_os = "linux")]
fn address_space_bytes() -> u64 {
    meminfo_bytes(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmSize").unwrap_or(0)
}

/// The memory of this machine; half of it counts as available. Written from the documentation, untested on macOS.
#[cfg(target_os = "macos")]
pub fn memory() -> MemoryReport {
    let mut size_bytes = 0_u64;
    let mut length = size_of::<u64>();
    // SAFETY: the name is NUL-terminated; `size_bytes` is writable for the `length` bytes that `length` promises, and
    // both live across the call; a null new value with length 0 means that nothing is set.
    let status = unsafe {
        libc::sysctlbyname(
            c"hw.memsize".as_ptr(),
            (&raw mut size_bytes).cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    };
    if status == 0 && length == size_of::<u64>() {
        guess(size_bytes, "this system does not tell how much memory is available")
    } else {
        guess(physical_bytes(), "hw.memsize cannot be read")
    }
}

/// The memory of this machine; half of it counts as available.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn memory() -> MemoryReport {
    guess(physical_bytes(), "this system does not tell how much memory is available")
}

/// The same from a tree that holds copies of `/proc` and `/sys`, for tests: `root/proc/meminfo`,
/// `root/proc/self/cgroup`, `root/proc/self/mountinfo` and the mounts that the last one names.
pub fn memory_under(root: &Path) -> MemoryReport {
    let mut report = machine(root);
    for cgroup in cgroup::limits_under(root) {
        report.limit_bytes = report.limit_bytes.min(cgroup.limit_bytes);
        let (available_bytes, limited_by) = match cgroup.used_bytes {
            Some(used_bytes) => (cgroup.limit_bytes.saturating_sub(used_bytes), format!("cgroup {}", cgroup.name)),
            None => (
                cgroup.limit_bytes / 2,
                format!("unknown: cgroup {} does not tell its usage; half of its limit is assumed", cgroup.name),
            ),
        };
        if available_bytes < report.available_bytes {
            report.available_bytes = available_bytes;
            report.limited_by = limited_by;
        }
    }
    // A machine that is nearly idle may report more available than a cgroup's whole limit.
    report.available_bytes = report.available_bytes.min(report.limit_bytes);
    report
}

/// Bytes of memory that this process has taken and that is no file's; 0 where the system does not tell.
pub fn held_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    meminfo_bytes(&text, "RssAnon").unwrap_or(0)
}

/// Bytes in a page of memory.
pub fn page_size() -> usize {
    // 4096 divides every page size in use, so it is the safe answer to an impossible failure.
    usize::try_from(system_value(libc::_SC_PAGESIZE)).unwrap_or(4096)
}

fn machine(root: &Path) -> MemoryReport {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let Some(total_bytes) = meminfo_bytes(&text, "MemTotal") else {
        return guess(physical_bytes(), "/proc/meminfo cannot be read");
    };
    match meminfo_bytes(&text, "MemAvailable") {
        Some(available_bytes) => MemoryReport {
            available_bytes: available_bytes.min(total_bytes),
            limit_bytes: total_bytes,
            limited_by: "machine".to_owned(),
        },
        None => guess(total_bytes, "/proc/meminfo has no MemAvailable"),
    }
}

/// Lines are `Name:   123 kB`, where the kernel's kB is 1024 bytes.
pub(super) fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn guess(total_bytes: u64, why: &str) -> MemoryReport {
    MemoryReport {
        available_bytes: total_bytes / 2,
        limit_bytes: total_bytes,
        limited_by: format!("unknown: {why}; half of the machine's memory is assumed"),
    }
}

fn physical_bytes() -> u64 {
    let pages = u64::try_from(system_value(libc::_SC_PHYS_PAGES)).unwrap_or(0);
    pages.saturating_mul(page_size() as u64)
}

fn system_value(name: libc::c_int) -> libc::c_long {
    // SAFETY: `sysconf` takes any number and touches no memory of ours; an unknown one returns -1.
    unsafe { libc::sysconf(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_memory_when_they_are_limited() {
        let machine = MemoryReport { available_bytes: 500, limit_bytes: 1000, limited_by: "machine".to_owned() };
        assert_eq!(within_address_space(machine.clone(), 5000, 100), machine);
        let limited = within_address_space(machine.clone(), 400, 100);
        assert_eq!((limited.available_bytes, limited.limit_bytes), (300, 400));
        assert!(limited.limited_by.contains("RLIMIT_AS"), "{limited:?}");
        assert_eq!(within_address_space(machine, 400, 700).available_bytes, 0);
    }
}
