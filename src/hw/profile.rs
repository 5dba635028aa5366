//! Everything about the machine that planning uses, in one place.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::cores::{Cores, cores_under};
use super::drive::{Drive, drive_under};
use super::memory::{MemoryReport, memory, memory_under};
use super::paging::{HugePageMode, HugePages, Swap, huge_pages_under, swap_under};
use super::pressure::{MemoryEvents, MemoryPressure, memory_events_under, memory_pressure_under};

/// What the machine offers. Nothing in it is ever missing because something could not be read: a cautious guess takes
/// its place, and `notes` says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The processor's name; empty when the kernel does not tell.
    pub processor: String,
    /// Memory that may be used.
    pub memory: MemoryReport,
    /// Swap space; `None` when the kernel does not tell.
    pub swap: Option<Swap>,
    /// Huge pages.
    pub huge_pages: HugePages,
    /// Cores that may be used.
    pub cores: Cores,
    /// Memory pressure; `None` when the kernel does not tell.
    pub pressure: Option<MemoryPressure>,
    /// Events of memory limits; `None` when the kernel does not tell.
    pub events: Option<MemoryEvents>,
    /// What the model lies on.
    pub drive: Drive,
    /// How fast the cores read memory, once measured.
    pub memory_bytes_per_second: Option<f64>,
    /// How fast the host multiplies with weights of each ggml type, in bytes of them per second; types that were not
    /// measured are missing.
    pub multiply_bytes_per_second: BTreeMap<u32, f64>,
    /// How fast the model's file can be read past the page cache, once measured.
    pub drive_bytes_per_second: Option<f64>,
    /// GPU memory, as the host reports it.
    pub gpu_bytes: Option<u64>,
    /// How fast the GPU that holds experts is, once measured.
    pub gpu_speed: Option<GpuSpeed>,
    /// How fast the other machine that has weights is, once measured.
    pub remote_speed: Option<RemoteSpeed>,
    /// What had to be guessed: sentences for the log.
    pub notes: Vec<String>,
}

/// How fast a GPU is with weights, in bytes of them per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuSpeed {
    /// Multiplies with those in its memory.
    pub multiply_bytes_per_second: f64,
    /// Is given others from RAM.
    pub upload_bytes_per_second: f64,
}

/// How fast another machine is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RemoteSpeed {
    /// Multiplies with weights in its memory, in bytes of them.
    pub multiply_bytes_per_second: f64,
    /// Until the least answer is there.
    pub round_trip_seconds: f64,
}

/// The profile of this machine for a model's file. Reads a few small files; measures nothing.
pub fn profile(model: &Path) -> Profile {
    Profile { memory: memory(), ..profile_under(Path::new("/"), model) }.with_notes()
}

/// Like [`profile`], with `root` in place of `/` for `proc` and `sys`.
pub fn profile_under(root: &Path, model: &Path) -> Profile {
    let processor = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let processor =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|line| line.1);
    Profile {
        processor: processor.unwrap_or_default().trim().to_owned(),
        memory: memory_under(root),
        swap: swap_under(root),
        huge_pages: huge_pages_under(root),
        cores: cores_under(root),
        pressure: memory_pressure_under(root),
        events: memory_events_under(root),
        drive: drive_under(root, model),
        memory_bytes_per_second: None,
        multiply_bytes_per_second: BTreeMap::new(),
        drive_bytes_per_second: None,
        gpu_bytes: None,
        gpu_speed: None,
        remote_speed: None,
        notes: Vec::new(),
    }
    .with_notes()
}

impl Profile {
    /// Tells this machine from others with the same home directory, without naming it.
    pub fn machine(&self) -> String {
        let processor = if self.processor.is_empty() { std::env::consts::ARCH } else { &self.processor };
        format!("{processor}, {} cores", self.cores.parallel())
    }

    fn with_notes(mut self) -> Self {
        let guessed = [
            self.memory.limited_by.strip_prefix("unknown: ").map(|why| format!("available memory is a guess: {why}")),
            self.swap.is_none().then(|| "the kernel does not tell whether there is swap; none is assumed".to_owned()),
            (self.huge_pages.mode == HugePageMode::Unknown)
                .then(|| "the kernel does not tell whether it uses huge pages; none are assumed".to_owned()),
            Some(self.cores.note.clone()),
            (self.pressure.is_none() && self.events.is_none()).then(|| {
                "the kernel tells neither memory pressure nor events of memory limits; available memory alone is watched"
                    .to_owned()
            }),
            Some(self.drive.note.clone()),
        ];
        self.notes = guessed.into_iter().flatten().filter(|note| !note.is_empty()).collect();
        self
    }

    /// As JSON; what is not known is null.
    pub fn to_json(&self) -> Value {
        json!({
            "processor": self.processor,
            "memory": {
                "available_bytes": self.memory.available_bytes,
                "limit_bytes": self.memory.limit_bytes,
                "limited_by": self.memory.limited_by,
                "bytes_per_second": self.memory_bytes_per_second,
            },
            "multiply_bytes_per_second": self.multiply_bytes_per_second,
            "swap": self.swap.map(|swap| json!({"total_bytes": swap.total_bytes, "free_bytes": swap.free_bytes})),
            "huge_pages": {"mode": self.huge_pages.mode.name(), "page_bytes": self.huge_pages.page_bytes},
            "cores": {"usable": self.cores.usable, "quota": self.cores.quota, "parallel": self.cores.parallel()},
            "pressure": self.pressure.map(|pressure| json!({"some": pressure.some, "full": pressure.full})),
            "events": self.events.map(|events| json!({
                "throttled": events.throttled,
                "limit_met": events.limit_met,
                "out_of_memory": events.out_of_memory,
            })),
            "drive": {
                "kind": self.drive.kind.name(),
                "file_system": self.drive.file_system,
                "layers": self.drive.layers,
                "disks": self.drive.disks.iter().map(|disk| json!({
                    "name": disk.name,
                    "model": disk.model,
                    "rotates": disk.rotates,
                })).collect::<Vec<_>>(),
                "bytes_per_second": self.drive_bytes_per_second,
            },
            "gpu_bytes": self.gpu_bytes,
            "notes": self.notes,
        })
    }
}
