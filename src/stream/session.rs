//! A loaded model: what is planned for it, and the machinery that starts with its first use.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::config::{Config, DirectSetting, ModeSetting};
use crate::error::{Error, ErrorCode, Result};
use crate::gguf::Gguf;
use crate::hw;
use crate::io::{self, Alignment, DirectFile, Tuning};
use crate::memory::{self, Claim, HostMemory, MappedWeights};
use crate::persist;
use crate::plan::{self, Place, Plan, bytes_for_tables, minimum_bytes, tables_claim};
use crate::stats::{Counters, Statistics};

use super::device::HeldVram;
use super::fetch::Fetch;
use super::machine_at_load::MachineAtLoad;
use super::running::{Running, snapshot};
use super::tensors::StreamedTensors;

/// A model whose weights are streamed.
pub struct Session {
    pub(super) gguf: Arc<Gguf>,
    pub(super) config: Config,
    pub(super) plan: Plan,
    pub(super) tuning: Tuning,
    pub(super) machine: MachineAtLoad,
    pub(super) files: Arc<[DirectFile]>,
    /// All that may be streamed. What of it is, the first demand finds: see [`Self::taking_part`].
    planned: Arc<StreamedTensors>,
    /// By tensor of the GGUF: whether the host said that it loads it.
    bound: Box<[AtomicBool]>,
    /// The host has said so of all that it will demand.
    is_loaded: AtomicBool,
    mapped_weights: OnceLock<MappedWeights>,
    /// Where slots are, if the host has memory for them.
    pub(super) host_memory: OnceLock<Arc<dyn HostMemory>>,
    pub(super) vram: Arc<HeldVram>,
    running: OnceLock<Running>,
    /// Held by whoever starts it.
    starting: Mutex<()>,
}

impl Session {
    /// Plans a model. `None` when it runs best without streaming.
    ///
    /// # Errors
    /// `Open` when a file cannot be read, `Config` when direct I/O is demanded and impossible, `Budget` when `HYPURA_RAM`
    /// is below the working minimum.
    pub fn plan(gguf: &Arc<Gguf>, config: &Config, place: impl Fn(usize) -> Place) -> Result<Option<Arc<Self>>> {
        let memory = memory::memory_for_another();
        let plan = plan::decide(gguf, &place, config, &memory);
        tracing::info!("{}: {}", plan.mode.name(), plan.reason);
        // What stays with the host, and its context, come next.
        let resident_bytes = plan.host_bytes - plan.streamed_bytes;
        memory::make_room_to_load(resident_bytes + plan::WORKING_BYTES);
        if plan.streamed.is_empty() {
            return Ok(None);
        }
        let paths: Vec<PathBuf> = gguf.files().iter().map(|file| file.path.clone()).collect();
        let (tuning, files) = io::tune(&paths, config)?;
        for (opened, parsed) in files.iter().zip(gguf.files()) {
            opened.expect(parsed.identity, parsed.content)?;
            if matches!(config.direct, DirectSetting::Auto | DirectSetting::Off) {
                opened.use_page_cache();
            }
        }
        let planned = Arc::new(StreamedTensors::new(gguf, &plan.streamed, &alignments(&files)));
        match config.ram_bytes {
            Some(ram_bytes) => drop(bytes_for_tables(ram_bytes, planned.table_bytes(), &planned.classes)?),
            None if !can_run(config, resident_bytes, &planned)? => return Ok(None),
            None => {}
        }
        check_outputs(config)?;
        let machine = MachineAtLoad::of(gguf, &place, &plan, &tuning, &config.store);
        Ok(Some(Arc::new(Self {
            gguf: Arc::clone(gguf),
            config: config.clone(),
            plan,
            tuning,
            machine,
            files,
            planned,
            bound: gguf.tensors().iter().map(|_| AtomicBool::new(false)).collect(),
            is_loaded: AtomicBool::new(false),
            mapped_weights: OnceLock::new(),
            host_memory: OnceLock::new(),
            vram: Arc::default(),
            running: OnceLock::new(),
            starting: Mutex::new(()),
        })))
    }

    /// Whether a tensor, by its index in the GGUF, is streamed.
    pub fn streams(&self, tensor: usize) -> bool {
        self.planned.find(tensor).is_some() || self.is_table(tensor)
    }

    /// Whether it is streamed by the row.
    pub fn is_table(&self, tensor: usize) -> bool {
        self.planned.table(tensor).is_some()
    }

    /// The host loads a tensor, by its index in the GGUF.
    pub fn note_bound(&self, tensor: usize) {
        if let Some(bound) = self.bound.get(tensor) {
            bound.store(true, Ordering::Relaxed);
        }
    }

    /// The host has bound all that it will demand. What is in the file and was not bound takes no part then.
    pub fn note_loaded(&self) {
        self.is_loaded.store(true, Ordering::Release);
        let is_bound = |tensor: usize| self.bound[tensor].load(Ordering::Relaxed);
        for table in self.planned.tables.iter().filter(|table| !is_bound(table.tensor)) {
            // A warning, because that is the least level that llama.cpp's tools show unasked.
            tracing::warn!(
                "{} is not streamed by the row: the host keeps it, or maps it and reads it page by page; llama.cpp without the patches \
                 hands it over with --lazy-mode off",
                self.gguf.tensors()[table.tensor].name
            );
        }
    }

    /// What the host has bound of what was planned; all of it for a host that does not say when it has.
    pub(super) fn taking_part(&self) -> Arc<StreamedTensors> {
        let is_loaded = self.is_loaded.load(Ordering::Acquire);
        let is_bound = |&tensor: &usize| is_loaded && self.bound[tensor].load(Ordering::Relaxed);
        let bound: Vec<usize> = self.plan.streamed.iter().copied().filter(is_bound).collect();
        if bound.is_empty() || bound.len() == self.plan.streamed.len() {
            return Arc::clone(&self.planned);
        }
        let unused = self.plan.streamed.len() - bound.len();
        tracing::info!(
            "{unused} tensors that could be streamed are in the file but were not loaded: they take no part"
        );
        Arc::new(StreamedTensors::new(&self.gguf, &bound, &alignments(&self.files)))
    }

    /// The plan.
    pub fn plan_summary(&self) -> &Plan {
        &self.plan
    }

    /// How many tokens the host should compute at once, given what it would by itself.
    pub fn micro_batch(&self, batch: u64, micro_batch: u64) -> u64 {
        plan::micro_batch(&self.gguf, batch, micro_batch, &hw::memory())
    }

    /// The next type of weights, by its number in ggml, of which it is not known how fast the host multiplies with it on so many
    /// threads; `None` when all are known, once something was demanded, and when a measurement, which takes `needed_bytes` of
    /// memory, would take too much of it.
    pub fn next_unmeasured(&self, threads: usize, needed_bytes: u64) -> Option<u32> {
        if self.running.get().is_some() { None } else { self.machine.next_unmeasured(threads, needed_bytes) }
    }

    /// Notes how fast that is, in bytes of weights per second; 0 for what cannot be measured.
    pub fn set_speed(&self, ggml_type: u32, threads: usize, bytes_per_second: f64) {
        self.machine.set_speed(ggml_type, threads, bytes_per_second);
    }

    /// The host keeps the weights that are not streamed in a mapping of the file instead of memory of its own.
    pub fn note_mapped_host(&self) {
        self.mapped_weights.get_or_init(|| MappedWeights::new(self.plan.host_bytes - self.plan.streamed_bytes));
    }

    /// The smallest budget that works, in bytes.
    pub fn minimum_bytes(&self) -> u64 {
        minimum_bytes(&self.planned.classes) + tables_claim(self.planned.table_bytes()).0
    }

    /// The largest budget that it has use for, in bytes.
    pub fn maximum_bytes(&self) -> u64 {
        claim(&self.planned).most
    }

    /// A new, idle fetch, to be reused for as long as its owner likes.
    pub fn new_fetch(self: &Arc<Self>) -> Fetch {
        Fetch::new(Arc::clone(self))
    }

    /// What is expected of the model, as JSON: what lives where, how fast that is, and why. `null` before the first demand, when the
    /// memory has not been divided yet.
    pub fn plan_json(&self) -> String {
        match self.running.get() {
            Some(running) => running.placement.to_json().to_string(),
            _ => serde_json::Value::Null.to_string(),
        }
    }

    /// The statistics as JSON, with the keys of `HYPURA_STATS`.
    pub fn stats_json(&self) -> String {
        match self.running.get() {
            Some(running) => {
                let facts = running.facts(self);
                let rows = running.rows.as_deref();
                snapshot(&running.core, &running.placement, rows, &self.files, &facts, &self.vram)
            }
            _ => Counters::default().statistics(self.idle_facts()).to_json(),
        }
    }

    /// The machinery, started by the first call. What was refused may be granted another time: only success is remembered.
    pub(super) fn running(&self) -> Result<&Running> {
        self.start_once(|| self.start())
    }

    /// The machinery, if it was started.
    pub(super) fn started(&self) -> Option<&Running> {
        self.running.get()
    }

    fn start_once(&self, start: impl FnOnce() -> Result<Running>) -> Result<&Running> {
        if let Some(running) = self.running.get() {
            return Ok(running);
        }
        let _starting = self.starting.lock();
        let running = match self.running.get() {
            Some(running) => return Ok(running), // another thread was faster
            None => start()?,
        };
        Ok(self.running.get_or_init(|| running))
    }

    /// Starts the machinery on an engine of a test's own.
    #[cfg(test)]
    pub(crate) fn start_on(
        &self,
        make: impl FnOnce(Arc<[DirectFile]>, usize, Arc<dyn io::Sink>) -> Box<dyn io::Engine>,
    ) {
        let start = || self.start_with(|files, token_count, sink| Ok(make(files, token_count, sink)));
        assert!(self.running.get().is_none(), "the session runs already");
        self.start_once(start).expect("the budget suffices");
    }

    pub(super) fn name(&self) -> String {
        let paths: Vec<PathBuf> = self.files.iter().map(|file| file.path().to_owned()).collect();
        paths
            .first()
            .and_then(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    fn is_direct(&self) -> bool {
        self.files.iter().all(DirectFile::is_direct)
    }

    pub(super) fn idle_facts(&self) -> Statistics {
        Statistics {
            mode: self.plan.mode.name().to_owned(),
            model_bytes: self.gguf.model_bytes(),
            layers: self.planned.by_layer(|_| false),
            direct_io: self.is_direct(),
            io_engine: "none".to_owned(),
            ..Statistics::default()
        }
    }
}

/// Whether what stays in memory and the least that streaming needs can be had. Where they cannot, a host that may do without us maps the
/// file and reads it page by page, slowly; so we stand aside, unless streaming was demanded, or it is other streaming processes that
/// hold the memory: beside them a mapping would get everybody killed.
fn can_run(config: &Config, resident_bytes: u64, streamed: &StreamedTensors) -> Result<bool> {
    let Err(refusal) = memory::check_load(resident_bytes, claim(streamed)) else { return Ok(true) };
    if config.mode == ModeSetting::Stream || refusal.is_by_others {
        let message = format!("{}; free memory, or take the risk with HYPURA_RAM", refusal.reason);
        return Err(Error::new(ErrorCode::Budget, message));
    }
    tracing::warn!("not streaming: {}; the host loads the model as it would without libhypura", refusal.reason);
    Ok(false)
}

/// Fails now for what would otherwise fail every demand.
fn check_outputs(config: &Config) -> Result<()> {
    for (name, path) in [("HYPURA_TRACE", &config.trace), ("HYPURA_TIMELINE", &config.timeline)] {
        let Some(path) = path else { continue };
        OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
            let message = format!("{name}={} cannot be written: {error}", path.display());
            Error::new(ErrorCode::Config, message)
        })?;
    }
    if let Some(path) = &config.stats {
        persist::check_replaceable(path).map_err(|error| {
            let message = format!("HYPURA_STATS={} cannot be written: {error}", path.display());
            Error::new(ErrorCode::Config, message)
        })?;
    }
    Ok(())
}

fn alignments(files: &[DirectFile]) -> Vec<Alignment> {
    files.iter().map(DirectFile::alignment).collect()
}

/// What a model can do with memory.
pub(super) fn claim(streamed: &StreamedTensors) -> Claim {
    let (claim, (least, most)) = (Claim::of(&streamed.classes), tables_claim(streamed.table_bytes()));
    Claim { least: claim.least + least, most: claim.most + most }
}
