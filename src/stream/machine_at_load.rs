//! The machine that a model is loaded on, and the task of placing the model there.

use std::collections::BTreeMap;
use std::path::Path;

use parking_lot::Mutex;

use crate::config::{Config, PrefetchSetting};
use crate::forecast::{Kernels, measure_memory};
use crate::gguf::{Gguf, layer_of};
use crate::hw::{self, GpuSpeed, Profile, RemoteSpeed};
use crate::io::Tuning;
use crate::persist::Store;
use crate::placement::Task;
use crate::plan::{Mode, Place, Plan};

use super::task::{Machine, TOY_BYTES, task_of};
use super::tensors::StreamedTensors;

/// What is known of the machine when a model is loaded, before anything is computed, and where the host keeps the model.
pub(super) struct MachineAtLoad {
    profile: Profile,
    /// Where what is learned is kept.
    pub(super) store: Store,
    /// By tensor: where the host keeps it.
    places: Box<[Place]>,
    /// The tensors that were to be streamed, in order.
    planned: Box<[usize]>,
    read_overhead_seconds: f64,
    kernels: Mutex<Kernels>,
    gpu_speed: Mutex<Option<GpuSpeed>>,
    remote_speed: Mutex<Option<RemoteSpeed>>,
    /// The types of weights whose speed matters.
    types: Vec<u32>,
}

impl MachineAtLoad {
    /// Looks at the machine. Measures how fast memory is, once per machine; `tuning` tells how fast the drive is.
    pub(super) fn of(gguf: &Gguf, place: &dyn Fn(usize) -> Place, plan: &Plan, tuning: &Tuning, store: &Store) -> Self {
        let path = gguf.files().first().map_or(Path::new("/"), |file| &file.path);
        let mut profile = hw::profile(path);
        profile.drive_bytes_per_second = tuning.bytes_per_second;
        if gguf.model_bytes() >= TOY_BYTES {
            measure_memory(&mut profile, store);
        }
        for note in &profile.notes {
            tracing::info!("{note}");
        }
        Self {
            kernels: Mutex::new(Kernels::kept_in(store.clone(), profile.machine())),
            gpu_speed: Mutex::default(),
            remote_speed: Mutex::default(),
            types: main_types(gguf, place),
            store: store.clone(),
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

    /// Notes how fast the GPU is that computes with experts.
    pub(super) fn set_gpu_speed(&self, speed: GpuSpeed) {
        let GpuSpeed { multiply_bytes_per_second, upload_bytes_per_second } = speed;
        let (multiply, upload) = (multiply_bytes_per_second / 1e9, upload_bytes_per_second / 1e9);
        tracing::info!("the GPU multiplies with {multiply:.0} GB/s of weights and is given {upload:.1} GB/s");
        *self.gpu_speed.lock() = Some(speed);
    }

    /// Notes how fast the other machine is that has weights.
    pub(super) fn set_remote_speed(&self, speed: RemoteSpeed) {
        let RemoteSpeed { multiply_bytes_per_second, round_trip_seconds } = speed;
        let (multiply, round_trip) = (multiply_bytes_per_second / 1e9, round_trip_seconds * 1e3);
        tracing::info!(
            "the other machine multiplies with {multiply:.1} GB/s of weights and answers in {round_trip:.2} ms"
        );
        *self.remote_speed.lock() = Some(speed);
    }

    /// What of the model other machines have, in bytes.
    pub(super) fn remote_bytes(&self, gguf: &Gguf) -> u64 {
        let tensors = gguf.tensors().iter().zip(&self.places);
        tensors.filter(|(_, place)| **place == Place::Remote).map(|(tensor, _)| tensor.size_bytes).sum()
    }

    /// The machine, with what was measured of its kernels by now.
    pub(super) fn profile(&self) -> Profile {
        Profile {
            multiply_bytes_per_second: self.kernels.lock().speeds(),
            gpu_speed: *self.gpu_speed.lock(),
            remote_speed: *self.remote_speed.lock(),
            ..self.profile.clone()
        }
    }

    pub(super) fn machine(&self, vram_bytes: u64) -> Machine<'_> {
        Machine {
            profile: &self.profile,
            read_overhead_seconds: self.read_overhead_seconds,
            vram_bytes,
            store: &self.store,
        }
    }

    /// The task of placing the model here, now that it is known what takes part.
    pub(super) fn task(
        &self,
        gguf: &Gguf,
        config: &Config,
        mode: Mode,
        streamed: &StreamedTensors,
        vram_bytes: u64,
    ) -> Task {
        let profile = self.profile();
        let machine = Machine { profile: &profile, ..self.machine(vram_bytes) };
        let place = |tensor: usize| self.place_of(gguf, tensor, streamed);
        task_of(gguf, mode, place, streamed, config.prefetch != PrefetchSetting::Off, &machine)
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
