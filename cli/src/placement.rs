//! Where a model's weights would be on this machine: the placement that a session would carry out, asked for a command.

use std::path::Path;

use hypura::config::Config;
use hypura::forecast::{Item, Problem, Residency, measure_memory, problem_of};
use hypura::gguf::{Role, role_of};
use hypura::hw::{MemoryReport, Profile};
use hypura::memory::margin_bytes;
use hypura::placement::Placement as Placed;
use hypura::plan::{Place, WORKING_BYTES, usual_place};
use hypura::stream::{Machine, foresee, least_bytes};

use crate::format::bytes;
use crate::model_file::ModelFile;
use crate::{drive, kv_cache};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Memory for weights and KV cache; `None` takes what is available.
    pub ram_bytes: Option<u64>,
    /// GPU memory for weights.
    pub gpu_bytes: u64,
    /// The context, in tokens.
    pub context_tokens: u32,
    /// What the weights of a projector take: on a GPU as far as there is room for weights, else in RAM.
    pub projector_bytes: u64,
}

/// The answer.
#[derive(Debug)]
pub struct Placement {
    /// The machine.
    pub profile: Profile,
    /// Memory for weights and KV cache.
    pub ram_bytes: u64,
    /// Of those, the KV cache.
    pub kv_cache_bytes: u64,
    /// Of those, a projector.
    pub projector_bytes: u64,
    /// Where everything is, and what that will do.
    pub placed: Placed,
    read_overhead_seconds: f64,
    request: Request,
}

/// Bytes of a layer, or of what is outside the layers, in each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tiers {
    /// On GPUs.
    pub gpu: u64,
    /// In RAM.
    pub ram: u64,
    /// On the drive only.
    pub drive: u64,
}

impl Tiers {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.gpu + self.ram + self.drive
    }
}

impl Placement {
    /// Measures what is not known of the machine, and plans.
    ///
    /// # Errors
    /// A sentence when the memory is too little, with what would do.
    pub fn find(model: &ModelFile, request: &Request) -> Result<Self, String> {
        let mut profile = hypura::hw::profile(&model.gguf.files()[0].path);
        measure_memory(&mut profile, &config()?.store);
        let drive = drive::expected_speed(&model.paths())?;
        profile.drive_bytes_per_second = drive.bytes_per_second;
        Self::on(model, profile, drive.read_overhead_seconds, request)
    }

    /// Measures what is not known of the machine, and plans for a model that is not there yet: as if it were in a directory.
    ///
    /// # Errors
    /// As [`Placement::find`].
    pub fn find_in(directory: &Path, model: &ModelFile, request: &Request) -> Result<Self, String> {
        let place = directory.ancestors().find(|place| place.is_dir()).unwrap_or(Path::new("/"));
        let mut profile = hypura::hw::profile(place);
        measure_memory(&mut profile, &config()?.store);
        let drive = drive::speed_of_place(place)?;
        profile.drive_bytes_per_second = drive.bytes_per_second;
        Self::on(model, profile, drive.read_overhead_seconds, request)
    }

    /// Plans for another model on the same machine, with the same memory.
    ///
    /// # Errors
    /// As [`Placement::find`].
    pub fn with(&self, model: &ModelFile, request: &Request) -> Result<Self, String> {
        let request = Request { ram_bytes: Some(self.ram_bytes), ..*request };
        Self::on(model, self.profile.clone(), self.read_overhead_seconds, &request)
    }

    /// Plans for a machine that is known.
    fn on(model: &ModelFile, profile: Profile, read_overhead_seconds: f64, request: &Request) -> Result<Self, String> {
        let free_bytes = profile.memory.available_bytes.saturating_sub(margin_bytes(&profile.memory));
        let ram_bytes = request.ram_bytes.unwrap_or(free_bytes);
        let kv_cache_bytes = kv_cache::bytes_per_token(model).saturating_mul(request.context_tokens.into());
        let on_gpu = request.projector_bytes.min(request.gpu_bytes);
        let projector_bytes = request.projector_bytes - on_gpu;
        let request = Request { gpu_bytes: request.gpu_bytes - on_gpu, projector_bytes, ..*request };
        let others = kv_cache_bytes.saturating_add(projector_bytes);
        let Some(for_weights) = ram_bytes.checked_sub(others) else {
            let projector = if projector_bytes > 0 { " and the projector" } else { "" };
            return Err(format!(
                "a context of {} tokens{projector} takes {}, more than the {} of RAM; give a smaller --ctx or a larger --ram",
                request.context_tokens,
                bytes(others),
                bytes(ram_bytes)
            ));
        };
        let placed = placed(model, &profile, read_overhead_seconds, &request, for_weights)?.map_err(|least| {
            format!(
                "{} of RAM are too little for this model: give at least --ram {}M{}",
                bytes(ram_bytes),
                (least + others).div_ceil(1 << 20),
                if kv_cache_bytes > 0 { ", or a smaller --ctx" } else { "" }
            )
        })?;
        Ok(Self { profile, ram_bytes, kv_cache_bytes, projector_bytes, placed, read_overhead_seconds, request })
    }

    /// Tokens per second by memory for weights and KV cache: at most `count` points, from the least memory that works to where more
    /// changes nothing.
    ///
    /// # Errors
    /// What the planner says.
    pub fn speed_by_ram(&self, model: &ModelFile, count: usize) -> Result<Vec<(u64, f64)>, String> {
        let most = self.placed.residencies.iter().zip(&self.placed.problem.items);
        let most: u64 =
            most.filter(|(held, _)| matches!(held, Residency::Host { .. })).map(|(_, item)| item.bytes()).sum();
        let least = least_ram(model)?.min(most);
        let steps = (count as u64).saturating_sub(1).max(1);
        let point = |step: u64| if step == steps { most } else { least + (most - least) / steps * step };
        let mut points: Vec<u64> = (0..=steps).map(point).collect();
        points.dedup();
        let mut speeds = Vec::new();
        for for_weights in points {
            let request = Request { ram_bytes: Some(for_weights), ..self.request };
            let placed = placed(model, &self.profile, self.read_overhead_seconds, &request, for_weights)?;
            // A GPU may take what would otherwise need more.
            if let Ok(placed) = placed {
                speeds.push((
                    for_weights + self.kv_cache_bytes + self.projector_bytes,
                    placed.prediction.tokens_per_second(),
                ));
            }
        }
        Ok(speeds)
    }

    /// Bytes by layer, in order; what is outside the layers comes last, without a number.
    pub fn layers(&self) -> Vec<(Option<u32>, Tiers)> {
        self.grouped(|item| (item.layer.is_none(), item.layer))
            .into_iter()
            .map(|((_, layer), tiers)| (layer, tiers))
            .collect()
    }

    /// Bytes by role, the largest first.
    pub fn roles(&self) -> Vec<(String, Tiers)> {
        let mut roles = self.grouped(|item| item.role.clone());
        roles.sort_by_key(|(_, tiers)| std::cmp::Reverse(tiers.total()));
        roles
    }

    fn grouped<Key: Ord>(&self, key: impl Fn(&Item) -> Key) -> Vec<(Key, Tiers)> {
        let mut groups = std::collections::BTreeMap::<Key, Tiers>::new();
        for (item, residency) in self.placed.problem.items.iter().zip(&self.placed.residencies) {
            let tiers = groups.entry(key(item)).or_default();
            match *residency {
                Residency::Gpu | Residency::Remote => tiers.gpu += item.bytes(),
                Residency::Host { slots } => {
                    let ram = item.slot_bytes * slots as u64;
                    tiers.ram += ram;
                    tiers.drive += item.bytes() - ram;
                }
            }
        }
        groups.into_iter().collect()
    }
}

/// What a session would do with so much RAM for weights; or, inside, the least that works.
fn placed(
    model: &ModelFile,
    profile: &Profile,
    read_overhead_seconds: f64,
    request: &Request,
    for_weights: u64,
) -> Result<Result<Placed, u64>, String> {
    let (config, on_gpu) = (config()?, on_gpu(model, request.gpu_bytes));
    let usual = usual_place(&model.gguf);
    let place = |tensor: usize| if on_gpu[tensor] { Place::Device } else { usual(tensor) };
    let taken: u64 = (0..on_gpu.len()).filter(|&tensor| on_gpu[tensor]).map(|tensor| size(model, tensor)).sum();
    let machine =
        Machine { profile, read_overhead_seconds, vram_bytes: request.gpu_bytes - taken, store: &config.store };
    // What is asked for is for weights and KV cache, so that what else takes memory comes on top.
    let asked =
        || MemoryReport { available_bytes: for_weights.saturating_add(WORKING_BYTES), ..profile.memory.clone() };
    let memory = if request.ram_bytes.is_some() { asked() } else { profile.memory.clone() };
    let placed = foresee(&model.gguf, place, &config, &memory, for_weights, &machine);
    Ok(placed.map_err(|_| least_bytes(&model.gguf, place, &config)))
}

fn size(model: &ModelFile, tensor: usize) -> u64 {
    model.gguf.tensors()[tensor].size_bytes
}

/// What llama.cpp puts on a GPU with so much memory for weights, by tensor: first what is no expert, the last layers first; the rest of
/// the memory holds copies of experts, if there are any.
fn on_gpu(model: &ModelFile, gpu_bytes: u64) -> Vec<bool> {
    let mut left = gpu_bytes;
    let tensors = model.gguf.tensors();
    let mut on_gpu = vec![false; tensors.len()];
    let may_be = |&tensor: &usize| {
        !role_of(&tensors[tensor]).has_experts() && !role_of(&tensors[tensor]).is_looked_up() && gpu_bytes > 0
    };
    for tensor in (0..tensors.len()).rev().filter(may_be) {
        if tensors[tensor].size_bytes <= left && role_of(&tensors[tensor]) != Role::TokenEmbedding {
            left -= tensors[tensor].size_bytes;
            on_gpu[tensor] = true;
        }
    }
    on_gpu
}

fn config() -> Result<Config, String> {
    Config::from_environment().map_err(|error| error.to_string())
}

/// The problem of placing a model of which the host leaves everything to us.
pub fn problem_for(model: &ModelFile, profile: &Profile) -> Problem {
    problem_of(&model.gguf, usual_place(&model.gguf), profile, 0.0)
}

/// The least memory for weights that works, without a GPU.
///
/// # Errors
/// A sentence when the environment makes no sense.
pub fn least_ram(model: &ModelFile) -> Result<u64, String> {
    Ok(least_bytes(&model.gguf, usual_place(&model.gguf), &config()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_gguf::TestModel;

    fn placed(ram_bytes: u64, gpu_bytes: u64) -> Result<Placement, String> {
        let file = TestModel::mixture();
        let profile = Profile { drive_bytes_per_second: Some(1e9), ..hypura::hw::profile(&file.path) };
        Placement::on(
            &file.open(),
            profile,
            0.0,
            &Request { ram_bytes: Some(ram_bytes), gpu_bytes, context_tokens: 10, projector_bytes: 0 },
        )
    }

    #[test]
    fn every_byte_is_somewhere_and_the_context_counts() {
        let all = placed(1 << 20, 0).unwrap();
        // 2 layers, 2 heads of 4, keys and values, 2 bytes, 10 tokens.
        assert_eq!(all.kv_cache_bytes, 2 * 2 * 8 * 2 * 10);
        assert_eq!(all.placed.ram_bytes, (1 << 20) - 640);
        let total: u64 = all.layers().iter().map(|(_, tiers)| tiers.total()).sum();
        assert_eq!(total, all.roles().iter().map(|(_, tiers)| tiers.total()).sum::<u64>());
        assert!(all.layers().iter().all(|(_, tiers)| tiers.drive == 0 && tiers.gpu == 0));
        let layers: Vec<Option<u32>> = all.layers().iter().map(|(layer, _)| *layer).collect();
        assert_eq!(layers, [Some(0), Some(1), None], "what is outside the layers comes last");

        let some = placed(total - 2000, 0).unwrap();
        assert!(some.layers().iter().any(|(_, tiers)| tiers.drive > 0));
        assert_eq!(some.layers().iter().map(|(_, tiers)| tiers.total()).sum::<u64>(), total);
        let with_gpu = placed(1 << 20, 5000).unwrap();
        assert!(with_gpu.layers().iter().any(|(_, tiers)| tiers.gpu > 0));
    }

    #[test]
    fn too_little_memory_is_refused_with_what_would_do() {
        let problem = placed(700, 0).unwrap_err();
        assert!(problem.contains("--ram 1M") && problem.contains("--ctx"), "{problem}");
        let problem = placed(600, 0).unwrap_err();
        assert!(problem.starts_with("a context of 10 tokens takes 640 B"), "{problem}");
    }

    #[test]
    fn more_memory_is_never_slower() {
        let file = TestModel::large_mixture();
        let profile = Profile { drive_bytes_per_second: Some(1e9), ..hypura::hw::profile(&file.path) };
        let request = Request { ram_bytes: Some(4 << 20), gpu_bytes: 0, context_tokens: 10, projector_bytes: 0 };
        let placement = Placement::on(&file.open(), profile, 0.0, &request).unwrap();
        let curve = placement.speed_by_ram(&file.open(), 5).unwrap();
        assert!(curve.len() > 1 && curve[0].0 > 640);
        assert!(curve.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1 * 1.001), "{curve:?}");
    }
}
