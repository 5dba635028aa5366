//! The memory limits of the cgroups that this process is in.
//!
//! A cgroup without memory files counts as unlimited.

use std::collections::BTreeMap;
use std::path::Path;

use super::hierarchy::{Controller, Version, cgroups_under, number};

/// Version 1 stores "no limit" as the largest signed number rounded down to a page; no machine has this much memory.
const UNLIMITED_BYTES_MIN: u64 = 1 << 60;

/// A cgroup that limits memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CgroupLimit {
    /// The path within its hierarchy, as far as it is visible.
    pub(super) name: String,
    /// Bytes that its members may hold together.
    pub(super) limit_bytes: u64,
    /// Bytes that they hold and that the kernel cannot take back by dropping page cache; `None` when unreadable.
    pub(super) used_bytes: Option<u64>,
}

/// The limits around this process, innermost first in each hierarchy; `root` replaces `/` in every path.
pub(super) fn limits_under(root: &Path) -> Vec<CgroupLimit> {
    let cgroups = cgroups_under(root, Controller::Memory);
    cgroups.into_iter().filter_map(|cgroup| limit(cgroup.version, &cgroup.directory, cgroup.name)).collect()
}

/// The limit of one cgroup; `None` when it has none or has no memory files.
fn limit(version: Version, directory: &Path, name: String) -> Option<CgroupLimit> {
    let statistics = Statistics::read(directory);
    let (limits, usage, cache) = match version {
        Version::One => (
            // The second one is the smallest limit up to the real root, which a container cannot see otherwise.
            [number(directory, "memory.limit_in_bytes"), statistics.bytes("hierarchical_memory_limit")],
            number(directory, "memory.usage_in_bytes"),
            ["total_inactive_file", "total_active_file"],
        ),
        Version::Two => (
            // Above `memory.high` the kernel throttles the process almost to a halt, so it is a limit as well.
            [number(directory, "memory.max"), number(directory, "memory.high")],
            number(directory, "memory.current"),
            ["inactive_file", "active_file"],
        ),
    };
    let limit_bytes = limits.into_iter().flatten().min().filter(|bytes| *bytes < UNLIMITED_BYTES_MIN)?;
    let reclaimable_bytes = cache.into_iter().filter_map(|key| statistics.bytes(key)).fold(0, u64::saturating_add);
    let used_bytes = usage.map(|usage| usage.saturating_sub(reclaimable_bytes));
    Some(CgroupLimit { name, limit_bytes, used_bytes })
}

/// The lines `KEY NUMBER` of `memory.stat`.
struct Statistics(BTreeMap<String, u64>);

impl Statistics {
    fn read(directory: &Path) -> Self {
        let text = std::fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        });
        Self(pairs.collect())
    }

    fn bytes(&self, key: &str) -> Option<u64> {
        self.0.get(key).copied()
    }
}
