//! Deciding what is streamed and how much memory that gets.
//!
//! This layer knows tensors, roles and bytes. Which tensors the host keeps in its own memory is the host's choice
//! (`-ngl`, `--cpu-moe`, `-ot`): the plan divides only what would be in RAM.

mod budget;
mod role;

pub use budget::{SlotClass, distribute, minimum_bytes};
pub use role::{Role, layer_of, role_of};

use crate::config::{Config, ModeSetting};
use crate::gguf::Gguf;
use crate::hw::MemoryReport;

/// How a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is streamed: libhypura takes no part.
    Resident,
    /// Experts are streamed through a cache.
    ExpertStreaming,
    /// Feed-forward weights are streamed through a ring.
    DenseStreaming,
}

impl Mode {
    /// The name in logs and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resident => "full-resident",
            Self::ExpertStreaming => "expert-streaming",
            Self::DenseStreaming => "dense-streaming",
        }
    }
}

/// What is streamed, and why.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the model runs.
    pub mode: Mode,
    /// The streamed tensors, as indices of [`Gguf::tensors`], in file order.
    pub streamed: Vec<usize>,
    /// Bytes of all tensors on the host.
    pub host_bytes: u64,
    /// Bytes of the streamed ones.
    pub streamed_bytes: u64,
    /// One sentence for the log.
    pub reason: String,
}

/// Room for what is not a weight (KV cache, compute buffers, the program) when judging whether a model fits.
const WORKING_BYTES: u64 = 1 << 30;

/// Decides which of the tensors on the host are streamed.
///
/// A mixture-of-experts model streams its experts and nothing else: they are most of its bytes and the least used of
/// them. A dense model streams its feed-forward weights.
pub fn decide(gguf: &Gguf, on_host: impl Fn(usize) -> bool, config: &Config, memory: &MemoryReport) -> Plan {
    let host: Vec<usize> = (0..gguf.tensors().len()).filter(|&tensor| on_host(tensor)).collect();
    let bytes_of = |tensors: &[usize]| tensors.iter().map(|&tensor| gguf.tensors()[tensor].size_bytes).sum::<u64>();
    let with_role = |role| -> Vec<usize> {
        host.iter().copied().filter(|&tensor| role_of(&gguf.tensors()[tensor]) == role).collect()
    };
    let experts = with_role(Role::Expert);
    let (mode, streamed) = if experts.is_empty() {
        (Mode::DenseStreaming, with_role(Role::DenseFeedForward))
    } else {
        (Mode::ExpertStreaming, experts)
    };
    let host_bytes = bytes_of(&host);
    let streamed_bytes = bytes_of(&streamed);
    let available = memory.available_bytes;
    let fits = host_bytes.saturating_add(WORKING_BYTES) <= available
        && config.ram_bytes.is_none_or(|ram_bytes| streamed_bytes <= ram_bytes);
    let resident =
        |reason: String| Plan { mode: Mode::Resident, streamed: Vec::new(), host_bytes, streamed_bytes: 0, reason };
    if config.mode == ModeSetting::Off {
        return resident("HYPURA=off".to_owned());
    }
    if streamed.is_empty() {
        return resident("no weight on the host can be streamed".to_owned());
    }
    let sizes = format!(
        "{} of weights on the host, {} available ({})",
        in_gigabytes(host_bytes),
        in_gigabytes(available),
        memory.limited_by
    );
    match config.mode {
        ModeSetting::Auto if fits => resident(format!("it fits: {sizes}")),
        ModeSetting::Auto => {
            Plan { mode, streamed, host_bytes, streamed_bytes, reason: format!("it does not fit: {sizes}") }
        }
        _ => Plan { mode, streamed, host_bytes, streamed_bytes, reason: format!("HYPURA=stream: {sizes}") },
    }
}

/// The pool's size when the user gives none: what is available now, less room to breathe.
pub fn automatic_budget(memory: &MemoryReport) -> u64 {
    const MARGIN_BYTES: u64 = 512 << 20;
    memory.available_bytes.saturating_sub(MARGIN_BYTES + memory.available_bytes / 20)
}

/// Bytes for people.
pub fn in_gigabytes(bytes: u64) -> String {
    if bytes < 1 << 30 {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
    }
}
