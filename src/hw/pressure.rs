//! Signs that memory runs short: what the kernel tells before it kills.

use std::path::Path;

use super::hierarchy::{Controller, Version, cgroups_under, number};

/// Shares of recent time in which tasks waited for memory, from 0 to 1 (the kernel's pressure stall information).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryPressure {
    /// At least one task waited, over the last 10 seconds.
    pub some: f64,
    /// All tasks waited, over the last 10 seconds.
    pub full: f64,
}

/// How often limits were met since the cgroups exist, summed over this process's own and those around it. Only growth
/// means anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// The kernel slowed tasks down and took memory back, because a soft limit was exceeded. Version 2 only.
    pub throttled: u64,
    /// The limit was met and memory had to be taken back.
    pub limit_met: u64,
    /// Memory could not be taken back.
    pub out_of_memory: u64,
}

/// The pressure on this process's memory now: the highest of the machine's and of the cgroups' of version 2 around it.
/// `None` where the kernel does not tell.
pub fn memory_pressure() -> Option<MemoryPressure> {
    memory_pressure_under(Path::new("/"))
}

/// Like [`memory_pressure`], with `root` in place of `/`.
pub fn memory_pressure_under(root: &Path) -> Option<MemoryPressure> {
    let cgroups = cgroups_under(root, Controller::Memory).into_iter().filter(|cgroup| cgroup.version == Version::Two);
    let files = cgroups.map(|cgroup| cgroup.directory.join("memory.pressure"));
    let pressures = files.chain([root.join("proc/pressure/memory")]).filter_map(|file| parse(&file));
    pressures.reduce(|one, other| MemoryPressure { some: one.some.max(other.some), full: one.full.max(other.full) })
}

/// Lines are `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, averages in per cent.
fn parse(file: &Path) -> Option<MemoryPressure> {
    let text = std::fs::read_to_string(file).ok()?;
    let share = |kind: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let average = line.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
        average.parse().ok().filter(|per_cent| (0.0..=100.0).contains(per_cent)).map(|per_cent: f64| per_cent / 100.0)
    };
    let some = share("some")?;
    Some(MemoryPressure { some, full: share("full").unwrap_or(0.0) })
}

/// The events so far; `None` where no cgroup tells of any.
pub fn memory_events() -> Option<MemoryEvents> {
    memory_events_under(Path::new("/"))
}

/// Like [`memory_events`], with `root` in place of `/`.
pub fn memory_events_under(root: &Path) -> Option<MemoryEvents> {
    let told = cgroups_under(root, Controller::Memory).into_iter().filter_map(|cgroup| match cgroup.version {
        Version::One => {
            let limit_met = number(&cgroup.directory, "memory.failcnt")?;
            Some(MemoryEvents {
                limit_met,
                out_of_memory: keyed(&cgroup.directory.join("memory.oom_control"), "under_oom").unwrap_or(0),
                throttled: 0,
            })
        }
        Version::Two => {
            let file = cgroup.directory.join("memory.events");
            Some(MemoryEvents {
                throttled: keyed(&file, "high")?,
                limit_met: keyed(&file, "max").unwrap_or(0),
                out_of_memory: keyed(&file, "oom").unwrap_or(0),
            })
        }
    });
    told.reduce(|one, other| MemoryEvents {
        throttled: one.throttled.saturating_add(other.throttled),
        limit_met: one.limit_met.saturating_add(other.limit_met),
        out_of_memory: one.out_of_memory.saturating_add(other.out_of_memory),
    })
}

/// The number in a line `KEY NUMBER`.
fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
