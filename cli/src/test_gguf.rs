//! Small GGUF files for tests.

use std::path::PathBuf;

use crate::gguf_writer::GgufWriter;
use crate::model_file::ModelFile;
use crate::scratch::Scratch;

/// A value of a key.
#[derive(Clone, Copy, Debug)]
pub enum Pair {
    /// u32.
    Number(u32),
    /// A string.
    Text(&'static str),
}

/// A tensor of zeros in F32: its name and its shape.
pub type Tensor = (&'static str, &'static [u64]);

/// A model file in a directory of its own.
pub struct TestModel {
    /// Where it is.
    pub path: PathBuf,
    _directory: Scratch,
}

/// Sixteen experts, two of which are used.
const MIXTURE: [(&str, Pair); 6] = [
    ("general.architecture", Pair::Text("test")),
    ("test.block_count", Pair::Number(2)),
    ("test.expert_count", Pair::Number(16)),
    ("test.expert_used_count", Pair::Number(2)),
    ("test.embedding_length", Pair::Number(8)),
    ("test.attention.head_count", Pair::Number(2)),
];

impl TestModel {
    /// The same in large: 1.5 MiB of experts, of 32 KiB each.
    pub fn large_mixture() -> Self {
        Self::write(
            &MIXTURE,
            &[
                ("token_embd.weight", &[64, 100]),
                ("output.weight", &[64, 100]),
                ("blk.0.attn_q.weight", &[64, 64]),
                ("blk.0.ffn_up.weight", &[64, 256]),
                ("blk.1.ffn_up_exps.weight", &[64, 128, 16]),
                ("blk.1.ffn_gate_exps.weight", &[64, 128, 16]),
                ("blk.1.ffn_down_exps.weight", &[128, 64, 16]),
            ],
        )
    }

    /// Writes one.
    pub fn write(pairs: &[(&str, Pair)], tensors: &[Tensor]) -> Self {
        let directory = Scratch::make("test").unwrap();
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, gguf(pairs, tensors)).unwrap();
        Self { path, _directory: directory }
    }

    /// A mixture of 16 experts, 2 of them used, in its second layer; its first is dense.
    pub fn mixture() -> Self {
        Self::write(
            &MIXTURE,
            &[
                ("token_embd.weight", &[8, 100]),
                ("output.weight", &[8, 100]),
                ("blk.0.attn_q.weight", &[8, 8]),
                ("blk.0.ffn_up.weight", &[8, 32]),
                ("blk.1.attn_q.weight", &[8, 8]),
                ("blk.1.ffn_gate_inp.weight", &[8, 16]),
                ("blk.1.ffn_up_exps.weight", &[8, 16, 16]),
                ("blk.1.ffn_gate_exps.weight", &[8, 16, 16]),
                ("blk.1.ffn_down_exps.weight", &[16, 8, 16]),
            ],
        )
    }

    /// Its header.
    pub fn open(&self) -> ModelFile {
        ModelFile::open(&self.path).unwrap()
    }
}

fn gguf(pairs: &[(&str, Pair)], tensors: &[Tensor]) -> Vec<u8> {
    const F32: u32 = 0;
    let with_pairs = pairs.iter().fold(GgufWriter::new(), |writer, &(key, value)| match value {
        Pair::Number(number) => writer.u32(key, number),
        Pair::Text(text) => writer.text(key, text),
    });
    tensors.iter().fold(with_pairs, |writer, (name, shape)| writer.zeros(name, F32, shape)).bytes()
}
