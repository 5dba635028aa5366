//! A loaded model: what is planned for it, and the machinery that starts with its first use.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::cache::SlotCount;
use crate::config::{Config, ModeSetting, PrefetchSetting};
use crate::error::{Error, ErrorCode, Result};
use crate::gguf::Gguf;
use crate::hw;
use crate::io::{self, Alignment, DirectFile, Engine, Sink, Tuning};
use crate::memory::{self, Admission, Claim, HostMemory, MappedWeights, Membership, Tenant};
use crate::persist;
use crate::plan::{self, Place, Plan, SlotClass, bytes_for_tables, in_gigabytes, minimum_bytes, tables_claim};
use crate::predict::{Lookahead, Store};
use crate::stats::{Counters, Statistics, StatsWriter};

use super::core::Core;
use super::fetch::Fetch;
use super::learner::Learner;
use super::machine_at_load::MachineAtLoad;
use super::rows::Rows;
use super::running_placement::RunningPlacement;
use super::speculation::Predictor;
use super::speculation::ProfileKeeper;
use super::tensors::StreamedTensors;
use super::timeline::Timeline;
use super::trace::Trace;
use super::verify::Verifier;

/// A model whose weights are streamed.
pub struct Session {
    pub(super) gguf: Arc<Gguf>,
    pub(super) config: Config,
    plan: Plan,
    tuning: Tuning,
    machine: MachineAtLoad,
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
    /// Memory of GPUs that holds copies of experts.
    pub(super) vram_bytes: AtomicI64,
    /// The most that it was.
    pub(super) most_vram_bytes: Arc<AtomicU64>,
    running: OnceLock<Running>,
    /// Held by whoever starts it.
    starting: Mutex<()>,
}

/// What exists from the first fetch on: by then the host has allocated everything else, and what is left is known.
pub(super) struct Running {
    _membership: Membership,
    // In this order they are dropped: who gives the engine work, the engine, and then nothing writes to the slots any more.
    pub(super) predictor: Option<Predictor>,
    _keeper: Option<ProfileKeeper>,
    pub(super) engine: Arc<dyn Engine>,
    _stats: Option<StatsWriter>,
    pub(super) learner: Learner,
    placement: Arc<RunningPlacement>,
    pub(super) core: Arc<Core>,
    pub(super) verifier: Option<Verifier>,
    pub(super) trace: Option<Trace>,
    /// Tables that are looked up, if there are any.
    pub(super) rows: Option<Arc<Rows>>,
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
        }
        let planned = Arc::new(StreamedTensors::new(gguf, &plan.streamed, &alignments(&files)));
        match config.ram_bytes {
            Some(ram_bytes) => drop(bytes_for_tables(ram_bytes, planned.table_bytes(), &planned.classes)?),
            None if !can_run(config, resident_bytes, &planned)? => return Ok(None),
            None => {}
        }
        check_outputs(config)?;
        let machine = MachineAtLoad::of(gguf, &place, &plan, &tuning, config.cache_directory.as_deref());
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
            vram_bytes: AtomicI64::default(),
            most_vram_bytes: Arc::default(),
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
    fn taking_part(&self) -> Arc<StreamedTensors> {
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
                snapshot(&running.core, &running.placement, running.rows.as_deref(), &facts, &self.most_vram_bytes)
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
    pub(crate) fn start_on(&self, make: impl FnOnce(Arc<[DirectFile]>, usize, Arc<dyn Sink>) -> Box<dyn Engine>) {
        let start = || self.start_with(|files, token_count, sink| Ok(make(files, token_count, sink)));
        assert!(self.running.get().is_none(), "the session runs already");
        self.start_once(start).expect("the budget suffices");
    }

    fn start(&self) -> Result<Running> {
        self.start_with(|files, token_count, sink| io::start(&self.tuning, files, token_count, sink))
    }

    fn start_with(
        &self,
        make_engine: impl FnOnce(Arc<[DirectFile]>, usize, Arc<dyn Sink>) -> Result<Box<dyn Engine>>,
    ) -> Result<Running> {
        let is_flexible = self.config.ram_bytes.is_none();
        let streamed = self.taking_part();
        // Counts until the model is known to the governor itself.
        let admission = match self.config.ram_bytes {
            Some(_) => None,
            None => Some(memory::admit(claim(&streamed))?),
        };
        let fixed_bytes = self.config.ram_bytes.unwrap_or(0);
        let budget_bytes = admission.as_ref().map_or(fixed_bytes, Admission::budget_bytes);
        let vram_bytes = self.vram_bytes.load(Ordering::Relaxed).max(0) as u64;
        let task = Arc::new(self.machine.task(&self.gguf, &self.config, self.plan.mode, &streamed, vram_bytes));
        let placement = task.place(budget_bytes)?;
        let (rows_bytes, slots) = (placement.rows_bytes, placement.slots.clone());
        let timeline = self.config.timeline.as_deref().map(Timeline::create).transpose()?;
        // A flexible model reserves addresses for all that it could ever hold, unless the host's own may become too few.
        let may_reserve = is_flexible && hw::address_space_limit().is_none();
        let slot_counts = slots.iter().zip(&streamed.classes);
        let slot_counts =
            slot_counts.map(|(&now, class)| SlotCount { now, most: if may_reserve { class.block_count } else { now } });
        let slot_counts: Vec<SlotCount> = slot_counts.collect();
        let (prefetch, host_memory) = (self.config.prefetch, self.host_memory.get());
        let core = Core::new(Arc::clone(&streamed), task, &slot_counts, timeline, prefetch, host_memory)?;
        if !placement.counts_pairs {
            core.usage_profile.lock().leave_pairs_out();
        }
        let rows = match streamed.tables.is_empty() {
            true => None,
            false => Some(Arc::new(Rows::start(&self.files, &self.tuning, rows_bytes, &core)?)),
        };
        let engine: Arc<dyn Engine> = make_engine(Arc::clone(&self.files), core.token_count(), core.clone())?.into();
        let predictor = self.predictor(&core, &engine, placement.looks_ahead)?;
        let keeper = self.keeper(&core, &engine)?;
        let verifier = match self.config.verify {
            true => Some(Verifier::open(self.files.iter().map(DirectFile::path))?),
            false => None,
        };
        let trace = self.config.trace.as_deref().map(|path| Trace::create(path, &self.name())).transpose()?;
        let membership = memory::join(&(core.clone() as Arc<dyn Tenant>), is_flexible)?;
        drop(admission);
        let placement = Arc::new(RunningPlacement::new(&self.gguf, placement, &self.machine, &core));
        let learner = Learner::start(Arc::clone(&placement))?;
        let mut running = Running {
            _membership: membership,
            predictor,
            _keeper: keeper,
            engine,
            _stats: None,
            learner,
            placement,
            core,
            verifier,
            trace,
            rows,
        };
        if let Some(path) = &self.config.stats {
            let (core, placement, facts) =
                (Arc::clone(&running.core), Arc::clone(&running.placement), running.facts(self));
            let (rows, vram) = (running.rows.clone(), Arc::clone(&self.most_vram_bytes));
            let snapshot = move || snapshot(&core, &placement, rows.as_deref(), &facts, &vram);
            running._stats = Some(StatsWriter::start(path.clone(), snapshot)?);
        }
        self.warn_of_the_cliff(&streamed, &slots);
        // A warning, because that is the least level that llama.cpp's tools show unasked, and how a model runs is something
        // that its user should know.
        tracing::warn!(
            "{}: {} of {} streamed through {} of RAM ({} slots){}; reads: {}",
            self.plan.mode.name(),
            in_gigabytes(
                streamed.blocks.iter().map(|block| block.size_bytes as u64).sum::<u64>() + streamed.table_bytes()
            ),
            in_gigabytes(self.gguf.model_bytes()),
            in_gigabytes(running.core.pool_bytes() + rows_bytes),
            slots.iter().sum::<usize>(),
            self.vram_phrase(),
            self.tuning,
        );
        running.placement.log();
        Ok(running)
    }

    /// The thread that keeps the model's usage profile, when it has experts and there is a place for them.
    fn keeper(&self, core: &Arc<Core>, engine: &Arc<dyn Engine>) -> Result<Option<ProfileKeeper>> {
        let Some(directory) = self.config.cache_directory.clone() else { return Ok(None) };
        if core.streamed.expert_layers.is_empty() {
            return Ok(None);
        }
        let store = Store::new(directory, self.gguf.fingerprint());
        let warms = self.config.prefetch != PrefetchSetting::Off;
        ProfileKeeper::start(store, warms, core, Arc::clone(&self.files), Arc::clone(engine)).map(Some)
    }

    /// The thread that looks ahead, when there are experts.
    fn predictor(&self, core: &Arc<Core>, engine: &Arc<dyn Engine>, looks_ahead: bool) -> Result<Option<Predictor>> {
        if self.config.prefetch == PrefetchSetting::Off || core.streamed.expert_layers.is_empty() {
            return Ok(None);
        }
        if !looks_ahead {
            return Ok(None);
        }
        let lookahead = Lookahead::read(&self.gguf, &core.streamed.expert_layer_numbers());
        Predictor::start(lookahead, Arc::clone(core), Arc::clone(&self.files), Arc::clone(engine)).map(Some)
    }

    /// With fewer slots than one token uses, every expert is gone before it comes round again.
    fn warn_of_the_cliff(&self, streamed: &StreamedTensors, slots: &[usize]) {
        let used = self.gguf.hyper_parameters().expert_used_count as usize;
        let tensors = &streamed.tensors;
        let mut needed = vec![0_usize; slots.len()];
        tensors.iter().for_each(|tensor| needed[tensor.pool] += if tensor.is_expert { used } else { 1 });
        let bytes = |slots: &[usize]| -> u64 {
            let classes = streamed.classes.iter().zip(slots);
            classes.map(|(class, &slots)| class.slot_bytes * slots as u64).sum()
        };
        let is_short = |(pool, class): (usize, &SlotClass)| !class.every_pass && slots[pool] < needed[pool];
        if streamed.classes.iter().enumerate().any(is_short) {
            tracing::warn!(
                "{} for weights is less than one token uses, so each of its experts is read for every token; \
                 from {} on, experts that are used again are still there",
                in_gigabytes(bytes(slots)),
                in_gigabytes(bytes(&needed)),
            );
        }
    }

    fn name(&self) -> String {
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

    fn idle_facts(&self) -> Statistics {
        Statistics {
            mode: self.plan.mode.name().to_owned(),
            model_bytes: self.gguf.model_bytes(),
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

impl Running {
    fn facts(&self, session: &Session) -> Statistics {
        Statistics { io_engine: self.engine.name().to_owned(), ..session.idle_facts() }
    }
}

fn alignments(files: &[DirectFile]) -> Vec<Alignment> {
    files.iter().map(DirectFile::alignment).collect()
}

/// What a model can do with memory.
fn claim(streamed: &StreamedTensors) -> Claim {
    let (claim, (least, most)) = (Claim::of(&streamed.classes), tables_claim(streamed.table_bytes()));
    Claim { least: claim.least + least, most: claim.most + most }
}

fn snapshot(
    core: &Core,
    placement: &RunningPlacement,
    rows: Option<&Rows>,
    facts: &Statistics,
    vram_bytes: &AtomicU64,
) -> String {
    let mut state = core.state.lock();
    core.count_read_time(&mut state.slots);
    let resident_bytes: u64 = state
        .slots
        .location
        .iter()
        .zip(&core.streamed.blocks)
        .filter(|(location, _)| location.is_some())
        .map(|(_, extent)| extent.size_bytes as u64)
        .sum();
    let prefetch_pays = state.speculation.trial().verdict();
    let measured = state.pace.measured();
    drop(state);
    let told = Statistics {
        resident_bytes: resident_bytes + rows.map_or(0, Rows::held_bytes),
        budget_bytes: core.pool_bytes() + rows.map_or(0, Rows::memory_bytes),
        vram_bytes: vram_bytes.load(Ordering::Relaxed),
        prefetch_pays,
        plan: placement.summary(),
        predicted_tokens_per_second: Some(placement.prediction().tokens_per_second()),
        measured_tokens_per_second: measured.map(|measured| 1.0 / measured.seconds_per_token),
        ..facts.clone()
    };
    core.counters.statistics(told).to_json()
}
