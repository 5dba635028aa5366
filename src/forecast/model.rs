//! From a model and a machine to a placement problem.

use std::sync::Arc;

use super::miss::MissCurve;
use super::problem::{Item, Machine, Problem, Usage};
use crate::gguf::{Gguf, Role, label_of, layer_of, role_of};
use crate::hw::{GpuSpeed, Profile, RemoteSpeed};
use crate::plan::Place;

/// Share of the measured memory bandwidth that multiplying a matrix by a vector reaches when many cores share it. This and the
/// next stand in for types of weights that the host has not measured.
const CPU_EFFICIENCY: f64 = 0.7;

/// Share of a kernel's own measured speed that it reaches within a model, whose weights no cache holds. Measured on the same server:
/// three quarters with 2 GB of weights, all of it with 100 MB.
const KERNEL_EFFICIENCY: f64 = 0.8;

/// Bytes per second that one core unpacks and multiplies: Q8_0 on a server's core. With few cores this is the limit.
const CORE_BYTES_PER_SECOND: f64 = 6.5e9;

/// What a layer takes beyond multiplying: attention, norms, handing work to threads and collecting it. Measured on two cores of a
/// server; learning corrects it.
const LAYER_SECONDS: f64 = 150e-6;

/// Bytes per second that are assumed of memory where it was not measured: a modest laptop's.
const MEMORY_BYTES_PER_SECOND: f64 = 20e9;

/// Bytes per second that are assumed of a drive where it was not measured: a modest NVMe drive's.
const DRIVE_BYTES_PER_SECOND: f64 = 2e9;

/// Bytes per second that are assumed of a GPU's memory, and of the bus to it, where they were not measured: a modest card's.
const GPU_BYTES_PER_SECOND: f64 = 400e9;
const UPLOAD_BYTES_PER_SECOND: f64 = 20e9;

/// What is assumed of another machine that was not measured: a modest one's memory, and a local network.
const REMOTE_SPEED: RemoteSpeed =
    RemoteSpeed { multiply_bytes_per_second: MEMORY_BYTES_PER_SECOND * CPU_EFFICIENCY, round_trip_seconds: 300e-6 };

/// Makes the problem of placing a model. What is not loaded takes no part.
///
/// Items come in the order of the layers and, within one, attention first: the order of use in every architecture so far, and a wrong
/// one costs the prediction little.
pub fn problem_of(
    gguf: &Gguf,
    place: impl Fn(usize) -> Place,
    profile: &Profile,
    read_overhead_seconds: f64,
) -> Problem {
    let used = gguf.hyper_parameters().expert_used_count as usize;
    let is_tied = gguf.find("output.weight").is_none();
    let mut items: Vec<Item> = Vec::new();
    let mut order: Vec<usize> = (0..gguf.tensors().len()).collect();
    order.sort_by_key(|&tensor| position(&gguf.tensors()[tensor].name));
    for tensor in order {
        let info = &gguf.tensors()[tensor];
        let (is_elsewhere, is_remote) = match place(tensor) {
            Place::Ram => (false, false),
            Place::Device => (true, false),
            Place::Remote => (true, true),
            Place::Absent | Place::Spare => continue,
        };
        let layer = layer_of(&info.name);
        let experts = if role_of(info).has_experts() { info.shape[2] as usize } else { 0 };
        // A layer's expert matrices are used together, expert by expert.
        let partner = items.iter_mut().rev().find(|item| {
            let is_same = (item.layer, item.is_elsewhere, item.is_remote, item.slot_count)
                == (layer, is_elsewhere, is_remote, experts);
            experts > 0 && item.is_routed() && is_same && role_of(&gguf.tensors()[item.tensors[0]]) == role_of(info)
        });
        if let Some(partner) = partner {
            partner.tensors.push(tensor);
            partner.slot_bytes += info.size_bytes / experts as u64;
            partner.reads_per_slot += 1;
            continue;
        }
        let (slot_count, usage) = match MissCurve::prior(experts, used.max(1)) {
            Some(curve) => (experts, Usage::Routed(Arc::new(curve))),
            None if role_of(info) == Role::Table => (1, Usage::Row(Lookup::of(gguf, tensor).read_bytes)),
            None if info.name == "token_embd.weight" && !is_tied => (1, Usage::Lookup),
            None => (1, Usage::Dense),
        };
        items.push(Item {
            layer,
            role: label_of(info).to_owned(),
            tensors: vec![tensor],
            slot_bytes: info.size_bytes / slot_count as u64,
            slot_count,
            reads_per_slot: if role_of(info) == Role::Table { Lookup::of(gguf, tensor).rows as usize } else { 1 },
            usage,
            is_elsewhere,
            is_remote,
            streamable: !matches!(role_of(info), Role::Other | Role::TokenEmbedding),
        });
    }
    Problem {
        dense_ring_bytes: 0,
        vram_bytes: 0,
        machine: machine(gguf, &items, profile, read_overhead_seconds),
        items,
    }
}

/// What a token looks up in a table, and what that costs while the table is on the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Rows, each of them a read of its own.
    pub rows: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Bytes that are read for all of them, as an average over where a row begins: drives read whole pieces of 4 KiB.
    pub read_bytes: u64,
}

impl Lookup {
    const PIECE_BYTES: u64 = 4096;

    /// Of a table, by its index in [`Gguf::tensors`].
    pub fn of(gguf: &Gguf, tensor: usize) -> Self {
        let info = &gguf.tensors()[tensor];
        let rows = gguf.hyper_parameters().ngram_row_count.max(1);
        let row_bytes = info.size_bytes / info.shape[1].max(1);
        Self { rows, row_bytes, read_bytes: rows.saturating_mul(row_bytes + Self::PIECE_BYTES - 1) }
    }
}

fn machine(gguf: &Gguf, items: &[Item], profile: &Profile, read_overhead_seconds: f64) -> Machine {
    let sane =
        |speed: Option<f64>, assumed: f64| speed.filter(|speed| speed.is_finite() && *speed > 0.0).unwrap_or(assumed);
    let memory = sane(profile.memory_bytes_per_second, MEMORY_BYTES_PER_SECOND);
    let assumed = (memory * CPU_EFFICIENCY).min(profile.cores.parallel() as f64 * CORE_BYTES_PER_SECOND);
    let seconds_per_byte = |item: &Item| {
        let kind = item.tensors.first().map(|&tensor| gguf.tensors()[tensor].ggml_type.id());
        let measured = kind.and_then(|kind| profile.multiply_bytes_per_second.get(&kind));
        1.0 / sane(measured.map(|speed| speed * KERNEL_EFFICIENCY), assumed)
    };
    // The mean over what a token computes on: every item would be more exact and change little.
    let host = || items.iter().filter(|item| !item.is_elsewhere);
    let used_bytes: f64 = host().map(Item::used_bytes).sum();
    let used_seconds: f64 = host().map(|item| item.used_bytes() * seconds_per_byte(item)).sum();
    let cpu_seconds_per_byte = if used_bytes > 0.0 { used_seconds / used_bytes } else { 1.0 / assumed };
    let remote = profile.remote_speed.unwrap_or(REMOTE_SPEED);
    // What lies there in a row is computed in one go.
    let stretches = items.chunk_by(|one, other| one.is_remote == other.is_remote).filter(|chunk| chunk[0].is_remote);
    let gpu = |speed: fn(&GpuSpeed) -> f64| profile.gpu_speed.as_ref().map(speed);
    let layers = items.iter().filter_map(|item| item.layer).collect::<std::collections::HashSet<_>>().len();
    Machine {
        cpu_seconds_per_byte,
        gpu_seconds_per_byte: 1.0 / sane(gpu(|speed| speed.multiply_bytes_per_second), GPU_BYTES_PER_SECOND),
        remote_seconds_per_byte: 1.0
            / sane(Some(remote.multiply_bytes_per_second), REMOTE_SPEED.multiply_bytes_per_second),
        network_seconds: stretches.count() as f64
            * sane(Some(remote.round_trip_seconds), REMOTE_SPEED.round_trip_seconds),
        upload_seconds_per_byte: 1.0 / sane(gpu(|speed| speed.upload_bytes_per_second), UPLOAD_BYTES_PER_SECOND),
        fixed_seconds: layers as f64 * LAYER_SECONDS,
        drive_seconds_per_byte: 1.0 / sane(profile.drive_bytes_per_second, DRIVE_BYTES_PER_SECOND),
        read_overhead_seconds: read_overhead_seconds.max(0.0),
    }
}

/// Sorts tensors into the order of use.
fn position(name: &str) -> (u32, u32) {
    match layer_of(name) {
        Some(layer) if name.contains(".ffn_") => (layer.saturating_add(1), 1),
        Some(layer) => (layer.saturating_add(1), 0),
        None if name.starts_with("output") => (u32::MAX, 0),
        None => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::TestDirectory;
    use crate::common::gguf_writer::GgufWriter;
    use crate::forecast::{Residency, simulate};
    use crate::hw::profile_under;

    const F32: u32 = 0;

    /// A mixture of 4 experts of which 2 are used, with one dense layer before it; F32, small numbers.
    fn mixture(directory: &TestDirectory) -> Gguf {
        let path = directory.path().join("model.gguf");
        GgufWriter::new()
            .text("general.architecture", "test")
            .u32("test.expert_count", 4)
            .u32("test.expert_used_count", 2)
            .zeros("token_embd.weight", F32, &[8, 100])
            .zeros("output.weight", F32, &[8, 100])
            .zeros("blk.1.ffn_down_exps.weight", F32, &[16, 8, 4])
            .zeros("blk.1.ffn_gate_exps.weight", F32, &[8, 16, 4])
            .zeros("blk.1.ffn_up_exps.weight", F32, &[8, 16, 4])
            .zeros("blk.1.ffn_gate_inp.weight", F32, &[8, 4])
            .zeros("blk.1.attn_q.weight", F32, &[8, 8])
            .zeros("blk.0.ffn_up.weight", F32, &[8, 32])
            .zeros("blk.0.attn_q.weight", F32, &[8, 8])
            .zeros("blk.0.attn_norm.weight", F32, &[8])
            .write(&path);
        Gguf::open(&[path]).unwrap()
    }

    fn profile() -> Profile {
        let root = TestDirectory::new();
        Profile {
            memory_bytes_per_second: Some(10e9),
            drive_bytes_per_second: Some(1e9),
            ..profile_under(root.path(), root.path())
        }
    }

    fn on_gpu_if(is_on_gpu: impl Fn(usize) -> bool) -> impl Fn(usize) -> Place {
        move |tensor| if is_on_gpu(tensor) { Place::Device } else { Place::Ram }
    }

    #[test]
    fn a_model_becomes_items_in_the_order_of_use() {
        let directory = TestDirectory::new();
        let gguf = mixture(&directory);
        let on_gpu = gguf.find("output.weight").unwrap();
        let problem = problem_of(&gguf, on_gpu_if(|tensor| tensor == on_gpu), &profile(), 0.0);
        let roles: Vec<&str> = problem.items.iter().map(|item| &*item.role).collect();
        let expected = [
            "embeddings",
            "attention",
            "norms and biases",
            "feed-forward",
            "attention",
            "experts",
            "routers",
            "output",
        ];
        assert_eq!(roles, expected);
        let experts = &problem.items[5];
        assert_eq!((experts.layer, experts.slot_count, experts.reads_per_slot), (Some(1), 4, 3));
        assert_eq!((experts.tensors.len(), experts.slot_bytes), (3, 3 * 8 * 16 * 4));
        assert_eq!(problem.items[0].usage, Usage::Lookup);
        assert!(problem.items[7].is_elsewhere && !problem.items[5].is_elsewhere);
        assert_eq!(problem.items.iter().map(Item::bytes).sum::<u64>(), gguf.model_bytes());
    }

    /// All but experts and embeddings on another machine: it is asked before the experts, and once more for the rest.
    #[test]
    fn another_machine_takes_its_time_and_the_networks() {
        let directory = TestDirectory::new();
        let gguf = mixture(&directory);
        let stays = |name: &str| name.contains("exps") || name.starts_with("token_embd");
        let place = |tensor: usize| if stays(&gguf.tensors()[tensor].name) { Place::Ram } else { Place::Remote };
        let remote_speed = Some(RemoteSpeed { multiply_bytes_per_second: 2e3, round_trip_seconds: 0.25 });
        let problem = problem_of(&gguf, place, &Profile { remote_speed, ..profile() }, 0.0);
        let remote: Vec<&str> = problem.items.iter().filter(|item| item.is_remote).map(|item| &*item.role).collect();
        assert_eq!(remote, ["attention", "norms and biases", "feed-forward", "attention", "routers", "output"]);
        assert!(problem.items.iter().all(|item| item.is_remote == item.is_elsewhere));
        assert_eq!((problem.machine.remote_seconds_per_byte, problem.machine.network_seconds), (1.0 / 2e3, 2.0 * 0.25));
        let residencies: Vec<Residency> = problem
            .items
            .iter()
            .map(|item| if item.is_remote { Residency::Remote } else { Residency::Host { slots: item.slot_count } })
            .collect();
        let tiers = problem.tiers(&residencies);
        assert_eq!((tiers.gpu, tiers.drive, tiers.remote + tiers.ram), (0, 0, gguf.model_bytes()));
        let seconds = simulate(&problem, &residencies).seconds_per_token;
        let there = tiers.remote as f64 / 2e3 + 0.5;
        assert!((there..1.01 * there).contains(&seconds), "{seconds} s, {there} s of them there");
    }

    #[test]
    fn a_table_costs_the_rows_that_a_token_looks_up() {
        let directory = TestDirectory::new();
        let path = directory.path().join("tables.gguf");
        let with_table = |writer: GgufWriter| {
            writer.zeros("per_layer_token_embd.weight", F32, &[32, 1000]).write(&path);
            Gguf::open(std::slice::from_ref(&path)).unwrap()
        };
        let seconds = |gguf: &Gguf| {
            let problem = problem_of(gguf, |_| Place::Ram, &profile(), 1.0);
            let drive = Residency::Host { slots: 0 };
            crate::forecast::simulate(&problem, &vec![drive; problem.items.len()]).seconds_per_token
        };
        let by_token = with_table(GgufWriter::new().text("general.architecture", "test"));
        assert_eq!(Lookup::of(&by_token, 0), Lookup { rows: 1, row_bytes: 128, read_bytes: 128 + 4095 });
        assert!((1.0..1.1).contains(&seconds(&by_token)), "{}", seconds(&by_token));
        let writer = GgufWriter::new().text("general.architecture", "test");
        let hashed = with_table(writer.u32("test.ple.ngram_size", 3).u32("test.ple.heads_per_ngram", 4));
        assert_eq!(Lookup::of(&hashed, 0), Lookup { rows: 8, row_bytes: 128, read_bytes: 8 * (128 + 4095) });
        assert!((8.0..8.1).contains(&seconds(&hashed)), "{}", seconds(&hashed));
    }

    #[test]
    fn what_is_not_loaded_takes_no_part() {
        let directory = TestDirectory::new();
        let gguf = mixture(&directory);
        let absent = |name: &str| if name.starts_with("blk.1.") { Place::Absent } else { Place::Ram };
        let problem = problem_of(&gguf, |tensor| absent(&gguf.tensors()[tensor].name), &profile(), 0.0);
        assert!(problem.items.iter().all(|item| item.layer != Some(1)));
        assert_eq!(problem.items.len(), 5);
    }

    #[test]
    fn measured_kernels_replace_what_is_assumed_of_computing() {
        let directory = TestDirectory::new();
        let gguf = mixture(&directory);
        let machine = |kernels: &[(u32, f64)], on_host: bool| {
            let multiply_bytes_per_second = kernels.iter().copied().collect();
            let profile = Profile { multiply_bytes_per_second, ..profile() };
            problem_of(&gguf, on_gpu_if(|_| !on_host), &profile, 0.0).machine
        };
        let assumed = machine(&[], true).cpu_seconds_per_byte;
        assert!((machine(&[(F32, 2e9)], true).cpu_seconds_per_byte * 2e9 * KERNEL_EFFICIENCY - 1.0).abs() < 1e-9);
        // Of another type, or where nothing is on the host.
        assert!((machine(&[(8, 2e9)], true).cpu_seconds_per_byte / assumed - 1.0).abs() < 1e-9);
        assert!((machine(&[(F32, 2e9)], false).cpu_seconds_per_byte / assumed - 1.0).abs() < 1e-9);
        assert!((machine(&[], true).fixed_seconds - 2.0 * LAYER_SECONDS).abs() < 1e-12, "two layers");
    }

    #[test]
    fn embeddings_that_are_the_output_as_well_are_computed_on() {
        let directory = TestDirectory::new();
        let path = directory.path().join("tied.gguf");
        GgufWriter::new().zeros("token_embd.weight", F32, &[8, 100]).write(&path);
        let problem = problem_of(&Gguf::open(&[path]).unwrap(), |_| Place::Ram, &profile(), 0.0);
        assert_eq!(problem.items[0].usage, Usage::Dense);
    }
}
