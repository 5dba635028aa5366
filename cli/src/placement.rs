//! Where a model's weights would be on this machine: the library's planner, asked for a command.

use std::path::Path;

use hypura::forecast::{
    Circumstances, Learned, Problem, Seat, Solution, measure_memory, problem_of, solve, speed_by_ram,
};
use hypura::hw::Profile;
use hypura::memory::margin_bytes;
use hypura::persist;
use hypura::plan::usual_place;

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
}

/// The answer.
#[derive(Debug)]
pub struct Placement {
    /// The machine.
    pub profile: Profile,
    /// Corrections by earlier runs.
    pub learned: Learned,
    /// Memory for weights and KV cache.
    pub ram_bytes: u64,
    /// Of those, the KV cache.
    pub kv_cache_bytes: u64,
    /// What was to be placed.
    pub problem: Problem,
    /// Where it is.
    pub solution: Solution,
}

/// A read's cost beyond its bytes, in seconds: a system call, and the wait for a drive that is not kept busy by one.
const READ_OVERHEAD_SECONDS: f64 = 30e-6;

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
        measure_memory(&mut profile, persist::cache_directory().as_deref());
        profile.drive_bytes_per_second = drive::expected_speed(&model.paths())?;
        Self::on(model, profile, request)
    }

    /// Measures what is not known of the machine, and plans for a model that is not there yet: as if it were in a directory.
    ///
    /// # Errors
    /// As [`Placement::find`].
    pub fn find_in(directory: &Path, model: &ModelFile, request: &Request) -> Result<Self, String> {
        let place = directory.ancestors().find(|place| place.is_dir()).unwrap_or(Path::new("/"));
        let mut profile = hypura::hw::profile(place);
        measure_memory(&mut profile, persist::cache_directory().as_deref());
        profile.drive_bytes_per_second = drive::speed_of_place(place)?;
        Self::on(model, profile, request)
    }

    /// Plans for another model on the same machine, with the same memory.
    ///
    /// # Errors
    /// As [`Placement::find`].
    pub fn with(&self, model: &ModelFile, request: &Request) -> Result<Self, String> {
        let request = Request { ram_bytes: Some(self.ram_bytes), ..*request };
        Self::on(model, self.profile.clone(), &request)
    }

    /// Plans for a machine that is known.
    fn on(model: &ModelFile, profile: Profile, request: &Request) -> Result<Self, String> {
        let memory = &profile.memory;
        let free_bytes = memory.available_bytes.saturating_sub(margin_bytes(memory));
        let ram_bytes = request.ram_bytes.unwrap_or(free_bytes);
        let kv_cache_bytes = kv_cache::bytes_per_token(model).saturating_mul(request.context_tokens.into());
        let Some(for_weights) = ram_bytes.checked_sub(kv_cache_bytes) else {
            return Err(format!(
                "a context of {} tokens takes {}, more than the {} of RAM; give a smaller --ctx or a larger --ram",
                request.context_tokens,
                bytes(kv_cache_bytes),
                bytes(ram_bytes)
            ));
        };
        let mut problem = problem_for(model, &profile, for_weights, request.gpu_bytes);
        let learned =
            Learned::recall(persist::cache_directory().as_deref(), model.gguf.fingerprint(), &machine(&profile));
        learned.correct(&mut problem);
        let solution = solve(&problem).map_err(|error| match least_ram(&problem) {
            Some(least) => format!(
                "{} of RAM are too little for this model: give at least --ram {}M{}",
                bytes(ram_bytes),
                (least + kv_cache_bytes).div_ceil(1 << 20),
                if kv_cache_bytes > 0 { ", or a smaller --ctx" } else { "" }
            ),
            None => error.to_string(),
        })?;
        Ok(Self { profile, learned, ram_bytes, kv_cache_bytes, problem, solution })
    }

    /// Tokens per second by memory for weights and KV cache.
    ///
    /// # Errors
    /// What the planner says.
    pub fn speed_by_ram(&self, count: usize) -> Result<Vec<(u64, f64)>, String> {
        let points = speed_by_ram(&self.problem, count).map_err(|error| error.to_string())?;
        Ok(points.into_iter().map(|(ram, speed)| (ram + self.kv_cache_bytes, speed)).collect())
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

    fn grouped<Key: Ord>(&self, key: impl Fn(&hypura::forecast::Item) -> Key) -> Vec<(Key, Tiers)> {
        let mut groups = std::collections::BTreeMap::<Key, Tiers>::new();
        for (item, seat) in self.problem.items.iter().zip(&self.solution.seats) {
            let tiers = groups.entry(key(item)).or_default();
            match *seat {
                Seat::Gpu => tiers.gpu += item.bytes(),
                Seat::Host { slots } => {
                    let ram = item.slot_bytes * slots as u64;
                    tiers.ram += ram;
                    tiers.drive += item.bytes() - ram;
                }
            }
        }
        groups.into_iter().collect()
    }
}

/// The problem of placing a model of which the host leaves everything to us.
pub fn problem_for(model: &ModelFile, profile: &Profile, ram_bytes: u64, gpu_bytes: u64) -> Problem {
    let circumstances = Circumstances { ram_bytes, gpu_bytes, read_overhead_seconds: READ_OVERHEAD_SECONDS };
    problem_of(&model.gguf, usual_place(&model.gguf), profile, &circumstances, None)
}

/// The least memory for weights that works, without a GPU; `None` when the planner cannot tell.
pub fn least_ram(problem: &Problem) -> Option<u64> {
    speed_by_ram(problem, 2).ok()?.first().map(|(ram, _)| *ram)
}

/// What tells this machine from others in what is learned.
fn machine(profile: &Profile) -> String {
    format!("{}, {}", profile.machine(), profile.drive.identity())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_gguf::TestModel;

    fn placed(ram_bytes: u64, gpu_bytes: u64) -> Result<Placement, String> {
        let file = TestModel::mixture();
        let profile = Profile { drive_bytes_per_second: Some(1e9), ..hypura::hw::profile(&file.path) };
        Placement::on(&file.open(), profile, &Request { ram_bytes: Some(ram_bytes), gpu_bytes, context_tokens: 10 })
    }

    #[test]
    fn every_byte_is_somewhere_and_the_context_counts() {
        let all = placed(1 << 20, 0).unwrap();
        // 2 layers, 2 heads of 4, keys and values, 2 bytes, 10 tokens.
        assert_eq!(all.kv_cache_bytes, 2 * 2 * 8 * 2 * 10);
        assert_eq!(all.problem.machine.ram_bytes, (1 << 20) - 640);
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
        let curve = placed(1 << 20, 0).unwrap().speed_by_ram(5).unwrap();
        assert!(curve.len() > 1 && curve[0].0 > 640);
        assert!(curve.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1 * 1.001), "{curve:?}");
    }
}
