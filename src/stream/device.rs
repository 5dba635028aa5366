//! What the host keeps of the weights in memory of its own, a GPU's: copies of experts, which then need no slot.
//!
//! The host says when it has made a copy and when it drops one. While there is a copy, the slot of the expert is the first to be
//! given up, so that RAM and the GPU hold different experts. One that loses its copy moves down into a slot, if it is worth more than
//! what would go for it; nothing is read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::cache::WaiterSet;
use crate::error::{Error, ErrorCode, Result};
use crate::hw::{GpuSpeed, RemoteSpeed};
use crate::index::{BlockId, ExpertId};
use crate::memory::HostMemory;
use crate::plan::{in_gigabytes, vram_budget, vram_budget_now};

use super::session::Session;

/// Memory of GPUs that the host holds copies in.
#[derive(Debug, Default)]
pub(super) struct HeldVram {
    now_bytes: AtomicI64,
    most_bytes: AtomicU64,
}

impl HeldVram {
    pub(super) fn held_bytes(&self) -> u64 {
        self.now_bytes.load(Ordering::Relaxed).max(0) as u64
    }

    pub(super) fn most_bytes(&self) -> u64 {
        self.most_bytes.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: i64) {
        let now = self.now_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most_bytes.fetch_max(now.max(0) as u64, Ordering::Relaxed);
    }
}

impl Session {
    /// Puts slots into memory of the host's, from which its GPU copies faster. Only before the first demand.
    ///
    /// # Errors
    /// `InvalidArgument` when there is one already, or the model runs.
    pub fn use_memory(&self, host: Arc<dyn HostMemory>) -> Result<()> {
        let refused = |message: &str| Err(Error::new(ErrorCode::InvalidArgument, message.to_owned()));
        if self.started().is_some() {
            return refused("the memory of a model that runs cannot be changed");
        }
        self.host_memory.set(host).or_else(|_| refused("the model has the host's memory already"))
    }

    /// Notes how fast the GPU is. Only before the first demand it changes what is expected.
    pub fn set_gpu_speed(&self, speed: GpuSpeed) {
        self.machine.set_gpu_speed(speed);
    }

    /// Notes how fast the other machine is that has weights. Only before the first demand it changes what is expected.
    pub fn set_remote_speed(&self, speed: RemoteSpeed) {
        self.machine.set_remote_speed(speed);
    }

    /// How much of a GPU's memory copies may take, given what is free of it and how much there is.
    pub fn vram_budget(&self, free_bytes: u64, total_bytes: u64) -> u64 {
        vram_budget(self.config.vram, free_bytes, total_bytes)
    }

    /// How much they may take from now on, given what they hold of it already.
    pub fn vram_budget_now(&self, held_bytes: u64, free_bytes: u64, total_bytes: u64) -> u64 {
        vram_budget_now(self.config.vram, held_bytes, free_bytes, total_bytes)
    }

    /// Notes how much memory of GPUs the host holds copies in, of all contexts together.
    pub fn add_vram(&self, bytes: i64) {
        self.vram.add(bytes);
    }

    /// How much an expert deserves a copy, compared with others: what is likely to be used soon, more.
    ///
    /// # Errors
    /// As [`Self::add_copy`].
    pub fn score(&self, tensor: usize, expert: ExpertId) -> Result<f64> {
        let core = &self.running()?.core;
        let block = self.block_of(tensor, expert)?;
        let state = core.state.lock();
        let streamed = core.streamed.tensor_of(block).0;
        Ok(state.slots.pools[streamed.pool].score(streamed.first_unit + expert, state.slots.position))
    }

    /// The host has a copy of an expert now.
    ///
    /// # Errors
    /// `InvalidArgument` for what is not a streamed expert; what the first demand may fail with.
    pub fn add_copy(&self, tensor: usize, expert: ExpertId) -> Result<()> {
        let block = self.block_of(tensor, expert)?;
        let slots = &mut self.running()?.core.state.lock().slots;
        slots.copies[block] += 1;
        if let Some(id) = slots.location[block] {
            slots.pools[id.pool].set_copied(id.slot, true);
        }
        Ok(())
    }

    /// The host is about to drop a copy. Returns where its bytes are to be put first, followed by [`Self::rescued`], if that is worth it.
    ///
    /// # Errors
    /// As [`Self::add_copy`].
    pub fn remove_copy(&self, tensor: usize, expert: ExpertId, may_rescue: bool) -> Result<Option<*mut u8>> {
        let (core, block) = (&self.running()?.core, self.block_of(tensor, expert)?);
        let mut state = core.state.lock();
        let may_rescue = may_rescue && !state.is_over();
        let slots = &mut state.slots;
        slots.copies[block] = slots.copies[block].saturating_sub(1);
        if slots.copies[block] > 0 {
            return Ok(None);
        }
        if let Some(id) = slots.location[block] {
            slots.pools[id.pool].set_copied(id.slot, false);
            return Ok(None);
        }
        Ok(if may_rescue { slots.take_for_copy(core, block) } else { None })
    }

    /// The bytes of a copy are where [`Self::remove_copy`] said.
    ///
    /// # Errors
    /// As [`Self::add_copy`].
    pub fn rescued(&self, tensor: usize, expert: ExpertId) -> Result<()> {
        let (core, block) = (&self.running()?.core, self.block_of(tensor, expert)?);
        let mut state = core.state.lock();
        let Some(id) = state.slots.location[block] else { return Ok(()) };
        let awaited_by = state.slots.pools[id.pool].loaded(id.slot);
        let wake = if awaited_by == WaiterSet::default() { state.want_room } else { awaited_by };
        drop(state);
        core.wake(wake);
        Ok(())
    }

    /// What of the model is kept on GPUs and other machines, for the log, where the host put `gpu_bytes` on GPUs; empty if nothing.
    pub(super) fn elsewhere_phrase(&self, gpu_bytes: u64) -> String {
        let place = |before: &str, bytes, after| match bytes {
            0 => String::new(),
            bytes => format!("{before}{}{after}", in_gigabytes(bytes)),
        };
        place(" and ", self.vram.held_bytes(), " of VRAM")
            + &place("; ", gpu_bytes, " on the GPU for good")
            + &place("; ", self.machine.remote_bytes(&self.gguf), " on other machines")
    }

    fn block_of(&self, tensor: usize, expert: ExpertId) -> Result<BlockId> {
        let all = &self.running()?.core.streamed;
        let streamed = all.find(tensor).map(|index| &all.tensors[index]);
        let streamed = streamed.filter(|streamed| streamed.is_expert && streamed.has(expert));
        let Some(streamed) = streamed else {
            let message = format!("tensor {tensor} has no expert {expert} that is streamed");
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        };
        Ok(streamed.first_block + expert)
    }
}
