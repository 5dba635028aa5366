//! What the machine offers: memory, as the kernel and the cgroups that the process is in allow it, cores, drives.
//!
//! Everything that is read lies under a root directory, `/` unless a test says otherwise, and may be missing:
//! containers hide much of it.

mod cgroup;
mod committable;
mod cores;
mod drive;
mod hierarchy;
mod memory;
mod mounts;
mod paging;
mod pressure;
mod profile;

#[cfg(test)]
mod profile_tests;
#[cfg(test)]
mod tests;

pub use committable::{charges_reservations, within_promises};
pub use cores::{Cores, cores, cores_under};
pub use drive::{Disk, Drive, DriveKind, drive, drive_under};
pub use memory::{MemoryReport, address_space_limit, held_bytes, memory, memory_under, page_size};
pub use paging::{HugePageMode, HugePages, Swap};
pub use pressure::{
    MemoryEvents, MemoryPressure, memory_events, memory_events_under, memory_pressure, memory_pressure_under,
};
pub use profile::{GpuSpeed, Profile, RemoteSpeed, profile, profile_under};
