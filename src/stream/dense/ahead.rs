//! Reading ahead of need: what comes after a tensor in the learned order, into slots whose contents are no longer needed.

use crate::index::{ExpertId, StreamedId};
use crate::io::{DirectFile, Priority, Request};

use super::Walk;
use crate::stream::core::Core;
use crate::stream::slots::Slots;

/// How many tensors ahead. The number of slots is what limits a ring; this only bounds the work of a call.
const REACH: usize = 48;

/// The experts of a demand are read ahead for the layer's other matrices while they take one in so many slots at most: a
/// prompt's would push each other out.
const SLOTS_PER_EXPERT: usize = 4;

/// Starts reading what comes after a tensor that is used: the next dense tensors, across the end of the pass, and, behind experts of a
/// tensor, the same `experts` of the layer's other matrices.
pub(in crate::stream) fn read_ahead(
    core: &Core,
    slots: &mut Slots,
    files: &[DirectFile],
    (after, walk): (StreamedId, &Walk),
    experts: &[ExpertId],
    requests: &mut Vec<Request>,
) {
    let tensors = &core.streamed.tensors;
    let from = &tensors[after];
    for next in walk.after().take(REACH) {
        let to = &tensors[next];
        let experts: &[ExpertId] =
            match (to.is_expert, to.expert_layer.is_some() && to.expert_layer == from.expert_layer) {
                (false, _) => &[ExpertId(0)],
                (true, true) if experts.len() * SLOTS_PER_EXPERT <= slots.pools[to.pool].slot_count() => experts,
                _ => continue,
            };
        for &expert in experts.iter().filter(|&&expert| to.has(expert)) {
            let block = to.first_block + expert;
            if slots.location[block].is_some() {
                continue;
            }
            if core.read(slots, files, to.pool, block, Priority::Ahead, requests).is_none() {
                break; // this pool is full; another may not be
            }
            core.counters.prefetch_issued.add(1);
        }
    }
}
