//! What is expected of a running model, what it then does, and what the next run learns from that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cache::Pool;
use crate::forecast::Kernels;
use crate::forecast::{
    Circumstances, Frequencies, Keeping, Learned, Prediction, Problem, Seat, Solution, divide, measure_memory,
    problem_of, solve,
};
use crate::gguf::{Gguf, layer_of};
use crate::hw::{self, Profile};
use crate::io::Tuning;
use crate::plan::{Mode, Place, Plan};

use super::core::Core;
use super::dense::Pins;
use super::tensors::StreamedTensors;

/// A smaller model is a toy: what it does is not worth measuring the machine for, nor keeping.
const TOY_BYTES: u64 = 16 << 20;

/// What a multiplication with streamed weights takes beyond one with resident ones: the demand, a graph of its own.
const DEMAND_SECONDS: f64 = 50e-6;

/// Where a model runs: what is known when it is loaded, before anything is computed.
pub(super) struct Surroundings {
    profile: Profile,
    /// Where what is learned is kept, if anywhere.
    cache_directory: Option<PathBuf>,
    /// By tensor: where the host keeps it.
    places: Box<[Place]>,
    /// The tensors that were to be streamed, in order.
    planned: Box<[usize]>,
    read_overhead_seconds: f64,
    kernels: Mutex<Kernels>,
    /// The types of weights whose speed matters.
    types: Vec<u32>,
}

impl Surroundings {
    /// Looks at the machine. Measures how fast memory is, once per machine; `tuning` tells how fast the drive is.
    pub(super) fn of(
        gguf: &Gguf,
        place: &dyn Fn(usize) -> Place,
        plan: &Plan,
        tuning: &Tuning,
        cache_directory: Option<&Path>,
    ) -> Self {
        let path = gguf.files().first().map_or(Path::new("/"), |file| &file.path);
        let mut profile = hw::profile(path);
        profile.drive_bytes_per_second = tuning.bytes_per_second;
        if gguf.model_bytes() >= TOY_BYTES {
            measure_memory(&mut profile, cache_directory);
        }
        for note in &profile.notes {
            tracing::info!("{note}");
        }
        Self {
            kernels: Mutex::new(Kernels::kept_in(cache_directory.map(Path::to_owned), profile.machine())),
            types: main_types(gguf, place),
            cache_directory: cache_directory.map(Path::to_owned),
            profile,
            places: (0..gguf.tensors().len()).map(place).collect(),
            planned: plan.streamed.clone().into(),
            read_overhead_seconds: tuning.read_overhead_seconds.unwrap_or(0.0),
        }
    }

    /// The next type of weights whose speed with so many threads should be measured, which takes `needed_bytes` of memory.
    pub(super) fn next_unmeasured(&self, threads: usize, needed_bytes: u64) -> Option<u32> {
        // Not what was there when the model was loaded: what is not streamed has come since.
        let available_bytes = hw::memory().available_bytes;
        self.kernels.lock().next_unmeasured(&self.types, threads, needed_bytes, available_bytes)
    }

    /// Notes the speed of a type that matters; others are not kept.
    pub(super) fn set_speed(&self, kind: u32, threads: usize, bytes_per_second: f64) {
        if !self.types.contains(&kind) {
            return;
        }
        tracing::debug!("weights of type {kind} are multiplied at {:.1} GB/s", bytes_per_second / 1e9);
        self.kernels.lock().set(kind, threads, bytes_per_second);
    }

    /// Where a tensor is, now that it is known what takes part: nothing else of a layer that is spare if none of it does.
    fn place_of(&self, gguf: &Gguf, tensor: usize, streamed: &StreamedTensors) -> Place {
        if streamed.find(tensor).is_some() || streamed.table(tensor).is_some() {
            return Place::Ram;
        }
        let layer = layer_of(&gguf.tensors()[tensor].name);
        let is_loaded = || streamed.tensors.iter().any(|streamed| Some(streamed.layer) == layer);
        match self.places[tensor] {
            _ if self.planned.binary_search(&tensor).is_ok() => Place::Absent,
            Place::Spare if is_loaded() => Place::Ram,
            place => place,
        }
    }

    /// What figures of a model are kept by: the processor, the cores and the drive.
    fn machine(&self) -> String {
        format!("{}, {}", self.profile.machine(), self.profile.drive.identity())
    }
}

/// The types that make up most of what is on the host; none for a toy.
fn main_types(gguf: &Gguf, place: &dyn Fn(usize) -> Place) -> Vec<u32> {
    /// A type with a smaller share of the bytes than one in so many does not matter.
    const SHARE: u64 = 64;
    let mut bytes: BTreeMap<u32, u64> = BTreeMap::new();
    for (index, tensor) in gguf.tensors().iter().enumerate() {
        if place(index) == Place::Ram && tensor.ggml_type.is_known() {
            *bytes.entry(tensor.ggml_type.id()).or_default() += tensor.size_bytes;
        }
    }
    let matters = |bytes: u64| gguf.model_bytes() >= TOY_BYTES && bytes.saturating_mul(SHARE) >= gguf.model_bytes();
    bytes.into_iter().filter(|(_, bytes)| matters(*bytes)).map(|(kind, _)| kind).collect()
}

/// The expectation, from the moment on when the memory is divided.
pub(super) struct Outlook {
    mode: Mode,
    /// As it would be without earlier runs.
    problem: Problem,
    seats: Vec<Seat>,
    /// What earlier runs taught.
    recalled: Learned,
    solution: Solution,
    /// By pool.
    slots: Box<[usize]>,
    /// Bytes of all slots.
    pool_bytes: u64,
    profile: Value,
    model: String,
    machine: String,
    is_toy: bool,
    cache_directory: Option<PathBuf>,
    core: Arc<Core>,
    /// The best division that there is, once somebody has asked.
    best: OnceLock<Option<Solution>>,
}

impl Outlook {
    /// Foresees what `core` will do. `frequencies` are those of earlier runs, if there were any.
    pub(super) fn new(
        gguf: &Gguf,
        mode: Mode,
        surroundings: &Surroundings,
        core: &Arc<Core>,
        slots: &[usize],
        frequencies: Option<&Frequencies>,
    ) -> Self {
        let (streamed, machine, is_toy) = (&core.streamed, surroundings.machine(), gguf.model_bytes() < TOY_BYTES);
        let place = |tensor: usize| surroundings.place_of(gguf, tensor, streamed);
        let pool_bytes: u64 = slots.iter().zip(&streamed.classes).map(|(&s, class)| s as u64 * class.slot_bytes).sum();
        let is_streamed = |tensor: usize| streamed.find(tensor).is_some() || streamed.table(tensor).is_some();
        let host_bytes = |tensor: usize| match place(tensor) == Place::Ram && !is_streamed(tensor) {
            true => gguf.tensors()[tensor].size_bytes,
            false => 0,
        };
        let circumstances = Circumstances {
            ram_bytes: (0..gguf.tensors().len()).map(host_bytes).sum::<u64>() + pool_bytes,
            gpu_bytes: 0,
            read_overhead_seconds: surroundings.read_overhead_seconds,
        };
        let profile =
            Profile { multiply_bytes_per_second: surroundings.kernels.lock().speeds(), ..surroundings.profile.clone() };
        let mut problem = problem_of(gguf, place, &profile, &circumstances, frequencies);
        let keeping: Vec<Keeping> = problem.items.iter().map(|item| keeping(&item.tensors, streamed)).collect();
        for (item, keeping) in problem.items.iter_mut().zip(&keeping) {
            item.streamable = *keeping != Keeping::Fixed;
        }
        problem.machine.fixed_seconds += streamed.tensors.len() as f64 * DEMAND_SECONDS;
        let recalled = if is_toy {
            Learned::default()
        } else {
            Learned::recall(surroundings.cache_directory.as_deref(), gguf.fingerprint(), &machine)
        };
        let mut corrected = problem.clone();
        recalled.correct(&mut corrected);
        let slot_bytes: Vec<u64> = streamed.classes.iter().map(|class| class.slot_bytes).collect();
        let seats = divide(&mut corrected, &keeping, &slot_bytes, slots, Pins::FIRST_RING);
        (problem.dense_ring_bytes, problem.expert_ring_bytes) =
            (corrected.dense_ring_bytes, corrected.expert_ring_bytes);
        let solution = Solution {
            tiers: corrected.tiers(&seats),
            prediction: recalled.predict(&corrected, &seats),
            seats: seats.clone(),
            bound_seconds: None,
        };
        Self {
            mode,
            problem,
            seats,
            recalled,
            solution,
            slots: slots.into(),
            pool_bytes,
            profile: profile.to_json(),
            model: gguf.fingerprint().to_owned(),
            machine,
            is_toy,
            cache_directory: surroundings.cache_directory.clone(),
            core: Arc::clone(core),
            best: OnceLock::new(),
        }
    }

    /// Says so in the log.
    pub(super) fn log(&self) {
        let lines = self.solution.explain(&self.problem);
        let Some((expected, places)) = lines.split_last() else { return };
        places.iter().skip(1).for_each(|line| tracing::info!("{line}"));
        // A warning, like the line on what is streamed: a user should know without having asked.
        tracing::warn!("{expected}");
    }

    pub(super) fn prediction(&self) -> &Prediction {
        &self.solution.prediction
    }

    /// As JSON, in short.
    pub(super) fn summary(&self) -> Value {
        let Solution { tiers, prediction, .. } = &self.solution;
        json!({
            "mode": self.mode.name(),
            "gpu_bytes": tiers.gpu,
            "ram_bytes": tiers.ram,
            "ring_bytes": tiers.ring,
            "slots_bytes": self.pool_bytes,
            "drive_bytes": tiers.drive,
            "ram_budget_bytes": self.problem.machine.ram_bytes,
            "prediction": prediction.to_json(),
            "learned": self.recalled.to_json(),
        })
    }

    /// As JSON, with every item, the machine, and the best that any division of the same memory could do.
    pub(super) fn to_json(&self) -> Value {
        let best = self.best.get_or_init(|| {
            let mut problem = self.problem.clone();
            self.recalled.correct(&mut problem);
            solve(&problem).ok()
        });
        let mut json = self.summary();
        json["items"] = self.solution.to_json(&self.problem)["items"].take();
        json["machine"] = self.profile.clone();
        json["best"] = best.as_ref().map_or(Value::Null, |best| best.prediction.to_json());
        json
    }

    /// Keeps what this run has shown so far for the next one. Cheap, but it writes a small file. A run whose pools are not what was
    /// foreseen shows nothing.
    pub(super) fn learn(&self) {
        let state = self.core.state.lock();
        let as_foreseen = state.pools.iter().map(Pool::slot_count).eq(self.slots.iter().copied());
        let measured = state.pace.measured().filter(|_| as_foreseen && !self.is_toy);
        drop(state);
        let learned = measured.and_then(|measured| self.recalled.after(&self.problem, &self.seats, &measured));
        if let Some(learned) = learned {
            learned.remember(self.cache_directory.as_deref(), &self.model, &self.machine);
        }
    }
}

impl Drop for Outlook {
    fn drop(&mut self) {
        self.learn();
    }
}

fn keeping(tensors: &[usize], streamed: &StreamedTensors) -> Keeping {
    if tensors.iter().any(|&tensor| streamed.table(tensor).is_some()) {
        return Keeping::Table;
    }
    let found: Option<Vec<usize>> = tensors.iter().map(|&tensor| streamed.find(tensor)).collect();
    match found.as_deref() {
        None | Some([]) => Keeping::Fixed,
        Some([tensor]) if !streamed.tensors[*tensor].is_expert => Keeping::Dense(streamed.tensors[*tensor].pool),
        Some(tensors) => Keeping::Experts(tensors.iter().map(|&tensor| streamed.tensors[tensor].pool).collect()),
    }
}
