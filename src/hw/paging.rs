//! Swap and huge pages.

use std::path::Path;

use super::memory::meminfo_bytes;

/// Swap space. Nothing of ours should ever be there: it only tells how a machine behaves when memory runs short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What is not in use.
    pub free_bytes: u64,
}

/// When the kernel backs memory with huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePageMode {
    /// For all memory.
    Always,
    /// For memory that asks for it (`madvise`), as our slots do.
    OnRequest,
    /// Never.
    Never,
    /// It does not tell.
    Unknown,
}

impl HugePageMode {
    /// The kernel's name, or `unknown`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnRequest => "madvise",
            Self::Never => "never",
            Self::Unknown => "unknown",
        }
    }
}

/// Transparent huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// When they are used.
    pub mode: HugePageMode,
    /// Bytes of one; `None` where the kernel does not tell.
    pub page_bytes: Option<u64>,
}

/// Swap space; `None` when `proc/meminfo` under `root` does not tell.
pub(super) fn swap_under(root: &Path) -> Option<Swap> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total_bytes = meminfo_bytes(&text, "SwapTotal")?;
    Some(Swap { total_bytes, free_bytes: meminfo_bytes(&text, "SwapFree")?.min(total_bytes) })
}

/// Huge pages, with `root` in place of `/`.
pub(super) fn huge_pages_under(root: &Path) -> HugePages {
    let read = |name| std::fs::read_to_string(root.join("sys/kernel/mm/transparent_hugepage").join(name)).ok();
    // The mode in use is in brackets: `always [madvise] never`.
    let mode = match read("enabled").as_deref().and_then(|text| text.split_once('[')?.1.split_once(']')) {
        Some(("always", _)) => HugePageMode::Always,
        Some(("madvise", _)) => HugePageMode::OnRequest,
        Some(("never", _)) => HugePageMode::Never,
        _ => HugePageMode::Unknown,
    };
    let page_bytes = read("hpage_pmd_size").and_then(|text| text.trim().parse().ok());
    HugePages { mode, page_bytes }
}
