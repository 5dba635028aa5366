//! What the integration tests share: small GGUF files with known bytes, sessions on them, a watchdog.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

pub mod gguf_writer;
pub mod host;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hypura::config::Config;
use hypura::error::Result;
use hypura::gguf::{GgmlType, Gguf};
use hypura::index::ExpertId;
use hypura::plan::Place;
use hypura::stream::{Block, Fetch, Session};

use gguf_writer::GgufWriter;

/// Numbers of ggml types.
pub const F32: u32 = 0;
pub const I32: u32 = 26;
pub const Q8_0: u32 = 8;
pub const Q4_K: u32 = 12;

/// Numbers that only look random: the same for the same seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index + 1));
        }
    }
}

/// A directory of its own for one test, removed with its contents when dropped.
pub struct TestDirectory(PathBuf);

impl TestDirectory {
    pub fn new() -> Self {
        Self::inside(&std::env::temp_dir())
    }

    pub fn inside(parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("hypura-integration-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file at a relative path, with the directories that lead to it.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        // Nothing depends on it; a leftover directory must not hide why a test failed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Tensor {
    name: String,
    type_id: u32,
    shape: Vec<u64>,
    data: Vec<u8>,
}

/// The tensors of a model to be written.
pub struct ModelWriter {
    tensors: Vec<Tensor>,
    random: Random,
}

impl ModelWriter {
    pub fn new(seed: u64) -> Self {
        Self { tensors: Vec::new(), random: Random::new(seed) }
    }

    /// Adds a tensor of random bytes.
    pub fn tensor(&mut self, name: &str, type_id: u32, shape: &[u64]) {
        let mut padded = [1; 4];
        padded[..shape.len()].copy_from_slice(shape);
        let size_bytes = GgmlType::from_id(type_id).unwrap().tensor_bytes(padded).unwrap();
        let data = self.random.bytes(size_bytes as usize);
        self.tensors.push(Tensor { name: name.to_owned(), type_id, shape: shape.to_vec(), data });
    }

    /// Writes the model to `part_count` files.
    pub fn write(self, directory: TestDirectory, part_count: usize) -> Model {
        let per_part = self.tensors.len().div_ceil(part_count);
        let paths: Vec<PathBuf> = (0..part_count)
            .map(|part| {
                let name = match part_count {
                    1 => "model.gguf".to_owned(),
                    _ => format!("model-{:05}-of-{part_count:05}.gguf", part + 1),
                };
                directory.path().join(name)
            })
            .collect();
        for (part, (path, tensors)) in paths.iter().zip(self.tensors.chunks(per_part)).enumerate() {
            let bytes = file_bytes(tensors, part, part_count, self.tensors.len());
            let mut file = std::fs::File::create(path).unwrap();
            file.write_all(&bytes).unwrap();
            file.sync_all().unwrap();
        }
        // Time stamps are as coarse as the kernel's tick: a later change of the file must get another one.
        std::thread::sleep(Duration::from_millis(20));
        let gguf = Arc::new(Gguf::open(&paths[..1]).unwrap());
        let contents = self.tensors.into_iter().map(|tensor| tensor.data).collect();
        Model { directory, paths, gguf, contents }
    }
}

fn file_bytes(tensors: &[Tensor], part: usize, part_count: usize, tensor_count: usize) -> Vec<u8> {
    let mut writer = GgufWriter::new().text("general.architecture", "llama").without_end_padding();
    if part_count > 1 {
        for (key, value) in [("split.no", part), ("split.count", part_count), ("split.tensors.count", tensor_count)] {
            writer = writer.u32(key, value as u32);
        }
    }
    for Tensor { name, type_id, shape, data } in tensors {
        writer = writer.tensor(name, *type_id, shape, data.clone());
    }
    writer.bytes()
}

/// A model on disk whose every byte is known.
pub struct Model {
    pub directory: TestDirectory,
    pub paths: Vec<PathBuf>,
    pub gguf: Arc<Gguf>,
    /// By index in the GGUF: the tensor's bytes.
    contents: Vec<Vec<u8>>,
}

impl Model {
    pub fn session(&self, settings: &[(&str, &str)]) -> Result<Arc<Session>> {
        let session = Session::plan(&self.gguf, &self.config(settings)?, |_| Place::Ram)?;
        Ok(session.expect("HYPURA=stream streams any model that has feed-forward weights"))
    }

    pub fn session_with_ram(&self, ram_bytes: u64, settings: &[(&str, &str)]) -> Result<Arc<Session>> {
        let ram_bytes = ram_bytes.to_string();
        self.session(&[&[("HYPURA_RAM", &*ram_bytes)], settings].concat())
    }

    pub fn config(&self, settings: &[(&str, &str)]) -> Result<Config> {
        // The files were just written, so the page cache has them: reads would never come to the drive.
        let forced = [("HYPURA", "stream"), ("HYPURA_DIRECT", "cold")];
        let pairs = forced.iter().chain(settings);
        Config::from_variables(pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    pub fn minimum_bytes(&self, settings: &[(&str, &str)]) -> u64 {
        self.session(settings).unwrap().minimum_bytes()
    }

    /// The tensors that a session streams, in the order of the file.
    pub fn streamed(&self, session: &Session) -> Vec<usize> {
        (0..self.contents.len()).filter(|&tensor| session.streams(tensor)).collect()
    }

    /// How many experts a tensor has; 0 for a dense one.
    pub fn expert_count(&self, tensor: usize) -> usize {
        let info = &self.gguf.tensors()[tensor];
        if info.name.contains("_exps") { info.shape[2] as usize } else { 0 }
    }

    /// The right bytes of a block.
    pub fn block(&self, tensor: usize, expert: ExpertId) -> &[u8] {
        let contents = &self.contents[tensor];
        let block_bytes = contents.len() / self.expert_count(tensor).max(1);
        &contents[expert.0 * block_bytes..][..block_bytes]
    }

    /// Fails the test unless a delivered block has the bytes of the file as it was written.
    #[track_caller]
    pub fn assert_right(&self, tensor: usize, block: &Block) {
        let expected = self.block(tensor, block.expert);
        let info = &self.gguf.tensors()[tensor];
        // SAFETY: a delivered block is as long as its part of the tensor and stays until its fetch goes on, which only the
        // caller makes it do.
        let found = unsafe { std::slice::from_raw_parts(block.data, expected.len()) };
        if expected != found {
            let position = expected.iter().zip(found).position(|(expected, found)| expected != found).unwrap();
            panic!("{} expert {}: byte {position} of {} is wrong", info.name, block.expert, expected.len());
        }
        let offset = info.offset + (block.expert.0 * expected.len()) as u64;
        assert!(offset % 32 != 0 || block.data.addr() % 32 == 0, "{} is misaligned", info.name);
    }

    /// Fetches to the end; every distinct expert must come once, with the right bytes. Before each wait, another tensor's experts are
    /// taken early. Returns how many there were.
    #[track_caller]
    pub fn fetch_all(&self, fetch: &mut Fetch, tensor: usize, routing: &[i32], tokens: usize) -> Result<usize> {
        fetch.begin(tensor, routing, tokens)?;
        let mut expected: Vec<ExpertId> = routing.iter().filter_map(|&id| ExpertId::of_host(id)).collect();
        if self.expert_count(tensor) == 0 {
            expected.push(ExpertId(0));
        }
        expected.sort_unstable();
        expected.dedup();
        let mut delivered = Vec::new();
        let mut blocks = Vec::new();
        let with_experts: Vec<usize> =
            (0..self.gguf.tensors().len()).filter(|&tensor| self.expert_count(tensor) > 0).collect();
        loop {
            if !with_experts.is_empty() && !fetch.is_ready() {
                let other = with_experts[(tensor + delivered.len()) % with_experts.len()];
                fetch.early(other, &mut blocks)?;
                for block in &blocks {
                    self.assert_right(other, block);
                    assert!(expected.contains(&block.expert), "expert {} is not demanded", block.expert);
                }
            }
            fetch.next(&mut blocks)?;
            if blocks.is_empty() {
                break;
            }
            for block in &blocks {
                self.assert_right(tensor, block);
                delivered.push(block.expert);
            }
        }
        delivered.sort_unstable();
        assert_eq!(delivered, expected, "each distinct expert is delivered exactly once");
        Ok(expected.len())
    }

    /// One demand as a router would make it, or a bad one: from a single choice to many times every expert.
    pub fn random_routing(&self, random: &mut Random, tensor: usize) -> (Vec<i32>, usize) {
        let expert_count = self.expert_count(tensor);
        let tokens = [1, 1, 1, 2, 7, 33][random.below(6)];
        if expert_count == 0 {
            return (Vec::new(), tokens);
        }
        let used = 1 + random.below(expert_count.min(4));
        let routing = match random.below(8) {
            0 => (0..tokens * expert_count).map(|index| (index % expert_count) as i32).collect(),
            1 => vec![random.below(expert_count) as i32; tokens * used],
            _ => (0..tokens * used).map(|_| random.below(expert_count) as i32).collect(),
        };
        (routing, tokens)
    }

    /// Uses everything that is streamed once: what a session that is stuck or broken cannot do.
    #[track_caller]
    pub fn sweep(&self, session: &Arc<Session>) -> Result<()> {
        let mut fetch = session.new_fetch();
        for tensor in self.streamed(session) {
            let routing: Vec<i32> = (0..self.expert_count(tensor) as i32).collect();
            self.fetch_all(&mut fetch, tensor, &routing, 1)?;
        }
        Ok(())
    }

    /// Demands in a random order, then passes over all tensors in orders that change. Returns how many demands there were for
    /// distinct experts.
    pub fn random_demands(&self, session: &Arc<Session>, seed: u64, count: usize) -> Result<usize> {
        let mut random = Random::new(seed);
        let mut fetch = session.new_fetch();
        let mut streamed = self.streamed(session);
        let mut distinct = 0;
        for _ in 0..count {
            let tensor = streamed[random.below(streamed.len())];
            let (routing, tokens) = self.random_routing(&mut random, tensor);
            distinct += self.fetch_all(&mut fetch, tensor, &routing, tokens)?;
        }
        for pass in 0..4 {
            match pass {
                2 => streamed.reverse(),
                3 => random.shuffle(&mut streamed),
                _ => {}
            }
            for &tensor in &streamed {
                let (routing, tokens) = self.random_routing(&mut random, tensor);
                distinct += self.fetch_all(&mut fetch, tensor, &routing, tokens)?;
            }
        }
        Ok(distinct)
    }

    /// The budget that holds all that is streamed.
    pub fn everything_bytes(&self) -> u64 {
        let session = self.session_with_ram(1 << 40, &[]).unwrap();
        self.sweep(&session).unwrap();
        number(&stats(&session), "budget_bytes") + self.routers_bytes()
    }

    /// What the routers that look ahead take of a budget: all but the first layer's, as f32.
    fn routers_bytes(&self) -> u64 {
        let routers = self.gguf.tensors().iter().filter(|tensor| tensor.name.ends_with("ffn_gate_inp.weight"));
        routers.skip(1).map(|tensor| 4 * tensor.shape.iter().product::<u64>()).sum()
    }
}

/// What the session tells of itself.
pub fn stats(session: &Session) -> serde_json::Value {
    serde_json::from_str(&session.stats_json()).unwrap()
}

pub fn number(stats: &serde_json::Value, key: &str) -> u64 {
    stats[key].as_u64().unwrap_or_else(|| panic!("{key} is not a number in {stats}"))
}

/// A model in this directory, from this seed, in so many files.
pub type ModelMaker = fn(TestDirectory, u64, usize) -> Model;

/// One model of each kind.
pub const MODELS: [ModelMaker; 2] = [expert_model, dense_model];

/// Three layers of experts in three types. No expert's size is a multiple of 512, one kind is a few bytes short of a page
/// (so that widening takes another one), one is read in several parts, and what is not streamed lies in between.
pub fn expert_model(directory: TestDirectory, seed: u64, part_count: usize) -> Model {
    let mut writer = ModelWriter::new(seed);
    writer.tensor("token_embd.weight", F32, &[64, 50]);
    for layer in 0..3 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        writer.tensor(&name("attn_q"), Q8_0, &[64, 64]);
        writer.tensor(&name("ffn_gate_inp"), F32, &[64, 12]);
        writer.tensor(&name("ffn_gate_exps"), Q8_0, &[64, 60, 12]);
        writer.tensor(&name("ffn_up_exps"), Q4_K, &[256, 93, 12]);
        writer.tensor(&name("ffn_norm"), F32, &[67]);
        match layer {
            1 => writer.tensor(&name("ffn_down_exps"), F32, &[1031, 260, 5]),
            _ => writer.tensor(&name("ffn_down_exps"), F32, &[37, 11, 12]),
        }
    }
    writer.tensor("output.weight", F32, &[64, 50]);
    writer.write(directory, part_count)
}

/// Nine layers of dense feed-forward weights, of which one matrix is alone in its size. The others are a few bytes short of
/// whole pages.
pub fn dense_model(directory: TestDirectory, seed: u64, part_count: usize) -> Model {
    let mut writer = ModelWriter::new(seed);
    writer.tensor("token_embd.weight", F32, &[64, 50]);
    for layer in 0..9 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        writer.tensor(&name("attn_q"), Q8_0, &[64, 64]);
        writer.tensor(&name("ffn_gate"), Q4_K, &[256, 85]);
        writer.tensor(&name("ffn_up"), Q4_K, &[256, 85]);
        match layer {
            4 => writer.tensor(&name("ffn_down"), F32, &[1031, 611]),
            _ => writer.tensor(&name("ffn_down"), F32, &[71, 257]),
        }
    }
    writer.write(directory, part_count)
}

/// Runs a test that could hang: fails it after `seconds` instead.
#[track_caller]
pub fn within<T: Send + 'static>(seconds: u64, test: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = test();
        // The receiver is gone only when the time was up.
        let _ = sender.send(());
        result
    });
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("stuck: not finished after {seconds} s"),
        // Disconnected without a message: the test panicked, which `join` passes on.
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Says that a test was not run, past the test harness's capture. With HYPURA_TEST_NO_SKIP set that is a failure.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var_os("HYPURA_TEST_NO_SKIP").is_none(), "skipping is not allowed here: {reason}");
    // `eprintln` would be captured and, as the test passes, never shown.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}
