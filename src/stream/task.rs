//! A model on a machine as [`crate::placement`] wants it: for the session that carries the placement out, and for whoever asks beforehand.

use std::path::Path;

use super::tensors::StreamedTensors;
use crate::config::{Config, DirectSetting, PrefetchSetting};
use crate::error::{Error, ErrorCode, Result};
use crate::forecast::{Kernels, Learned, Problem, problem_of};
use crate::gguf::Gguf;
use crate::hw::{MemoryReport, Profile};
use crate::index::StreamedId;
use crate::io::{Alignment, DirectFile};
use crate::persist::Store;
use crate::placement::{Allocation, Placement, Task};
use crate::plan::{Mode, Place, decide, in_gigabytes, minimum_bytes, tables_claim};
use crate::predict::UsageProfile;

/// A smaller model is a toy: what it does is not worth measuring the machine for, nor keeping.
pub(super) const TOY_BYTES: u64 = 16 << 20;

/// What a multiplication with streamed weights takes beyond one with resident ones: the demand, a graph of its own. Measured on two cores
/// of one server.
const DEMAND_SECONDS: f64 = 50e-6;

/// What is known of the machine that a model runs on.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// Memory, cores and drive; what is measured of it.
    pub profile: &'a Profile,
    /// What a read costs beyond its bytes.
    pub read_overhead_seconds: f64,
    /// Memory of GPUs for copies of experts, in bytes.
    pub vram_bytes: u64,
    /// Where facts of earlier runs are kept.
    pub store: &'a Store,
}

impl Machine<'_> {
    /// What figures of a model are kept by: the processor, the cores and the drive, whether a GPU computes with experts, and whether
    /// another machine has a part of the model.
    pub(super) fn key(&self, problem: &Problem) -> String {
        let gpu = if problem.vram_bytes > 0 { ", GPU" } else { "" };
        let remote = if problem.items.iter().any(|item| item.is_remote) { ", remote" } else { "" };
        format!("{}, {}{gpu}{remote}", self.profile.machine(), self.profile.drive.identity())
    }
}

/// The task of placing a model; `place` tells where the host keeps what is not among the streamed.
pub(super) fn task_of(
    gguf: &Gguf,
    mode: Mode,
    place: impl Fn(usize) -> Place,
    streamed: &StreamedTensors,
    looks_ahead: bool,
    machine: &Machine<'_>,
) -> Task {
    let mut problem = problem_of(gguf, place, machine.profile, machine.read_overhead_seconds);
    problem.vram_bytes = machine.vram_bytes;
    let allocation: Vec<Allocation> = problem.items.iter().map(|item| allocation(&item.tensors, streamed)).collect();
    for (item, held) in problem.items.iter_mut().zip(&allocation) {
        item.streamable = *held != Allocation::Fixed;
    }
    problem.machine.fixed_seconds += streamed.tensors.len() as f64 * DEMAND_SECONDS;
    let key = machine.key(&problem);
    let learned = match gguf.model_bytes() < TOY_BYTES {
        true => Learned::default(),
        false => Learned::recall(machine.store, gguf.fingerprint(), &key),
    };
    let (layers, expert_count) = (streamed.expert_layer_numbers(), streamed.policy_shape(false).expert_count);
    Task {
        mode,
        problem,
        learned,
        allocation,
        classes: streamed.classes.clone(),
        table_bytes: streamed.table_bytes(),
        router_bytes: if looks_ahead { routers_bytes(gguf, &layers) } else { 0 },
        pairs_bytes: if looks_ahead { pairs_bytes(layers.len(), expert_count) } else { 0 },
    }
}

/// What the pairs of the usage profile take in memory at most, in bytes, where that is more than a process varies by.
fn pairs_bytes(layer_count: usize, expert_count: usize) -> u64 {
    const NEGLIGIBLE_BYTES: u64 = 1 << 20;
    Some(UsageProfile::pairs_bytes_at_most(layer_count, expert_count))
        .filter(|&bytes| bytes > NEGLIGIBLE_BYTES)
        .unwrap_or(0)
}

/// What the routers of these layers take in memory at most, in bytes: they are kept as single floats, whatever the file has. None is
/// applied to the first.
fn routers_bytes(gguf: &Gguf, layers: &[u32]) -> u64 {
    let router = |layer: &u32| gguf.find(&format!("blk.{layer}.ffn_gate_inp.weight"));
    let elements = |tensor: usize| gguf.tensors()[tensor].shape.iter().product::<u64>();
    layers.iter().skip(1).filter_map(router).map(elements).sum::<u64>() * size_of::<f32>() as u64
}

fn allocation(tensors: &[usize], streamed: &StreamedTensors) -> Allocation {
    if tensors.iter().any(|&tensor| streamed.table(tensor).is_some()) {
        return Allocation::Table;
    }
    let found: Option<Vec<StreamedId>> = tensors.iter().map(|&tensor| streamed.find(tensor)).collect();
    match found.as_deref() {
        None | Some([]) => Allocation::Fixed,
        Some([tensor]) if !streamed.tensors[*tensor].is_expert => Allocation::Dense(streamed.tensors[*tensor].pool),
        Some(tensors) => Allocation::Experts(tensors.iter().map(|&tensor| streamed.tensors[tensor].pool).collect()),
    }
}

/// Where everything would be if `memory` were what is available when the model is loaded, and `weight_bytes` of it were left for weights
/// by the first token: what a session of the same model then does.
///
/// # Errors
/// `Budget` when the memory is too little; the message names what would do.
pub fn foresee(
    gguf: &Gguf,
    place: impl Fn(usize) -> Place,
    config: &Config,
    memory: &MemoryReport,
    weight_bytes: u64,
    machine: &Machine<'_>,
) -> Result<Placement> {
    let plan = decide(gguf, &place, config, memory);
    // What is probably not loaded takes no part, though it would be streamed if it were.
    let taking_part: Vec<usize> = plan.streamed.iter().copied().filter(|&tensor| place(tensor) == Place::Ram).collect();
    let streamed = streamed(gguf, &taking_part, config);
    let key = machine.profile.machine();
    let speeds = Kernels::kept_in(machine.store.clone(), key).speeds();
    let profile = Profile { multiply_bytes_per_second: speeds, ..machine.profile.clone() };
    let machine = Machine { profile: &profile, ..machine.clone() };
    let task = task_of(gguf, plan.mode, place, &streamed, config.prefetch != PrefetchSetting::Off, &machine);
    let fixed_bytes = plan.host_bytes - plan.streamed_bytes;
    let least_bytes = minimum_bytes(&streamed.classes) + tables_claim(streamed.table_bytes()).0;
    let left_bytes = weight_bytes.saturating_sub(fixed_bytes);
    let is_enough = weight_bytes >= fixed_bytes + if config.ram_bytes.is_some() { 0 } else { least_bytes };
    if !is_enough {
        let (wanted, there) = (in_gigabytes(fixed_bytes + least_bytes), in_gigabytes(weight_bytes));
        let message = format!("{there} of RAM for weights are too little: {wanted} are needed");
        return Err(Error::new(ErrorCode::Budget, message));
    }
    task.place(config.ram_bytes.unwrap_or(left_bytes))
}

/// The least RAM for weights with which a model runs, in bytes: all that can be streamed passes through the fewest slots.
pub fn least_bytes(gguf: &Gguf, place: impl Fn(usize) -> Place, config: &Config) -> u64 {
    let nothing = MemoryReport { available_bytes: 0, limit_bytes: 0, limited_by: String::new() };
    let plan = decide(gguf, place, config, &nothing);
    let streamed = streamed(gguf, &plan.streamed, config);
    let slots_bytes = minimum_bytes(&streamed.classes) + tables_claim(streamed.table_bytes()).0;
    // A model whose slots, larger than what lies in them, take more than itself is better off in memory.
    (plan.host_bytes - plan.streamed_bytes + slots_bytes).min(plan.host_bytes)
}

fn streamed(gguf: &Gguf, tensors: &[usize], config: &Config) -> StreamedTensors {
    let direct = config.direct != DirectSetting::Off;
    // A file that cannot be opened is no error here: one whose header is all that is there is planned for, too.
    let of = |path: &Path| DirectFile::open(path, direct).map_or(Alignment::NONE, |file| file.alignment());
    let files: Vec<Alignment> = gguf.files().iter().map(|file| of(&file.path)).collect();
    StreamedTensors::new(gguf, tensors, &files)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::common::{Model, TestDirectory, dense_model, expert_model};

    fn place(_: usize) -> Place {
        Place::Ram
    }

    /// What is foreseen of a model, and what a session of it says once it runs.
    fn foreseen_and_real(model: &Model, settings: &[(&str, &str)]) -> (Value, Value) {
        let config = model.config(settings).unwrap();
        let (tuning, _) = crate::io::tune(&model.paths, &config).unwrap();
        let mut profile = crate::hw::profile(&model.paths[0]);
        profile.drive_bytes_per_second = tuning.bytes_per_second;
        let read_overhead_seconds = tuning.read_overhead_seconds.unwrap_or(0.0);
        let machine = Machine { profile: &profile, read_overhead_seconds, vram_bytes: 0, store: &config.store };
        let predicted = foresee(&model.gguf, place, &config, &profile.memory, u64::MAX, &machine).unwrap();
        let session = model.session(settings).unwrap();
        let tensor = (0..model.gguf.tensors().len())
            .find(|&tensor| session.streams(tensor) && !session.is_table(tensor))
            .unwrap();
        let ids: &[i32] = if model.gguf.tensors()[tensor].name.contains("_exps") { &[0] } else { &[] };
        session.new_fetch().begin(tensor, ids, 1).unwrap();
        (predicted.to_json(), serde_json::from_str(&session.plan_json()).unwrap())
    }

    #[test]
    fn what_is_foreseen_is_what_runs() {
        let mut compared = 0;
        for model in [expert_model(TestDirectory::new(), 31, 1), dense_model(TestDirectory::new(), 32, 2)] {
            for ram in ["300K", "700K", "1M", "1500K", "2M", "3M", "9M"] {
                for tensors in ["auto", "all"] {
                    let settings = [("HYPURA", "stream"), ("HYPURA_RAM", ram), ("HYPURA_TENSORS", tensors)];
                    if model.session(&settings).is_err() {
                        continue;
                    }
                    let (predicted, real) = foreseen_and_real(&model, &settings);
                    for key in ["mode", "ram_bytes", "ring_bytes", "slots_bytes", "drive_bytes", "divided_by", "items"]
                    {
                        assert_eq!(predicted[key], real[key], "{key} with {settings:?}");
                    }
                    assert_eq!(predicted["prediction"]["read_bytes"], real["prediction"]["read_bytes"]);
                    compared += 1;
                }
            }
        }
        assert!(compared >= 8, "{compared}");
    }

    #[test]
    fn the_least_memory_is_enough_and_less_is_not() {
        let model = expert_model(TestDirectory::new(), 33, 1);
        let config = model.config(&[]).unwrap();
        let profile = crate::hw::profile(&model.paths[0]);
        let machine = Machine { profile: &profile, read_overhead_seconds: 0.0, vram_bytes: 0, store: &Store::NOWHERE };
        let least = least_bytes(&model.gguf, place, &config);
        let with = |weight_bytes: u64| {
            let memory = MemoryReport { available_bytes: weight_bytes, ..profile.memory.clone() };
            foresee(&model.gguf, place, &config, &memory, weight_bytes, &machine)
        };
        assert!(with(least).is_ok());
        assert_eq!(with(least - 1).unwrap_err().code(), ErrorCode::Budget);
    }
}
