//! Which of the tensors on the host are streamed.

use super::in_gigabytes;
use super::place::Place;
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
    /// Only tables are streamed, of which a token uses some rows.
    TableStreaming,
}

impl Mode {
    /// The name in logs and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resident => "full-resident",
            Self::ExpertStreaming => "expert-streaming",
            Self::DenseStreaming => "dense-streaming",
            Self::TableStreaming => "table-streaming",
        }
    }
}

/// What is streamed, and why.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the model runs.
    pub mode: Mode,
    /// The streamed tensors, as indices of [`Gguf::tensors`], in file order; also those that are spare.
    pub streamed: Vec<usize>,
    /// Bytes of all tensors on the host.
    pub host_bytes: u64,
    /// Bytes of the streamed ones among them.
    pub streamed_bytes: u64,
    /// One sentence for the log.
    pub reason: String,
}

/// Room for what is not a weight (KV cache, compute buffers, the program) when judging whether a model fits.
pub const WORKING_BYTES: u64 = 1 << 30;

/// A role is enough when the rest fits beside slots for 1/16 of the streamed bytes; else the next role is streamed, too.
const STREAMED_PER_SLOT_BYTE: u64 = 16;

/// Decides which of the tensors on the host are streamed: one role after the other, until the rest fits.
pub fn decide(gguf: &Gguf, place: impl Fn(usize) -> Place, config: &Config, memory: &MemoryReport) -> Plan {
    let may_be_host = |&tensor: &usize| matches!(place(tensor), Place::Ram | Place::Spare);
    let host: Vec<usize> = (0..gguf.tensors().len()).filter(may_be_host).collect();
    let is_counted = |tensor: usize| place(tensor) == Place::Ram;
    let bytes_of = |tensors: &[usize]| -> u64 {
        let counted = tensors.iter().filter(|&&tensor| is_counted(tensor));
        counted.map(|&tensor| gguf.tensors()[tensor].size_bytes).sum()
    };
    let role = |tensor: usize| role_of(&gguf.tensors()[tensor]);
    let host_bytes = bytes_of(&host);
    let available = memory.available_bytes;

    let may_be_streamed = |tensor: usize| match role(tensor) {
        // What is multiplied with as well is all used for every token.
        Role::TokenEmbedding => gguf.find("output.weight").is_some(),
        _ => true,
    };
    let mut streamed: Vec<usize> = host.iter().copied().filter(|&tensor| role(tensor) == Role::Table).collect();
    let table_bytes = bytes_of(&streamed);
    for next in Role::STREAMABLE {
        let streamed_bytes = bytes_of(&streamed);
        let needed =
            (host_bytes - streamed_bytes).saturating_add(WORKING_BYTES + streamed_bytes / STREAMED_PER_SLOT_BYTE);
        // Tables alone may do, unless streaming is forced: that is meant to show what streaming weights does.
        let is_enough = streamed_bytes > if config.mode == ModeSetting::Stream { table_bytes } else { 0 };
        if config.tensors == TensorsSetting::Auto && is_enough && needed <= available {
            break;
        }
        streamed.extend(host.iter().filter(|&&tensor| role(tensor) == next && may_be_streamed(tensor)));
    }
    streamed.sort_unstable();

    let streams = |is_it: &dyn Fn(Role) -> bool| streamed.iter().any(|&t| is_counted(t) && is_it(role(t)));
    let mode = match () {
        () if streams(&|role| role.has_experts()) => Mode::ExpertStreaming,
        () if streams(&|role| !role.is_looked_up()) => Mode::DenseStreaming,
        () => Mode::TableStreaming,
    };
    let streamed_bytes = bytes_of(&streamed);
    let fits = host_bytes.saturating_add(WORKING_BYTES) <= available
        && config.ram_bytes.is_none_or(|ram_bytes| streamed_bytes <= ram_bytes);
    let resident =
        |reason: String| Plan { mode: Mode::Resident, streamed: Vec::new(), host_bytes, streamed_bytes: 0, reason };
    if config.mode == ModeSetting::Off {
        return resident("HYPURA=off".to_owned());
    }
    if streamed_bytes == 0 {
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
    use crate::common::TestDirectory;
    use crate::common::gguf_writer::GgufWriter;

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
        let plan = decide(gguf, |_| Place::Ram, &config, &memory);
        plan.streamed.iter().map(|&tensor| role_of(&gguf.tensors()[tensor])).collect()
    }

    #[test]
    fn what_is_probably_not_loaded_counts_as_no_memory_and_is_streamed_if_it_is() {
        const KIB: u64 = 1 << 10;
        let directory = TestDirectory::new();
        let gguf = model(&directory);
        let (up, experts) = (gguf.find("blk.0.ffn_up.weight").unwrap(), gguf.find("blk.0.ffn_up_exps.weight").unwrap());
        let config = Config::from_variables([("HYPURA".to_owned(), "stream".to_owned())]).unwrap();
        let memory = MemoryReport { available_bytes: 1 << 40, limit_bytes: 1 << 40, limited_by: String::new() };
        let with = |unusual: usize, place: Place| {
            decide(&gguf, |tensor| if tensor == unusual { place } else { Place::Ram }, &config, &memory)
        };
        let plan = with(experts, Place::Spare);
        assert_eq!((plan.mode, &plan.streamed[..]), (Mode::DenseStreaming, &[up, experts][..]));
        assert_eq!((plan.host_bytes, plan.streamed_bytes), (16 * KIB, 4 * KIB));
        let plan = with(experts, Place::Absent);
        assert_eq!((&plan.streamed[..], plan.host_bytes), (&[up][..], 16 * KIB));
        let plan = with(up, Place::Device);
        assert_eq!((plan.mode, &plan.streamed[..], plan.host_bytes), (Mode::ExpertStreaming, &[experts][..], 76 * KIB));
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

    #[test]
    fn tables_are_streamed_before_all_else_and_embeddings_last_unless_they_are_the_output() {
        const KIB: u64 = 1 << 10;
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        let writer = || {
            GgufWriter::new()
                .zeros("token_embd.weight", 0, &[32, 32])
                .zeros("per_layer_token_embd.weight", 0, &[32, 256])
                .zeros("blk.0.ffn_up.weight", 0, &[32, 32])
        };
        writer().zeros("output.weight", 0, &[32, 32]).write(&path);
        let gguf = Gguf::open(std::slice::from_ref(&path)).unwrap();
        let with = |available_bytes| streamed(&gguf, &[], available_bytes);
        let (dense, table, tokens) = (Role::DenseFeedForward, Role::Table, Role::TokenEmbedding);
        assert_eq!(with(WORKING_BYTES + 44 * KIB), [], "all of it fits");
        assert_eq!(with(WORKING_BYTES + 14 * KIB), [table], "12 KiB stay, and 2 are for slots");
        assert_eq!(with(WORKING_BYTES + 14 * KIB - 1), [table, dense]);
        assert_eq!(with(0), [tokens, table, dense]);
        let plenty = 1 << 40;
        assert_eq!(streamed(&gguf, &[("HYPURA", "stream")], plenty), [table, dense]);
        writer().write(&path);
        let tied = Gguf::open(&[path]).unwrap();
        assert_eq!(streamed(&tied, &[], 0), [table, dense]);
    }
}
