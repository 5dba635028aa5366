//! What exists from the first demand on, and how it starts.

use std::sync::Arc;

use typed_index_collections::{TiSlice, TiVec};

use crate::cache::SlotCount;
use crate::config::PrefetchSetting;
use crate::error::Result;
use crate::hw;
use crate::index::PoolId;
use crate::io::{self, DirectFile, Engine, Sink};
use crate::memory::{self, Admission, Membership, Tenant};
use crate::plan::{SlotClass, in_gigabytes};
use crate::predict::{Lookahead, ProfileFile};
use crate::stats::{Statistics, StatsWriter};

use super::core::Core;
use super::device::HeldVram;
use super::first_touch::FirstTouch;
use super::learner::Learner;
use super::rows::Rows;
use super::running_placement::RunningPlacement;
use super::session::{Session, claim};
use super::speculation::{Predictor, ProfileKeeper};
use super::tensors::StreamedTensors;
use super::timeline::Timeline;
use super::trace::Trace;
use super::verify::Verifier;

/// What exists from the first fetch on: by then the host has allocated everything else, and what is left is known.
pub(super) struct Running {
    _membership: Membership,
    // In this order they are dropped: who gives the engine work, the engine, and then nothing writes to the slots any more.
    pub(super) predictor: Option<Predictor>,
    _keeper: Option<ProfileKeeper>,
    _first_touch: Option<FirstTouch>,
    pub(super) engine: Arc<dyn Engine>,
    _stats: Option<StatsWriter>,
    pub(super) learner: Learner,
    pub(super) placement: Arc<RunningPlacement>,
    pub(super) core: Arc<Core>,
    pub(super) verifier: Option<Verifier>,
    pub(super) trace: Option<Trace>,
    /// Tables that are looked up, if there are any.
    pub(super) rows: Option<Arc<Rows>>,
}

impl Session {
    /// Starts the machinery.
    pub(super) fn start(&self) -> Result<Running> {
        self.start_with(|files, token_count, sink| io::start(&self.tuning, files, token_count, sink))
    }

    /// Starts it on an engine of the caller's.
    pub(super) fn start_with(
        &self,
        make_engine: impl FnOnce(Arc<[DirectFile]>, usize, Arc<dyn Sink>) -> Result<Box<dyn Engine>>,
    ) -> Result<Running> {
        let is_flexible = self.config.ram_bytes.is_none();
        let streamed = self.taking_part();
        // Counts until the model is known to the governor itself. What the user has fixed is taken, and others make room for it.
        let admission = match self.config.ram_bytes {
            Some(ram_bytes) => {
                memory::make_room_to_load(ram_bytes.min(claim(&streamed).most));
                None
            }
            None => Some(memory::admit(claim(&streamed))?),
        };
        let fixed_bytes = self.config.ram_bytes.unwrap_or(0);
        let budget_bytes = admission.as_ref().map_or(fixed_bytes, Admission::budget_bytes);
        let vram_bytes = self.vram.held_bytes();
        let task = Arc::new(self.machine.task(&self.gguf, &self.config, self.plan.mode, &streamed, vram_bytes));
        let placement = task.place(budget_bytes)?;
        let (rows_bytes, slots) = (placement.rows_bytes, placement.slots.clone());
        let timeline = self.config.timeline.as_deref().map(Timeline::create).transpose()?;
        let slot_counts = slot_counts(&slots, &streamed.classes, is_flexible);
        let (prefetch, host_memory) = (self.config.prefetch, self.host_memory.get());
        let core = Core::new(Arc::clone(&streamed), task, &slot_counts, timeline, prefetch, host_memory)?;
        if !placement.counts_pairs {
            core.usage_profile.lock().leave_pairs_out();
        }
        let rows = match streamed.tables.is_empty() {
            true => None,
            false => Some(Arc::new(Rows::start(&self.files, &self.tuning, rows_bytes, &core)?)),
        };
        // At once: from here on what was admitted is in pools, and counts as such.
        let membership = memory::join(&(core.clone() as Arc<dyn Tenant>), is_flexible)?;
        drop(admission);
        // Not under the lock: an engine that starts may log.
        let token_count = core.state.lock().slots.token_count();
        let engine: Arc<dyn Engine> = make_engine(Arc::clone(&self.files), token_count, core.clone())?.into();
        let predictor = self.predictor(&core, &engine, placement.looks_ahead)?;
        let keeper = self.keeper(&core, &engine)?;
        // Memory that the host hands out is touched by then.
        let first_touch = host_memory.is_none().then(|| FirstTouch::start(&core)).transpose()?;
        let verifier = match self.config.verify {
            true => Some(Verifier::open(self.files.iter().map(DirectFile::path))?),
            false => None,
        };
        let trace = self.config.trace.as_deref().map(|path| Trace::create(path, &self.name())).transpose()?;
        let placement = Arc::new(RunningPlacement::new(&self.gguf, placement, &self.machine, &core));
        let learner = Learner::start(Arc::clone(&placement))?;
        let mut running = Running {
            _membership: membership,
            predictor,
            _keeper: keeper,
            _first_touch: first_touch,
            engine,
            _stats: None,
            learner,
            placement,
            core,
            verifier,
            trace,
            rows,
        };
        running._stats = self.stats_writer(&running)?;
        self.warn_of_the_cliff(&streamed, &slots);
        self.tell_how_it_runs(&running, rows_bytes, slots.iter().sum());
        Ok(running)
    }

    /// The thread that writes statistics, if they are wanted.
    fn stats_writer(&self, running: &Running) -> Result<Option<StatsWriter>> {
        let Some(path) = &self.config.stats else { return Ok(None) };
        let (core, placement) = (Arc::clone(&running.core), Arc::clone(&running.placement));
        let (rows, facts, vram) = (running.rows.clone(), running.facts(self), Arc::clone(&self.vram));
        let files = Arc::clone(&self.files);
        let snapshot = move || snapshot(&core, &placement, rows.as_deref(), &files, &facts, &vram);
        StatsWriter::start(path.clone(), snapshot).map(Some)
    }

    /// Logs what is streamed through how much memory, where everything is, and the speed that is expected.
    fn tell_how_it_runs(&self, running: &Running, rows_bytes: u64, slot_count: usize) {
        let streamed = &running.core.streamed;
        let block_bytes: u64 = streamed.blocks.iter().map(|block| block.size_bytes as u64).sum();
        // A warning, because that is the least level that llama.cpp's tools show unasked, and how a model runs is something
        // that its user should know.
        tracing::warn!(
            "{}: {} of {} streamed through {} of RAM ({slot_count} slots){}; reads: {}",
            self.plan.mode.name(),
            in_gigabytes(block_bytes + streamed.table_bytes()),
            in_gigabytes(self.gguf.model_bytes()),
            in_gigabytes(running.core.pool_bytes() + rows_bytes),
            self.elsewhere_phrase(running.placement.gpu_bytes()),
            self.tuning,
        );
        running.placement.log();
    }

    /// The thread that keeps the model's usage profile, when it has experts and there is a place for them.
    fn keeper(&self, core: &Arc<Core>, engine: &Arc<dyn Engine>) -> Result<Option<ProfileKeeper>> {
        let Some(directory) = self.config.store.directory() else { return Ok(None) };
        if core.streamed.expert_layers.is_empty() {
            return Ok(None);
        }
        let file = ProfileFile::new(directory, self.gguf.fingerprint());
        let warms = self.config.prefetch != PrefetchSetting::Off;
        ProfileKeeper::start(file, warms, core, Arc::clone(&self.files), Arc::clone(engine)).map(Some)
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
    fn warn_of_the_cliff(&self, streamed: &StreamedTensors, slots: &TiSlice<PoolId, usize>) {
        let used = self.gguf.hyper_parameters().expert_used_count as usize;
        let tensors = &streamed.tensors;
        let mut needed: TiVec<PoolId, usize> = vec![0; slots.len()].into();
        tensors.iter().for_each(|tensor| needed[tensor.pool] += if tensor.is_expert { used } else { 1 });
        let bytes = |slots: &TiSlice<PoolId, usize>| -> u64 {
            let classes = streamed.classes.iter().zip(slots);
            classes.map(|(class, &slots)| class.slot_bytes * slots as u64).sum()
        };
        let is_short = |(pool, class): (PoolId, &SlotClass)| !class.every_pass && slots[pool] < needed[pool];
        if streamed.classes.iter_enumerated().any(is_short) {
            tracing::warn!(
                "{} for weights is less than one token uses, so each of its experts is read for every token; \
                 from {} on, experts that are used again are still there",
                in_gigabytes(bytes(slots)),
                in_gigabytes(bytes(&needed)),
            );
        }
    }
}

/// How many slots each pool begins with, and may have.
fn slot_counts(
    slots: &TiSlice<PoolId, usize>,
    classes: &TiSlice<PoolId, SlotClass>,
    is_flexible: bool,
) -> TiVec<PoolId, SlotCount> {
    // A flexible model reserves addresses for all that it could ever hold, unless the host's own may become too few.
    let may_reserve = is_flexible && hw::address_space_limit().is_none();
    let most = |now: usize, class: &SlotClass| if may_reserve { class.block_count } else { now };
    slots.iter().zip(classes).map(|(&now, class)| SlotCount { now, most: most(now, class) }).collect()
}

impl Running {
    pub(super) fn facts(&self, session: &Session) -> Statistics {
        Statistics { io_engine: self.engine.name().to_owned(), ..session.idle_facts() }
    }
}

pub(super) fn snapshot(
    core: &Core,
    placement: &RunningPlacement,
    rows: Option<&Rows>,
    files: &[DirectFile],
    facts: &Statistics,
    vram: &HeldVram,
) -> String {
    let mut state = core.state.lock();
    state.slots.count_read_time(&core.counters);
    let layers = core.streamed.by_layer(|block| state.slots.location[block].is_some());
    let prefetch_pays = state.speculation.trial().verdict();
    let measured = state.pace.measured();
    drop(state);
    let resident_bytes: u64 = layers.iter().map(|layer| layer.resident_bytes).sum();
    let told = Statistics {
        layers,
        resident_bytes: resident_bytes + rows.map_or(0, Rows::held_bytes),
        budget_bytes: core.pool_bytes() + rows.map_or(0, Rows::memory_bytes),
        page_cache_bytes: files.iter().map(DirectFile::page_cache_bytes).sum(),
        vram_bytes: vram.held_bytes(),
        vram_bytes_max: vram.most_bytes(),
        prefetch_pays,
        plan: placement.summary(),
        predicted_tokens_per_second: Some(placement.prediction().tokens_per_second()),
        measured_tokens_per_second: measured.map(|measured| 1.0 / measured.seconds_per_token),
        ..facts.clone()
    };
    core.counters.statistics(told).to_json()
}
