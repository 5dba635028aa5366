//! One pool, step by step.

use super::*;
use crate::index::{BlockId, ExpertId, PolicyLayer, SlotNumber, UnitId, WaiterId};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cache::policy::{PolicyKind, Shape};
use crate::memory::{Arena, Backing, HostMemory, Slabs};

const HERE: Position = Position { pass: 1, layer: PolicyLayer(0) };

/// Slots for blocks below 16, given up least recently used first.
fn pool(slot_count: usize) -> Pool {
    let shape = Shape { layer_count: 1, expert_count: 16 };
    let slots = SlotCount { now: slot_count, most: slot_count.max(4) };
    Pool::new(64, slots, PolicyKind::Lru.build(shape), shape.unit_count()).unwrap()
}

fn take(
    pool: &mut Pool,
    block: usize,
    preferred_slot: usize,
    purpose: TakeFor,
) -> Option<(SlotNumber, Option<BlockId>)> {
    let preferred_slot = SlotNumber(preferred_slot);
    pool.take(NewBlock { block: BlockId(block), unit: UnitId(block), preferred_slot, head_padding: 0 }, HERE, purpose)
}

fn load(pool: &mut Pool, block: usize, purpose: TakeFor) -> Option<SlotNumber> {
    let (slot, _) = take(pool, block, block, purpose)?;
    pool.loaded(slot);
    Some(slot)
}

#[test]
fn the_least_recently_used_block_goes_first() {
    let mut pool = pool(3);
    assert_eq!(pool.untouched_bytes(), 192);
    let slots: Vec<SlotNumber> = (0..3).map(|block| load(&mut pool, block, TakeFor::Demand).unwrap()).collect();
    assert_eq!(pool.untouched_bytes(), 0);
    pool.join(slots[0], WaiterId(0));
    pool.leave(slots[0], WaiterId(0));
    assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand).unwrap(), (slots[1], Some(BlockId(1))));
    assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand).unwrap(), (slots[2], Some(BlockId(2))));
    assert_eq!(take(&mut pool, 5, 0, TakeFor::Demand).unwrap(), (slots[0], Some(BlockId(0))));
    assert_eq!(take(&mut pool, 6, 0, TakeFor::Demand), None, "a Loading slot is never given away");
}

#[test]
fn while_there_is_room_every_block_gets_its_own_place() {
    let mut pool = pool(4);
    let places: Vec<SlotNumber> = [2, 0, 9, 3]
        .iter()
        .map(|&preferred_slot| take(&mut pool, preferred_slot, preferred_slot, TakeFor::Demand).unwrap().0)
        .collect();
    assert_eq!(places, [2, 0, 1, 3].map(SlotNumber), "9 is no slot and gets the first that is left");
    assert_eq!(take(&mut pool, 1, 1, TakeFor::Demand), None);
}

#[test]
fn a_slot_in_use_or_pinned_stays() {
    let mut pool = pool(2);
    let used = load(&mut pool, 0, TakeFor::Demand).unwrap();
    pool.join(used, WaiterId(0));
    pool.join(used, WaiterId(0));
    pool.leave(used, WaiterId(0));
    let (kept, _) = take(&mut pool, 1, 0, TakeFor::Demand).unwrap();
    pool.set_pinned(kept, true);
    pool.loaded(kept);
    assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), None);
    pool.leave(used, WaiterId(0));
    assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), Some((used, Some(BlockId(0)))));
    pool.set_pinned(kept, false);
    assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand), Some((kept, Some(BlockId(1)))));
}

#[test]
fn a_completed_read_names_those_that_wait_for_it() {
    let mut pool = pool(2);
    let (slot, _) = take(&mut pool, 0, 0, TakeFor::Demand).unwrap();
    pool.join(slot, WaiterId(3));
    pool.join(slot, WaiterId(70));
    pool.join(slot, WaiterId(5));
    pool.leave(slot, WaiterId(5));
    assert_eq!(pool.loaded(slot).iter().collect::<Vec<_>>(), [WaiterId(3), WaiterId(63)]);
    let (other, _) = take(&mut pool, 1, 0, TakeFor::Prefetch).unwrap();
    assert_eq!(pool.loaded(other), WaiterSet::default());
}

#[test]
fn prefetches_never_push_each_other_out_but_yield_to_demand_last_first() {
    let mut pool = pool(3);
    let first = load(&mut pool, 0, TakeFor::Prefetch).unwrap();
    let last = load(&mut pool, 1, TakeFor::Prefetch).unwrap();
    let used = load(&mut pool, 2, TakeFor::Demand).unwrap();
    assert_eq!(take(&mut pool, 3, 0, TakeFor::Prefetch).unwrap().0, used);
    pool.loaded(used);
    assert_eq!(take(&mut pool, 4, 0, TakeFor::Prefetch), None);
    assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand), Some((used, Some(BlockId(3)))));
    assert_eq!(take(&mut pool, 5, 0, TakeFor::Demand), Some((last, Some(BlockId(1)))));
    assert!(pool.join(first, WaiterId(0)), "the first use of a prefetch is reported");
    assert!(!pool.join(first, WaiterId(0)));
}

#[test]
fn a_prefetch_gains_where_there_is_room_or_less_to_lose() {
    let shape = Shape { layer_count: 2, expert_count: 4 };
    let mut pool =
        Pool::new(64, SlotCount { now: 1, most: 1 }, PolicyKind::Forecast.build(shape), shape.unit_count()).unwrap();
    let (held, foreseen) = (shape.unit(PolicyLayer(0), ExpertId(0)), shape.unit(PolicyLayer(1), ExpertId(0)));
    assert_eq!(pool.empty_count(), 1);
    assert!(pool.would_gain(foreseen, 0.0, HERE));
    pool.remember(held, 1.0);
    let new = NewBlock { block: BlockId(held.0), unit: held, preferred_slot: SlotNumber(0), head_padding: 0 };
    let (slot, _) = pool.take(new, HERE, TakeFor::Demand).unwrap();
    assert!(!pool.would_gain(foreseen, 1.0, HERE), "nothing can be had");
    pool.loaded(slot);
    assert!(pool.would_gain(foreseen, 0.9, HERE));
    assert!(!pool.would_gain(foreseen, 0.1, HERE), "what is there is likelier used");
    assert_eq!(pool.empty_count(), 0);
}

#[test]
fn a_wrong_prefetch_is_let_go_and_one_that_was_taken_back_leaves_an_empty_slot() {
    let mut pool = pool(2);
    let read = load(&mut pool, 0, TakeFor::Prefetch).unwrap();
    let (queued, _) = take(&mut pool, 1, 1, TakeFor::Prefetch).unwrap();
    pool.expire(read);
    assert_eq!(pool.give_back(queued, |_| false), None);
    assert!(!pool.is_prefetched(read));
    assert_eq!(take(&mut pool, 2, 1, TakeFor::Prefetch), Some((queued, None)));
    assert_eq!(take(&mut pool, 3, 1, TakeFor::Prefetch), Some((read, Some(BlockId(0)))));
}

#[test]
fn what_a_prefetch_took_a_slot_from_comes_back_when_it_is_taken_back() {
    let mut pool = pool(2);
    let slot = load(&mut pool, 0, TakeFor::Demand).unwrap();
    load(&mut pool, 1, TakeFor::Demand).unwrap();
    let prefetch = |pool: &mut Pool| take(pool, 2, 0, TakeFor::Prefetch);
    assert_eq!(prefetch(&mut pool), Some((slot, Some(BlockId(0)))));
    assert_eq!(pool.give_back(slot, |block| block != BlockId(0)), Some(BlockId(0)));
    assert_eq!((pool.state(slot), pool.block(slot), pool.is_prefetched(slot)), (SlotState::Ready, BlockId(0), false));
    assert!(!pool.join(slot, WaiterId(0)), "it is a hit like any other");
    pool.leave(slot, WaiterId(0));
    // Read again into another slot meanwhile, it stays there.
    assert_eq!(take(&mut pool, 3, 0, TakeFor::Prefetch), Some((SlotNumber(1), Some(BlockId(1)))));
    assert_eq!(pool.give_back(SlotNumber(1), |block| block == BlockId(1)), None);
    assert_eq!(pool.empty_count(), 1);
}

#[test]
fn a_prefetch_that_is_broken_off_leaves_an_empty_slot_once_its_last_read_is_over() {
    let mut pool = pool(1);
    load(&mut pool, 0, TakeFor::Demand).unwrap();
    for is_in_flight in [true, false] {
        let (slot, _) = take(&mut pool, 1, 0, TakeFor::Prefetch).unwrap();
        pool.drain(slot, is_in_flight);
        if is_in_flight {
            assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), None, "it is still written to");
            assert_eq!(pool.loaded(slot), WaiterSet::default());
        }
        assert_eq!((pool.state(slot), pool.empty_count()), (SlotState::Empty, 1));
        assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), Some((slot, None)));
        pool.loaded(slot);
    }
}

/// The blocks that lose their slots.
fn resize(pool: &mut Pool, slot_count: usize) -> Vec<usize> {
    let mut evicted = Vec::new();
    pool.resize(slot_count, |block| evicted.push(block.0));
    evicted
}

#[test]
fn closed_slots_lose_their_blocks_and_are_empty_when_they_open_again() {
    let mut pool = pool(4);
    for (block, purpose) in [(0, TakeFor::Demand), (1, TakeFor::Demand), (2, TakeFor::Prefetch)] {
        load(&mut pool, block, purpose).unwrap();
    }
    pool.set_pinned(SlotNumber(1), true);
    assert_eq!(resize(&mut pool, 1), [1, 2], "of pinned ones and of prefetches as well");
    assert_eq!((pool.slot_count(), pool.untouched_bytes()), (1, 0));
    assert_eq!(
        take(&mut pool, 5, 3, TakeFor::Demand),
        Some((SlotNumber(0), Some(BlockId(0)))),
        "a preferred slot that is closed is none"
    );
    assert_eq!(take(&mut pool, 6, 1, TakeFor::Demand), None);
    assert_eq!(resize(&mut pool, 3), [0; 0]);
    assert_eq!(pool.untouched_bytes(), 128);
    assert_eq!(take(&mut pool, 6, 1, TakeFor::Demand), Some((SlotNumber(1), None)));
}

/// Memory of which the system allows so many slots to be opened.
#[derive(Debug)]
struct Sparing(Arena, Arc<Mutex<usize>>);

impl Backing for Sparing {
    fn length(&self) -> usize {
        self.0.length()
    }

    fn address(&self, offset: usize) -> *mut u8 {
        self.0.address(offset)
    }

    fn open(&mut self, _offset: usize, _length: usize) -> bool {
        let mut left = self.1.lock();
        let is_allowed = *left > 0;
        *left -= usize::from(is_allowed);
        is_allowed
    }

    fn release(&mut self, _offset: usize, _length: usize) {
        *self.1.lock() += 1;
    }

    fn release_unwritten(&mut self, offset: usize, length: usize) {
        self.release(offset, length);
    }
}

#[test]
fn slots_that_the_system_refuses_memory_for_stay_closed() {
    let shape = Shape { layer_count: 1, expert_count: 16 };
    let left = Arc::new(Mutex::new(1));
    let memory = Box::new(Sparing(Arena::new(4 * 64).unwrap(), Arc::clone(&left)));
    let slots = SlotCount { now: 1, most: 4 };
    let mut pool = Pool::over(memory, 64, slots, PolicyKind::Lru.build(shape), shape.unit_count());
    assert_eq!(resize(&mut pool, 4), [0; 0]);
    assert_eq!((pool.slot_count(), pool.untouched_bytes()), (2, 128));
    pool.check();
    load(&mut pool, 0, TakeFor::Demand).unwrap();
    load(&mut pool, 1, TakeFor::Demand).unwrap();
    assert_eq!(take(&mut pool, 2, 2, TakeFor::Demand), Some((SlotNumber(0), Some(BlockId(0)))), "2 is closed");
    pool.loaded(SlotNumber(0));
    *left.lock() = 0;
    assert_eq!(resize(&mut pool, 0), [2, 1]);
    assert_eq!(*left.lock(), 2, "what is closed can be had again");
    assert_eq!(resize(&mut pool, 4), [0; 0]);
    assert_eq!(pool.slot_count(), 2);
    pool.check();
}

/// Memory that notes the offsets of what is given back.
#[derive(Debug)]
struct Noted(Arena, Arc<Mutex<Vec<usize>>>);

impl Backing for Noted {
    fn length(&self) -> usize {
        self.0.length()
    }

    fn address(&self, offset: usize) -> *mut u8 {
        self.0.address(offset)
    }

    fn release(&mut self, offset: usize, _length: usize) {
        self.1.lock().push(offset);
    }

    fn release_unwritten(&mut self, offset: usize, length: usize) {
        self.release(offset, length);
    }
}

/// Four slots of 64 bytes, and the offsets of what they give back.
fn noted_pool() -> (Pool, Arc<Mutex<Vec<usize>>>) {
    let shape = Shape { layer_count: 1, expert_count: 16 };
    let returned = Arc::new(Mutex::new(Vec::new()));
    let memory = Box::new(Noted(Arena::new(4 * 64).unwrap(), Arc::clone(&returned)));
    let slots = SlotCount { now: 4, most: 4 };
    (Pool::over(memory, 64, slots, PolicyKind::Lru.build(shape), shape.unit_count()), returned)
}

/// A huge page that came with the slot beside it would stay taken.
#[test]
fn what_is_closed_goes_back_also_where_nothing_was_read() {
    let (mut pool, returned) = noted_pool();
    load(&mut pool, 2, TakeFor::Demand).unwrap();
    assert_eq!(resize(&mut pool, 1), [2]);
    returned.lock().sort_unstable();
    assert_eq!(*returned.lock(), [64, 128, 192]);
    assert_eq!(resize(&mut pool, 0), [0; 0]);
    assert_eq!(returned.lock().split_off(3), [0], "and no more than once");
}

#[test]
fn slots_are_touched_ahead_of_reads_unless_they_are_closed() {
    let (mut pool, returned) = noted_pool();
    load(&mut pool, 1, TakeFor::Demand).unwrap();
    let slots = |first: usize, end: usize| Some(SlotNumber(first)..SlotNumber(end));
    assert_eq!(pool.untouched_from(SlotNumber(0), 1 << 20), slots(0, 1), "beside one that a read has touched");
    assert_eq!(pool.untouched_from(SlotNumber(1), 1 << 20), slots(2, 4));
    assert_eq!(pool.untouched_from(SlotNumber(1), 65), slots(2, 3));
    assert_eq!(pool.untouched_from(SlotNumber(1), 1), slots(2, 3), "one slot at least");
    pool.touched(SlotNumber(2)..SlotNumber(3));
    assert_eq!((pool.untouched_bytes(), pool.untouched_from(SlotNumber(1), 1)), (128, slots(3, 4)));
    resize(&mut pool, 2);
    assert_eq!(pool.untouched_from(SlotNumber(1), 1), None, "what is closed stays as it is");
    returned.lock().clear();
    pool.touched(SlotNumber(0)..SlotNumber(4));
    assert_eq!(*returned.lock(), [128, 192], "what was closed meanwhile goes back");
    pool.check();
    resize(&mut pool, 4);
    assert_eq!(pool.untouched_bytes(), 128);
}

/// It would be open without memory afterwards, where closed memory is inaccessible.
#[test]
fn touching_does_not_give_back_what_is_still_to_close() {
    let (mut pool, returned) = noted_pool();
    let (queued, _) = take(&mut pool, 3, 3, TakeFor::Prefetch).unwrap();
    assert_eq!(resize(&mut pool, 1), [0; 0]);
    pool.give_back(queued, |_| false);
    returned.lock().clear();
    pool.touched(queued..SlotNumber(queued.0 + 1));
    pool.check();
    assert_eq!(*returned.lock(), [0; 0]);
    pool.finish_closing(|block| panic!("{block:?}"));
    assert_eq!(*returned.lock(), [192]);
    pool.check();
}

#[test]
fn a_slot_in_use_closes_once_it_is_given_back() {
    let mut pool = pool(3);
    let used = load(&mut pool, 2, TakeFor::Demand).unwrap();
    pool.join(used, WaiterId(0));
    let (loading, _) = take(&mut pool, 1, 1, TakeFor::Prefetch).unwrap();
    assert_eq!(resize(&mut pool, 1), [0; 0]);
    pool.leave(used, WaiterId(0));
    pool.loaded(loading);
    assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand), Some((SlotNumber(0), None)));
    assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand), None, "neither of the two may be taken");
    let mut evicted = Vec::new();
    pool.finish_closing(|block| evicted.push(block.0));
    assert_eq!(evicted, [1, 2]);
    pool.finish_closing(|block| panic!("{block:?} had lost its slot"));
    pool.check();
    // A read that is taken back leaves a closed slot closed.
    assert_eq!(resize(&mut pool, 2), [0; 0]);
    let (queued, _) = take(&mut pool, 5, 1, TakeFor::Prefetch).unwrap();
    assert_eq!(resize(&mut pool, 1), [0; 0]);
    assert_eq!(pool.give_back(queued, |_| false), None);
    assert_eq!(take(&mut pool, 6, 1, TakeFor::Demand), None);
}

#[test]
fn a_slot_that_should_have_closed_is_like_any_other_when_there_is_room_again() {
    let mut pool = pool(2);
    let used = load(&mut pool, 1, TakeFor::Demand).unwrap();
    pool.join(used, WaiterId(0));
    assert_eq!(resize(&mut pool, 1), [0; 0]);
    assert_eq!(resize(&mut pool, 2), [0; 0]);
    pool.leave(used, WaiterId(0));
    take(&mut pool, 0, 0, TakeFor::Demand).unwrap();
    assert_eq!(take(&mut pool, 2, 0, TakeFor::Demand), Some((used, Some(BlockId(1)))));
}

#[test]
fn what_the_host_has_a_copy_of_goes_first_and_nothing_is_lost_for_a_prefetch() {
    let mut pool = pool(3);
    let slots: Vec<SlotNumber> = (0..3).map(|block| load(&mut pool, block, TakeFor::Demand).unwrap()).collect();
    pool.set_copied(slots[1], true);
    pool.set_copied(slots[2], true);
    pool.join(slots[2], WaiterId(0));
    assert!(pool.would_gain(UnitId(0), 0.0, HERE), "a copy costs nothing");
    assert_eq!(take(&mut pool, 3, 0, TakeFor::Demand), Some((slots[1], Some(BlockId(1)))), "2 is in use");
    pool.leave(slots[2], WaiterId(0));
    pool.set_copied(slots[2], false);
    assert_eq!(take(&mut pool, 4, 0, TakeFor::Demand), Some((slots[0], Some(BlockId(0)))), "2 was used later");
}

#[test]
fn a_copy_that_is_dropped_gets_a_slot_only_from_what_is_worth_less() {
    let shape = Shape { layer_count: 1, expert_count: 4 };
    let slots = SlotCount { now: 1, most: 1 };
    let mut pool = Pool::new(64, slots, PolicyKind::Forecast.build(shape), shape.unit_count()).unwrap();
    let new =
        |block| NewBlock { block: BlockId(block), unit: UnitId(block), preferred_slot: SlotNumber(0), head_padding: 0 };
    for (unit, uses_per_token) in [(0, 0.5), (1, 0.9), (2, 0.1)] {
        pool.remember(UnitId(unit), uses_per_token);
    }
    let (slot, _) = pool.take_for_copy(new(0), HERE).unwrap();
    assert_eq!(pool.take_for_copy(new(1), HERE), None, "its bytes are still on their way");
    pool.loaded(slot);
    assert_eq!(pool.take_for_copy(new(2), HERE), None, "2 is worth less");
    assert_eq!(pool.take_for_copy(new(1), HERE), Some((slot, Some(BlockId(0)))));
}

#[derive(Debug, Default)]
struct Lender {
    lent: std::sync::Mutex<Vec<(usize, std::alloc::Layout)>>,
    is_empty: std::sync::atomic::AtomicBool,
}

impl HostMemory for Lender {
    fn allocate(&self, size_bytes: usize) -> Option<*mut std::ffi::c_void> {
        if self.is_empty.load(std::sync::atomic::Ordering::Relaxed) {
            return None;
        }
        let layout = std::alloc::Layout::from_size_align(size_bytes, 4096).unwrap();
        // SAFETY: the size is not zero.
        let memory = unsafe { std::alloc::alloc(layout) };
        self.lent.lock().unwrap().push((memory as usize, layout));
        Some(memory.cast())
    }

    fn free(&self, memory: *mut std::ffi::c_void) {
        let mut lent = self.lent.lock().unwrap();
        let index = lent.iter().position(|&(address, _)| address == memory as usize).expect("it was lent");
        let (_, layout) = lent.swap_remove(index);
        // SAFETY: it was allocated with this layout and is freed once.
        unsafe { std::alloc::dealloc(memory.cast(), layout) };
    }
}

#[test]
fn the_hosts_memory_is_taken_as_slots_are_used_and_given_back_with_the_last_of_them() {
    let slot_bytes = 16 << 20; // two to a slab
    let lender = Arc::new(Lender::default());
    let shape = Shape { layer_count: 1, expert_count: 16 };
    let slots = SlotCount { now: 4, most: 4 };
    let policy = PolicyKind::Lru.build(shape);
    let memory = Slabs::new(slot_bytes, 0, slots.most, lender.clone());
    let mut pool = Pool::over(Box::new(memory), slot_bytes, slots, policy, shape.unit_count());
    let count = || lender.lent.lock().unwrap().len();
    assert_eq!(count(), 0);
    let placed: Vec<SlotNumber> = (0..3).map(|block| load(&mut pool, block, TakeFor::Demand).unwrap()).collect();
    assert_eq!((placed, count()), ([0, 1, 2].map(SlotNumber).to_vec(), 2));
    assert_eq!(pool.address(SlotNumber(1)) as usize - pool.address(SlotNumber(0)) as usize, slot_bytes);
    // SAFETY: the slot has that much memory, and nobody else uses it.
    unsafe { pool.address(SlotNumber(2)).add(slot_bytes - 1).write(1) };
    assert_eq!((resize(&mut pool, 3), count()), (vec![], 2));
    assert_eq!((resize(&mut pool, 2), count()), (vec![2], 1));
    lender.is_empty.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!((resize(&mut pool, 4), count()), (vec![], 1));
    let own = load(&mut pool, 3, TakeFor::Demand).unwrap();
    // SAFETY: as above; where the host has none left, the memory is our own.
    unsafe { pool.address(own).add(slot_bytes - 1).write(1) };
    assert_eq!(count(), 1);
    drop(pool);
    assert_eq!(count(), 0);
}
