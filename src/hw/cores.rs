//! How many cores this process may use.

use std::path::Path;

use super::hierarchy::{Controller, Version, cgroups_under};

/// The cores that this process may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Cores {
    /// Cores that its threads may run on.
    pub usable: usize,
    /// Cores' worth of time that the cgroups around it allow, where they limit it.
    pub quota: Option<f64>,
    /// What was assumed because it could not be read: one sentence, or empty.
    pub note: String,
}

impl Cores {
    /// Threads that can compute at once without being throttled: at least 1.
    pub fn parallel(&self) -> usize {
        let quota = self.quota.map_or(self.usable, |cores| cores.ceil().min(self.usable as f64) as usize);
        quota.clamp(1, self.usable.max(1))
    }
}

/// The cores of this machine that may be used.
pub fn cores() -> Cores {
    cores_under(Path::new("/"))
}

/// Like [`cores`], with `root` in place of `/`.
pub fn cores_under(root: &Path) -> Cores {
    let status = std::fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(count_in_list);
    let quotas = cgroups_under(root, Controller::Cpu).into_iter().filter_map(|cgroup| match cgroup.version {
        Version::One => {
            let read = |file: &str| std::fs::read_to_string(cgroup.directory.join(file)).ok();
            quota(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
        }
        Version::Two => {
            let text = std::fs::read_to_string(cgroup.directory.join("cpu.max")).ok()?;
            let (microseconds, period) = text.trim().split_once(' ')?;
            quota(microseconds, period)
        }
    });
    let quota = quotas.min_by(f64::total_cmp);
    match allowed {
        Some(usable) => Cores { usable, quota, note: String::new() },
        None => {
            let usable = std::thread::available_parallelism().map_or(1, usize::from);
            let note = format!("/proc/self/status does not tell which cores may be used; {usable} are assumed");
            Cores { usable, quota, note }
        }
    }
}

/// Cores' worth of time; `None` for no limit, which is -1 in version 1 and `max` in version 2.
fn quota(microseconds: &str, period: &str) -> Option<f64> {
    let (microseconds, period): (u64, u64) = (microseconds.trim().parse().ok()?, period.trim().parse().ok()?);
    (microseconds > 0 && period > 0).then(|| microseconds as f64 / period as f64)
}

/// Cores in a list such as `0-3,8,10-11`; `None` unless it is well-formed and names some.
fn count_in_list(list: &str) -> Option<usize> {
    let mut count = 0usize;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    (count > 0).then_some(count)
}
