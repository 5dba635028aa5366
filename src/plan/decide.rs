//! Which of the tensors on the host are streamed.

use super::in_gigabytes;
use crate::config::{Config, ModeSetting, TensorsSetting};
use crate::gguf::Gguf;
use crate::gguf::{Role, role_of};
use crate::hw::MemoryReport;

/// How a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is streamed: libhypura takes no part.
    Resident,
    /// Experts are streamed through a cache.
    ExpertStreaming,
    /// Weights that every token uses are streamed through a ring.
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
pub const WORKING_BYTES: u64 = 1 << 30;

/// A role is enough when the rest fits beside slots for 1/16 of the streamed bytes; else the next role is streamed, too.
const STREAMED_PER_SLOT_BYTE: u64 = 16;

/// Decides which of the tensors on the host are streamed: one role after the other, until the rest fits.
pub fn decide(gguf: &Gguf, on_host: impl Fn(usize) -> bool, config: &Config, memory: &MemoryReport) -> Plan {
    let host: Vec<usize> = (0..gguf.tensors().len()).filter(|&tensor| on_host(tensor)).collect();
    let bytes_of = |tensors: &[usize]| tensors.iter().map(|&tensor| gguf.tensors()[tensor].size_bytes).sum::<u64>();
    let role = |tensor: usize| role_of(&gguf.tensors()[tensor]);
    let host_bytes = bytes_of(&host);
    let available = memory.available_bytes;

    let mut streamed: Vec<usize> = Vec::new();
    for next in Role::STREAMABLE {
        let streamed_bytes = bytes_of(&streamed);
        let needed =
            (host_bytes - streamed_bytes).saturating_add(WORKING_BYTES + streamed_bytes / STREAMED_PER_SLOT_BYTE);
        if config.tensors == TensorsSetting::Auto && !streamed.is_empty() && needed <= available {
            break;
        }
        streamed.extend(host.iter().filter(|&&tensor| role(tensor) == next));
    }
    streamed.sort_unstable();

    let mode = match streamed.iter().any(|&tensor| role(tensor) == Role::Expert) {
        true => Mode::ExpertStreaming,
        false => Mode::DenseStreaming,
    };
    let streamed_bytes = bytes_of(&streamed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_directory::TestDirectory;
    use crate::gguf::test_writer::GgufWriter;

    /// One layer with every role; `f32` matrices of 4 KiB, experts of 64.
    fn model(directory: &TestDirectory) -> Gguf {
        let path = directory.path().join("model.gguf");
        let mut writer = GgufWriter::new().zeros("token_embd.weight", 0, &[32, 32]);
        for part in ["attn_q", "ffn_up", "ffn_up_shexp"] {
            writer = writer.zeros(&format!("blk.0.{part}.weight"), 0, &[32, 32]);
        }
        writer.zeros("blk.0.ffn_up_exps.weight", 0, &[32, 32, 16]).write(&path);
        Gguf::open(&[path]).unwrap()
    }

    fn streamed(gguf: &Gguf, variables: &[(&str, &str)], available_bytes: u64) -> Vec<Role> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::from_variables(variables).unwrap();
        let memory = MemoryReport { available_bytes, limit_bytes: available_bytes, limited_by: String::new() };
        let plan = decide(gguf, |_| true, &config, &memory);
        plan.streamed.iter().map(|&tensor| role_of(&gguf.tensors()[tensor])).collect()
    }

    #[test]
    fn roles_are_streamed_one_after_the_other_until_the_rest_fits() {
        const KIB: u64 = 1 << 10;
        let directory = TestDirectory::new();
        let gguf = model(&directory);
        let resident_and_slots = |resident: u64, streamed: u64| WORKING_BYTES + resident * KIB + streamed * KIB / 16;
        let with = |available_bytes| streamed(&gguf, &[], available_bytes);
        assert_eq!(with(WORKING_BYTES + 80 * KIB), [], "all of it fits");
        assert_eq!(with(resident_and_slots(16, 64)), [Role::Expert]);
        let two = [Role::DenseFeedForward, Role::Expert];
        assert_eq!(with(resident_and_slots(16, 64) - 1), two);
        assert_eq!(with(resident_and_slots(12, 68)), two);
        assert_eq!(with(resident_and_slots(12, 68) - 1).len(), 3);
        assert_eq!(with(0).len(), 4, "all but the embedding");
        let plenty = 1 << 40;
        assert_eq!(streamed(&gguf, &[("HYPURA", "stream")], plenty), [Role::Expert]);
        assert_eq!(streamed(&gguf, &[("HYPURA", "stream"), ("HYPURA_TENSORS", "all")], plenty).len(), 4);
    }
}
