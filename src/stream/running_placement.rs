//! The placement that runs: what is expected of it, and what the next run learns from what it does.

use std::sync::Arc;

use serde_json::Value;

use crate::cache::Pool;
use crate::forecast::Prediction;
use crate::gguf::Gguf;
use crate::persist::Store;
use crate::placement::Placement;

use super::core::Core;
use super::machine_at_load::MachineAtLoad;
use super::task::TOY_BYTES;

/// The placement that runs, what it was expected to do, and what it teaches.
pub(super) struct RunningPlacement {
    placement: Placement,
    profile: Value,
    model: String,
    machine: String,
    is_toy: bool,
    store: Store,
    core: Arc<Core>,
}

impl RunningPlacement {
    pub(super) fn new(gguf: &Gguf, placement: Placement, machine: &MachineAtLoad, core: &Arc<Core>) -> Self {
        Self {
            machine: machine.machine(0).key(&placement.problem),
            placement,
            profile: machine.profile().to_json(),
            model: gguf.fingerprint().to_owned(),
            is_toy: gguf.model_bytes() < TOY_BYTES,
            store: machine.store.clone(),
            core: Arc::clone(core),
        }
    }

    /// Logs the placement (info) and the expected speed (warn).
    pub(super) fn log(&self) {
        let lines = self.placement.explain();
        let Some((expected, places)) = lines.split_last() else { return };
        places.iter().skip(1).for_each(|line| tracing::info!("{line}"));
        // A warning, like the line on what is streamed: a user should know without having asked.
        tracing::warn!("{expected}");
    }

    /// What the host has put on GPUs, where it stays.
    pub(super) fn gpu_bytes(&self) -> u64 {
        self.placement.tiers.gpu - self.placement.tiers.vram
    }

    pub(super) fn prediction(&self) -> &Prediction {
        &self.placement.prediction
    }

    /// As JSON, in short.
    pub(super) fn summary(&self) -> Value {
        self.placement.summary()
    }

    /// As JSON, with every item and the machine.
    pub(super) fn to_json(&self) -> Value {
        let mut json = self.placement.to_json();
        json["machine"] = self.profile.clone();
        json
    }

    /// Keeps what this run has shown so far for the next one. Cheap, but it writes a small file. A run whose pools are not what was
    /// foreseen shows nothing.
    pub(super) fn learn(&self) {
        let state = self.core.state.lock();
        let as_foreseen = state.slots.pools.iter().map(Pool::slot_count).eq(self.placement.slots.iter().copied());
        let measured = state.pace.measured().filter(|_| as_foreseen && !self.is_toy);
        drop(state);
        let learned = measured.and_then(|measured| {
            let Placement { learned, problem, residencies, .. } = &self.placement;
            learned.after(problem, residencies, &measured)
        });
        if let Some(learned) = learned {
            learned.remember(&self.store, &self.model, &self.machine);
        }
    }
}

impl Drop for RunningPlacement {
    fn drop(&mut self) {
        self.learn();
    }
}
