//! Which dense tensors stay in RAM: chosen at the start, and again once it is known how long reading and computing
//! take.

use std::time::Duration;

use typed_index_collections::{TiSlice, TiVec};

use crate::cache::Pool;
use crate::index::{BlockId, PoolId, StreamedId};
use crate::plan::{FIRST_RING, Pass, Step, pinned};

use crate::stream::slots::SlotId;
use crate::stream::tensors::StreamedTensors;

/// What is kept, and the times that decide it.
pub(in crate::stream) struct Pins {
    /// By block: never evicted.
    pinned: TiVec<BlockId, bool>,
    /// Slots of each class that the rest flows through.
    ring: usize,
    /// By tensor: seconds from its multiplication's start until the next tensor is wanted.
    compute_seconds: TiVec<StreamedId, f64>,
}

impl Pins {
    pub(in crate::stream) fn new(streamed: &StreamedTensors, slots: &TiSlice<PoolId, usize>) -> Self {
        let mut this = Self {
            pinned: vec![false; streamed.blocks.len()].into(),
            ring: FIRST_RING,
            compute_seconds: vec![0.0; streamed.tensors.len()].into(),
        };
        this.choose(streamed, slots, &streamed.dense_in_likely_order());
        this
    }

    pub(in crate::stream) fn is_pinned(&self, block: BlockId) -> bool {
        self.pinned[block]
    }

    pub(in crate::stream) fn ring(&self) -> usize {
        self.ring
    }

    /// A multiplication with a tensor took this long. Pauses between tokens come along now and then: a longer time is
    /// believed slowly.
    pub(in crate::stream) fn computed(&mut self, tensor: StreamedId, time: Duration) {
        let (seconds, known) = (time.as_secs_f64(), self.compute_seconds[tensor]);
        self.compute_seconds[tensor] = match known {
            0.0 => seconds,
            _ => known + (seconds.min(2.0 * known) - known) / 4.0,
        };
    }

    /// Chooses anew for the dense tensors in their order of use, and lets go what no longer stays. What stays from now
    /// on is kept from its next read or use on. Says whether the ring has changed.
    pub(in crate::stream) fn retune(
        &mut self,
        streamed: &StreamedTensors,
        order: &[StreamedId],
        bytes_per_second: f64,
        pools: &mut TiSlice<PoolId, Pool>,
        location: &TiSlice<BlockId, Option<SlotId>>,
    ) -> bool {
        let slots: TiVec<PoolId, usize> = pools.iter().map(Pool::slot_count).collect();
        let step = |&tensor: &StreamedId| Step {
            pool: streamed.tensors[tensor].pool,
            read_seconds: streamed.blocks[streamed.tensors[tensor].first_block].size_bytes as f64 / bytes_per_second,
            compute_seconds: self.compute_seconds[tensor],
        };
        let steps: Vec<Step> = order.iter().map(step).collect();
        let pass = Pass { steps: &steps, slots: &slots };
        let ring = pass.best_ring();
        // Changing what is kept costs reads: it has to be worth them.
        if ring == self.ring || pass.seconds(ring) > 0.98 * pass.seconds(self.ring) {
            return false;
        }
        self.ring = ring;
        self.fit(streamed, &slots, order, pools, location);
        true
    }

    /// Chooses anew for other numbers of slots.
    pub(in crate::stream) fn fit(
        &mut self,
        streamed: &StreamedTensors,
        slots: &TiSlice<PoolId, usize>,
        order: &[StreamedId],
        pools: &mut TiSlice<PoolId, Pool>,
        location: &TiSlice<BlockId, Option<SlotId>>,
    ) {
        self.choose(streamed, slots, order);
        for &tensor in order {
            let block = streamed.tensors[tensor].first_block;
            if let Some(SlotId { pool, slot }) = location[block] {
                pools[pool].set_pinned(slot, self.pinned[block]);
            }
        }
    }

    fn choose(&mut self, streamed: &StreamedTensors, slots: &TiSlice<PoolId, usize>, order: &[StreamedId]) {
        let pools = order.iter().map(|&tensor| streamed.tensors[tensor].pool);
        for (&tensor, pinned) in order.iter().zip(pinned(pools, slots, self.ring)) {
            self.pinned[streamed.tensors[tensor].first_block] = pinned;
        }
    }
}
