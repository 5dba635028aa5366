//! What is in RAM: the pools, and where in them each block is.

use std::time::Instant;

use typed_index_collections::TiVec;

use crate::cache::Pool;
use crate::cache::policy::Position;
use crate::index::{BlockId, PolicyLayer, PoolId, SlotNumber};

use super::dense::Pins;
use super::tensors::StreamedTensors;

/// A slot: its pool and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId {
    pub(super) pool: PoolId,
    pub(super) slot: SlotNumber,
}

/// The part of a session's state that says what is in RAM, or on its way there.
pub(super) struct Slots {
    pub(super) pools: TiVec<PoolId, Pool>,
    /// By block: the slot that it is in or being read into.
    pub(super) location: TiVec<BlockId, Option<SlotId>>,
    /// By block: how many copies of it the host keeps in memory of its own, a GPU's.
    pub(super) copies: TiVec<BlockId, u16>,
    /// By block: whether it is being read, or was, because a layer to come is certain to use it, and was not used since.
    pub(super) is_certain: TiVec<BlockId, bool>,
    /// Where the computation is, as policies count it.
    pub(super) position: Position,
    pub(super) pins: Pins,
    pub(super) reads_in_flight: usize,
    /// Until when the time with a read in flight has been counted.
    pub(super) counted_until: Instant,
}

impl Slots {
    /// Nothing is in these pools.
    pub(super) fn new(pools: TiVec<PoolId, Pool>, streamed: &StreamedTensors) -> Self {
        let block_count = streamed.blocks.len();
        let slot_counts: TiVec<PoolId, usize> = pools.iter().map(Pool::slot_count).collect();
        Self {
            pools,
            location: vec![None; block_count].into(),
            copies: vec![0; block_count].into(),
            is_certain: vec![false; block_count].into(),
            position: Position { pass: 0, layer: PolicyLayer(0) },
            pins: Pins::new(streamed, &slot_counts),
            reads_in_flight: 0,
            counted_until: Instant::now(),
        }
    }

    /// Whether a block has to be read before it can be used.
    pub(super) fn is_missing(&self, block: BlockId) -> bool {
        self.location[block].is_none() && self.copies[block] == 0
    }

    /// Whether a block is in a slot, or on its way there, through a read ahead of need that nobody has asked for since.
    pub(super) fn is_prefetched(&self, block: BlockId, id: SlotId) -> bool {
        self.location[block] == Some(id) && self.pools[id.pool].is_prefetched(id.slot)
    }
}
