//! What is in RAM or on its way there: the pools, where in them each block is, and the reads that bring blocks in.

use std::time::Instant;

use typed_index_collections::TiVec;

use crate::cache::policy::Position;
use crate::cache::{Pool, SlotState, TakeFor, WaiterSet};
use crate::index::{BlockId, PolicyLayer, PoolId, ReadToken, SlotNumber};
use crate::io::{Cancelled, Destination, DirectFile, Engine, Priority, Request};
use crate::stats::Counters;

use super::core::Core;
use super::dense::Pins;
use super::tensors::StreamedTensors;
use super::timeline::Event;

/// A slot: its pool and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId {
    pub(super) pool: PoolId,
    pub(super) slot: SlotNumber,
}

/// The part of a session's state that says what is in RAM, or on its way there.
pub(super) struct Slots {
    pub(super) pools: TiVec<PoolId, Pool>,
    /// By pool: the token of reads into its first slot.
    first_token: TiVec<PoolId, ReadToken>,
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
        let next_token =
            |next: &mut ReadToken, pool: &Pool| Some(std::mem::replace(next, *next + pool.largest_slot_count()));
        let first_token = pools.iter().scan(ReadToken(0), next_token).collect();
        Self {
            first_token,
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

    /// Gives a block a slot and adds the read that fills it to `requests`, to be submitted once the lock is released. `None`
    /// when no slot can be had at this priority now.
    pub(super) fn read(
        &mut self,
        core: &Core,
        files: &[DirectFile],
        block: BlockId,
        priority: Priority,
        requests: &mut Vec<Request>,
    ) -> Option<SlotId> {
        assert!(self.location[block].is_none(), "a block is read that has a slot already");
        let extent = core.streamed.blocks[block];
        let range = files[extent.file].widen(extent.offset, extent.size_bytes);
        let (pool, new) = core.streamed.new_block(block, range.head_padding);
        let purpose = if priority == Priority::Demand { TakeFor::Demand } else { TakeFor::Prefetch };
        let (slot, evicted) = self.pools[pool].take(new, self.position, purpose)?;
        let id = SlotId { pool, slot };
        self.moved_in(block, id, evicted);
        let taken = &mut self.pools[pool];
        if self.pins.is_pinned(block) {
            taken.set_pinned(slot, true);
        }
        taken.set_copied(slot, self.copies[block] > 0);
        self.is_certain[block] = false;
        // SAFETY: the slot is as large as any widened block of its class and page-aligned; it is Loading, so by the
        // pool's invariants nobody reads it or gives it away until `finished` has marked it Ready.
        let destination = unsafe { Destination::new(taken.address(slot)) };
        let generation = taken.generation(slot);
        self.count_read_time(&core.counters);
        self.reads_in_flight += 1;
        core.record(Event::ReadBegin, block);
        requests.push(Request { token: self.token(id), generation, file: extent.file, range, destination, priority });
        Some(id)
    }

    /// A read is over, well or not: its slot is Ready, or holds nothing. Returns who waits for it.
    pub(super) fn finished(&mut self, core: &Core, id: SlotId, is_well: bool) -> WaiterSet {
        self.count_read_time(&core.counters);
        self.reads_in_flight -= 1;
        let pool = &mut self.pools[id.pool];
        let block = pool.block(id.slot);
        core.record(Event::ReadEnd, block);
        // What was broken off has lost its place already, and was counted as far as it went.
        if pool.state(id.slot) != SlotState::Draining {
            match is_well {
                true => core.counters.read_bytes.add(core.streamed.blocks[block].size_bytes as u64),
                false => self.location[block] = None,
            }
        }
        if is_well { pool.loaded(id.slot) } else { pool.failed(id.slot) }
    }

    /// Lets a read ahead of need go that is not wanted. As far as the drive has not begun with it, it is not read any more.
    pub(super) fn take_back(&mut self, core: &Core, engine: &dyn Engine, block: BlockId, id: SlotId) {
        let cancelled = engine.cancel(self.token(id));
        let (pool, location, counters) = (&mut self.pools[id.pool], &mut self.location, &core.counters);
        let Some(Cancelled { begun_bytes, is_in_flight }) = cancelled else {
            pool.expire(id.slot);
            counters.prefetch_wasted.add(1);
            return;
        };
        location[block] = None;
        if begun_bytes > 0 {
            pool.drain(id.slot, is_in_flight);
            counters.read_bytes.add(begun_bytes as u64);
            counters.prefetch_wasted.add(1);
        } else {
            if let Some(before) = pool.give_back(id.slot, |before| location[before].is_some()) {
                location[before] = Some(id);
                pool.set_copied(id.slot, self.copies[before] > 0);
            }
            counters.prefetch_cancelled.add(1);
        }
        if !is_in_flight {
            self.count_read_time(counters);
            self.reads_in_flight -= 1;
        }
    }

    /// Gives a block a slot whose bytes come from a copy of the host's instead of the drive, if it is worth one. Returns where they go.
    pub(super) fn take_for_copy(&mut self, core: &Core, block: BlockId) -> Option<*mut u8> {
        let (pool, new) = core.streamed.new_block(block, 0);
        let (slot, evicted) = self.pools[pool].take_for_copy(new, self.position)?;
        self.moved_in(block, SlotId { pool, slot }, evicted);
        core.counters.rescued_bytes.add(core.streamed.blocks[block].size_bytes as u64);
        Some(self.pools[pool].address(slot))
    }

    /// A block has the slot now that another one lost, if it held one.
    fn moved_in(&mut self, block: BlockId, id: SlotId, evicted: Option<BlockId>) {
        if let Some(evicted) = evicted {
            self.location[evicted] = None;
        }
        self.location[block] = Some(id);
    }

    /// Brings the time with a read in flight up to date: a busy drive may not pause for minutes.
    pub(super) fn count_read_time(&mut self, counters: &Counters) {
        let since = std::mem::replace(&mut self.counted_until, Instant::now());
        if self.reads_in_flight > 0 {
            counters.read_time.add_time(since.elapsed());
        }
    }

    /// How many tokens reads can have: one for each slot.
    pub(super) fn token_count(&self) -> usize {
        self.pools.iter().map(Pool::largest_slot_count).sum()
    }

    /// The token of reads into a slot.
    pub(super) fn token(&self, id: SlotId) -> ReadToken {
        self.first_token[id.pool] + id.slot.0
    }

    /// The slot that the read with a token is into.
    pub(super) fn id_of(&self, token: ReadToken) -> SlotId {
        let pool = PoolId(self.first_token.raw.partition_point(|&first| first <= token) - 1);
        SlotId { pool, slot: SlotNumber(token - self.first_token[pool]) }
    }
}
