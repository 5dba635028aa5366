//! How many tokens of a prompt are computed at once.
//!
//! A micro-batch reads what is streamed once, however many tokens it has; the memory for its intermediate results grows
//! with them.

use crate::gguf::Gguf;
use crate::hw::MemoryReport;

/// The share of the available memory that a larger micro-batch may take: the rest serves every token, prompt or not.
const SHARE: u64 = 16;

/// The largest micro-batch that is the host's own, doubled a number of times, is within `batch` tokens, and whose
/// intermediate results take no more than their share of the memory; `micro_batch` itself if there is none.
pub fn micro_batch(gguf: &Gguf, batch: u64, micro_batch: u64, memory: &MemoryReport) -> u64 {
    let affordable = memory.available_bytes / SHARE / bytes_per_token(gguf).max(1);
    let mut chosen = micro_batch;
    while chosen > 0 && chosen.saturating_mul(2) <= batch.min(affordable) {
        chosen *= 2;
    }
    chosen
}

/// Bytes of intermediate results, roughly: logits, a few rows of the residual stream and of the widest layer, in 32
/// bits.
fn bytes_per_token(gguf: &Gguf) -> u64 {
    const STREAM_ROWS: u64 = 16;
    const HIDDEN_ROWS: u64 = 4;
    let hyper = gguf.hyper_parameters();
    let rows_of = |names: &str, used_experts: u64| {
        let named = gguf.tensors().iter().filter(|tensor| tensor.name.contains(names));
        named.map(|tensor| tensor.shape[1].saturating_mul(used_experts)).max().unwrap_or(0)
    };
    let vocabulary = rows_of("output.weight", 1).max(rows_of("token_embd.weight", 1));
    let widest = rows_of(".ffn_up.", 1).max(rows_of("_exps.", hyper.expert_used_count));
    let values = hyper.embedding_length.saturating_mul(STREAM_ROWS).saturating_add(widest.saturating_mul(HIDDEN_ROWS));
    values.saturating_add(vocabulary).saturating_mul(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::common::gguf_writer::GgufWriter;

    #[test]
    fn memory_decides_between_the_hosts_micro_batch_and_its_batch() {
        let directory = TestDirectory::new();
        let path = directory.path().join("model.gguf");
        let writer = GgufWriter::new().text("general.architecture", "llama").u32("llama.embedding_length", 32);
        writer.zeros("token_embd.weight", 0, &[32, 100]).zeros("blk.0.ffn_up.weight", 0, &[32, 64]).write(&path);
        let gguf = Gguf::open(&[path]).unwrap();
        let with =
            |available_bytes| MemoryReport { available_bytes, limit_bytes: available_bytes, limited_by: String::new() };
        let per_token = bytes_per_token(&gguf);
        assert_eq!(per_token, 4 * (16 * 32 + 4 * 64 + 100));
        let for_tokens = |tokens: u64| with(tokens * per_token * SHARE);
        assert_eq!(micro_batch(&gguf, 2048, 512, &for_tokens(100)), 512);
        assert_eq!(micro_batch(&gguf, 2048, 512, &for_tokens(1023)), 512);
        assert_eq!(micro_batch(&gguf, 2048, 512, &for_tokens(1024)), 1024);
        assert_eq!(micro_batch(&gguf, 2048, 512, &for_tokens(1 << 20)), 2048);
        assert_eq!(micro_batch(&gguf, 3000, 512, &for_tokens(1 << 20)), 2048);
        assert_eq!(micro_batch(&gguf, 512, 512, &for_tokens(1 << 20)), 512);
        assert_eq!(micro_batch(&gguf, 2048, 0, &for_tokens(1 << 20)), 0);
    }
}
