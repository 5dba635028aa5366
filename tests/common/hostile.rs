//! Makes model files of any bytes, and takes them through all that reads a header: parser, split, plan, discovery. What is wrong with
//! them must be an error; nothing else is demanded.
//!
//! The first byte says how the rest is read: as a file, or as the description of one, so that mutations reach what lies behind
//! the first check. A description is read as long as it lasts; then all is zero.

use std::fs::File;
use std::path::{Path, PathBuf};

use hypura::config::{Config, ModeSetting, TensorsSetting};
use hypura::discover::{self, Wanted};
use hypura::gguf::{Gguf, key_values, role_of};
use hypura::hw::MemoryReport;
use hypura::plan::{Place, decide};

const KEYS: [&str; 14] = [
    "general.architecture",
    "general.alignment",
    "general.name",
    "split.no",
    "split.count",
    "split.tensors.count",
    "llama.block_count",
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.embedding_length",
    "llama.attention.head_count_kv",
    "llama.context_length",
    "tokenizer.ggml.tokens",
    "llama.nextn_predict_layers",
];

const NAMES: [&str; 10] = [
    "token_embd.weight",
    "output.weight",
    "blk.0.ffn_up_exps.weight",
    "blk.0.ffn_down.weight",
    "blk.1.ffn_gate_up_exps.weight",
    "blk.4294967295.attn_q.weight",
    "blk.-1.ffn_up.weight",
    "per_layer_token_embd.weight",
    "blk..weight",
    "",
];

/// Numbers at which something changes.
const EDGES: [u64; 12] =
    [0, 1, 31, 32, 33, 4096, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 62, i64::MAX as u64, u64::MAX];

/// Reads a description.
struct Description<'a>(&'a [u8]);

impl<'a> Description<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// A small number, most of the time; else one at an edge.
    fn number(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..240 => u64::from(byte),
            _ => EDGES[usize::from(self.byte()) % EDGES.len()],
        }
    }

    fn choice<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

fn add_text(file: &mut Vec<u8>, text: &[u8], length: u64) {
    file.extend(length.to_le_bytes());
    file.extend(text);
}

/// A key and its value, of any type.
fn add_pair(file: &mut Vec<u8>, from: &mut Description<'_>, part: u64, parts: u64) {
    let key = from.choice(&KEYS);
    add_text(file, key.as_bytes(), key.len() as u64);
    match from.byte() % 8 {
        0 => {
            let text = from.choice(&["llama", "qwen3moe", "gemma3n", ""]);
            file.extend(8_u32.to_le_bytes());
            add_text(file, text.as_bytes(), text.len() as u64);
        }
        1 => {
            file.extend(8_u32.to_le_bytes());
            let length = from.number();
            add_text(file, from.bytes(8), length);
        }
        2 => {
            file.extend(9_u32.to_le_bytes());
            file.extend(from.number().to_le_bytes().into_iter().take(4));
            file.extend(from.number().to_le_bytes());
            file.extend(from.bytes(16));
        }
        3 => {
            // What splits say: the right thing or another one.
            let value = from.choice(&[part, parts, 0, u64::MAX]);
            file.extend(10_u32.to_le_bytes());
            file.extend(value.to_le_bytes());
        }
        4 => {
            file.extend(u32::from(from.byte()).to_le_bytes());
            file.extend(from.bytes(8));
        }
        _ => {
            file.extend(4_u32.to_le_bytes());
            file.extend(from.number().to_le_bytes().into_iter().take(4));
        }
    }
}

/// A tensor's entry. Returns where its data would end, if that is near.
fn add_tensor(file: &mut Vec<u8>, from: &mut Description<'_>, next_offset: u64) -> u64 {
    let name = from.choice(&NAMES);
    add_text(file, name.as_bytes(), name.len() as u64);
    let dimensions = u64::from(from.byte() % 6);
    file.extend((dimensions as u32).to_le_bytes());
    let mut elements = 1_u64;
    for _ in 0..dimensions {
        let size = from.number();
        elements = elements.saturating_mul(size);
        file.extend(size.to_le_bytes());
    }
    file.extend(u32::from(from.byte() % 48).to_le_bytes());
    let offset = if from.byte() < 200 { next_offset } else { from.number() };
    file.extend(offset.to_le_bytes());
    offset.saturating_add(elements.saturating_mul(4)).min(1 << 16).next_multiple_of(32)
}

/// A file as a description says.
fn described(from: &mut Description<'_>, part: u64, parts: u64) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(if from.byte() < 230 { 3_u32 } else { u32::from(from.byte()) }.to_le_bytes());
    let (tensors, pairs) = (u64::from(from.byte() % 9), u64::from(from.byte() % 9));
    for count in [tensors, pairs + if parts > 1 { 3 } else { 0 }] {
        let said = if from.byte() < 240 { count } else { from.number() };
        file.extend(said.to_le_bytes());
    }
    if parts > 1 {
        for (key, value) in [("split.no", part), ("split.count", parts), ("split.tensors.count", tensors * parts)] {
            add_text(&mut file, key.as_bytes(), key.len() as u64);
            file.extend(10_u32.to_le_bytes());
            file.extend(value.to_le_bytes());
        }
    }
    for _ in 0..pairs {
        add_pair(&mut file, from, part, parts);
    }
    let mut end = 0;
    for _ in 0..tensors {
        end = add_tensor(&mut file, from, end);
    }
    let data = if from.byte() < 200 { end } else { u64::from(from.byte()) };
    file.resize(file.len().next_multiple_of(32) + data as usize, 0x5a);
    file
}

/// Writes the files that `data` stands for, reads them in every way, and removes them.
pub fn try_files(data: &[u8]) {
    let mut from = Description(data);
    let kind = from.byte();
    let parts = if kind < 200 { 1 } else { u64::from(kind % 3 + 1) };
    let directory = directory();
    let paths: Vec<PathBuf> = (0..parts)
        .map(|part| {
            let name = if parts == 1 { "m.gguf".to_owned() } else { format!("m-{:05}-of-{parts:05}.gguf", part + 1) };
            let content = if kind < 60 { from.0.to_vec() } else { described(&mut from, part, parts) };
            let path = directory.join(name);
            std::fs::write(&path, content).expect("the directory is ours");
            path
        })
        .collect();
    try_paths(&paths);
    for path in paths {
        let _ = std::fs::remove_file(path);
    }
}

/// In memory, where there is a place for that: nothing is to be learned from a drive.
fn directory() -> PathBuf {
    let shared = Path::new("/dev/shm");
    let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let directory = place.join(format!("hypura-hostile-{}", std::process::id()));
    let _ = std::fs::create_dir(&directory);
    directory
}

fn try_paths(paths: &[PathBuf]) {
    let _ = key_values(&paths[0], 64);
    let opened = [Gguf::open(&paths[..1]), Gguf::open(paths)];
    for gguf in opened.into_iter().flatten() {
        for tensor in gguf.tensors() {
            let _ = role_of(tensor);
            let file = &gguf.files()[tensor.file];
            assert!(tensor.offset + tensor.size_bytes <= file.size_bytes, "a tensor that ends beyond its file");
        }
        for mode in [ModeSetting::Auto, ModeSetting::Stream] {
            for tensors in [TensorsSetting::Auto, TensorsSetting::All] {
                let config = Config { mode, tensors, ..Config::default() };
                let memory = MemoryReport { available_bytes: 5 << 12, limit_bytes: 1 << 20, limited_by: String::new() };
                let plan = decide(&gguf, |_| Place::Ram, &config, &memory);
                assert!(plan.streamed_bytes <= plan.host_bytes);
            }
        }
        let files: Vec<File> = gguf.files().iter().filter_map(|file| File::open(&file.path).ok()).collect();
        if let Some(tensor) = gguf.tensors().first() {
            let wanted = Wanted { name: &tensor.name, ggml_type: tensor.ggml_type.id(), size_bytes: tensor.size_bytes };
            let _ = discover::find(wanted);
        }
        drop(files);
    }
}
