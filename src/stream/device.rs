//! What the host keeps of the weights in memory of its own, a GPU's: copies of experts, which then need no slot.
//!
//! The host says when it has made a copy and when it drops one. While there is a copy, the slot of the expert is the first to be
//! given up, so that RAM and the GPU hold different experts. One that loses its copy moves down into a slot, if it is worth more than
//! what would go for it; nothing is read again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, ErrorCode, Result};
use crate::index::BlockId;
use crate::memory::HostMemory;
use crate::plan::{in_gigabytes, vram_budget};

use super::core::{Core, SlotId};
use super::session::Session;

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

    /// How much of a GPU's memory copies may take, given what is free of it and how much there is.
    pub fn vram_budget(&self, free_bytes: u64, total_bytes: u64) -> u64 {
        vram_budget(self.config.vram, free_bytes, total_bytes)
    }

    /// Notes how much memory of GPUs the host holds copies in, of all contexts together.
    pub fn add_vram(&self, bytes: i64) {
        let now = self.vram_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most_vram_bytes.fetch_max(now.max(0) as u64, Ordering::Relaxed);
    }

    /// How much an expert deserves a copy, compared with others: what is likely to be used soon, more.
    ///
    /// # Errors
    /// As [`Self::add_copy`].
    pub fn score(&self, tensor: usize, expert: usize) -> Result<f64> {
        let core = &self.running()?.core;
        let block = self.block_of(tensor, expert)?;
        let state = core.state.lock();
        let streamed = core.streamed.tensor_of(block).0;
        Ok(state.pools[streamed.pool].score(streamed.first_unit + expert, state.position))
    }

    /// The host has a copy of an expert now.
    ///
    /// # Errors
    /// `InvalidArgument` for what is not a streamed expert; what the first demand may fail with.
    pub fn add_copy(&self, tensor: usize, expert: usize) -> Result<()> {
        self.running()?.core.add_copy(self.block_of(tensor, expert)?);
        Ok(())
    }

    /// The host is about to drop a copy. Returns where its bytes are to be put first, followed by [`Self::rescued`], if that is worth it.
    ///
    /// # Errors
    /// As [`Self::add_copy`].
    pub fn remove_copy(&self, tensor: usize, expert: usize, may_rescue: bool) -> Result<Option<*mut u8>> {
        Ok(self.running()?.core.remove_copy(self.block_of(tensor, expert)?, may_rescue))
    }

    /// The bytes of a copy are where [`Self::remove_copy`] said.
    ///
    /// # Errors
    /// As [`Self::add_copy`].
    pub fn rescued(&self, tensor: usize, expert: usize) -> Result<()> {
        self.running()?.core.rescued(self.block_of(tensor, expert)?);
        Ok(())
    }

    /// What of the model is kept on GPUs, for the log; empty if nothing.
    pub(super) fn vram_phrase(&self) -> String {
        match self.vram_bytes.load(Ordering::Relaxed).max(0) as u64 {
            0 => String::new(),
            bytes => format!(" and {} of VRAM", in_gigabytes(bytes)),
        }
    }

    fn block_of(&self, tensor: usize, expert: usize) -> Result<BlockId> {
        let all = &self.running()?.core.streamed;
        let streamed = all.find(tensor).map(|index| &all.tensors[index]);
        let streamed = streamed.filter(|streamed| streamed.is_expert && expert < streamed.block_count);
        let Some(streamed) = streamed else {
            let message = format!("tensor {tensor} has no expert {expert} that is streamed");
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        };
        Ok(streamed.first_block + expert)
    }
}

impl Core {
    fn add_copy(&self, block: BlockId) {
        let mut state = self.state.lock();
        state.copies[block] += 1;
        if let Some(id) = state.location[block] {
            state.pools[id.pool].set_copied(id.slot, true);
        }
    }

    fn remove_copy(&self, block: BlockId, may_rescue: bool) -> Option<*mut u8> {
        let mut state = self.state.lock();
        state.copies[block] = state.copies[block].saturating_sub(1);
        if state.copies[block] > 0 {
            return None;
        }
        if let Some(id) = state.location[block] {
            state.pools[id.pool].set_copied(id.slot, false);
            return None;
        }
        if !may_rescue || state.is_over() {
            return None;
        }
        let pool = self.streamed.tensor_of(block).0.pool;
        let position = state.position;
        let (slot, evicted) = state.pools[pool].take_for_copy(self.new_block(block, 0), position)?;
        if let Some(evicted) = evicted {
            state.location[evicted] = None;
        }
        state.location[block] = Some(SlotId { pool, slot });
        self.counters.rescued_bytes.add(self.streamed.blocks[block].size_bytes as u64);
        Some(state.pools[pool].address(slot))
    }

    fn rescued(&self, block: BlockId) {
        let mut state = self.state.lock();
        let Some(id) = state.location[block] else { return };
        let awaited_by = state.pools[id.pool].loaded(id.slot);
        let wake = if awaited_by == Default::default() { state.want_room } else { awaited_by };
        drop(state);
        self.wake(wake);
    }
}
