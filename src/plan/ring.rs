//! Which dense tensors stay in RAM, and how many slots the others flow through.
//!
//! A dense pass uses every tensor once, in the same order each time. With fewer slots than tensors, least-recently-used
//! replacement would evict each one just before it comes round again and miss every time. Under such cyclic access the
//! best that any policy can do, Belady's included, is to keep a fixed set and let the rest flow through what is left:
//! the *ring*. What is kept is spread evenly over the pass, so that the drive always has something to read and
//! computing never waits in bursts. Which ring is best is a matter of times: too short, and the drive rests while a
//! slot is computed on; too long, and more has to be read. It is found by playing through a pass.

use std::collections::VecDeque;

use typed_index_collections::{TiSlice, TiVec};

use crate::index::PoolId;

/// Slots that dense tensors flow through while nothing has been measured.
pub const FIRST_RING: usize = 4;

/// One dense tensor in the order of use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The pool that it lives in.
    pub pool: PoolId,
    /// Seconds that the drive takes to read it.
    pub read_seconds: f64,
    /// Seconds from the start of its multiplication until the next tensor is wanted.
    pub compute_seconds: f64,
}

/// A dense pass: what it uses, and the slots that there are.
pub struct Pass<'a> {
    /// In the order of use.
    pub steps: &'a [Step],
    /// By pool.
    pub slots: &'a TiSlice<PoolId, usize>,
}

/// Which steps stay in RAM, given each step's pool in the order of use, when every pool that does not hold all of its own
/// leaves `ring` slots (as far as it has them) to the rest.
pub fn pinned(pools: impl Iterator<Item = PoolId> + Clone, slots: &TiSlice<PoolId, usize>, ring: usize) -> Vec<bool> {
    let mut count: TiVec<PoolId, usize> = vec![0; slots.len()].into();
    pools.clone().for_each(|pool| count[pool] += 1);
    let mut seen: TiVec<PoolId, usize> = vec![0; slots.len()].into();
    pools
        .map(|pool| {
            let kept = match slots[pool] {
                enough if enough >= count[pool] => count[pool],
                // A ring of one would make reading and computing take turns.
                few => few - ring.max(2).min(few),
            };
            let index = seen[pool];
            seen[pool] += 1;
            (index + 1) * kept / count[pool] > index * kept / count[pool]
        })
        .collect()
}

impl Pass<'_> {
    /// The shortest ring whose pass takes no more than a hundredth longer than the best, within what the slots allow.
    pub fn best_ring(&self) -> usize {
        const LONGEST: usize = 32;
        let largest = self.slots.iter().copied().max().unwrap_or(0).clamp(2, LONGEST);
        let seconds: Vec<f64> = (2..=largest).map(|ring| self.seconds(ring)).collect();
        let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        2 + seconds.iter().position(|&seconds| seconds <= best * 1.01).unwrap_or(0)
    }

    /// How long a pass takes with a ring, once passes follow each other.
    ///
    /// The drive reads one tensor after the other, each as soon as a slot of its pool is free; a multiplication starts
    /// when the one before it is over and its tensor is there.
    pub fn seconds(&self, ring: usize) -> f64 {
        const PASSES: usize = 4;
        let pinned = pinned(self.steps.iter().map(|step| step.pool), self.slots, ring);
        // By pool, when its slots become free, the earliest first: they are used in turn.
        let mut free_at: TiVec<PoolId, VecDeque<f64>> = self
            .slots
            .iter_enumerated()
            .map(|(pool, &slots)| {
                let kept = self.steps.iter().zip(&pinned).filter(|(step, kept)| step.pool == pool && **kept).count();
                std::iter::repeat_n(0.0, slots.saturating_sub(kept).max(1)).collect()
            })
            .collect();
        let (mut drive, mut processor, mut last_pass) = (0.0_f64, 0.0_f64, 0.0_f64);
        for _ in 0..PASSES {
            last_pass = processor;
            for (step, pinned) in self.steps.iter().zip(&pinned) {
                if *pinned {
                    processor += step.compute_seconds;
                    continue;
                }
                let free = free_at[step.pool].pop_front().unwrap_or(0.0);
                drive = drive.max(free) + step.read_seconds;
                processor = processor.max(drive) + step.compute_seconds;
                free_at[step.pool].push_back(processor);
            }
        }
        processor - last_pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(count: usize, read_seconds: f64, compute_seconds: impl Fn(usize) -> f64) -> Vec<Step> {
        (0..count)
            .map(|index| Step { pool: PoolId(0), read_seconds, compute_seconds: compute_seconds(index) })
            .collect()
    }

    fn one_pool(slots: &[usize; 1]) -> &TiSlice<PoolId, usize> {
        TiSlice::from_ref(slots)
    }

    #[test]
    fn what_is_pinned_is_as_much_as_fits_and_evenly_spread() {
        for slots in 2..=60 {
            for ring in 2..12 {
                let pinned = pinned(std::iter::repeat_n(PoolId(0), 60), one_pool(&[slots]), ring);
                let kept = pinned.iter().filter(|pinned| **pinned).count();
                assert_eq!(kept, if slots == 60 { 60 } else { slots.saturating_sub(ring) });
                // Any stretch holds its share, to within one.
                for length in 1..=60 {
                    for window in pinned.windows(length) {
                        let share = kept * length / 60;
                        let here = window.iter().filter(|pinned| **pinned).count();
                        assert!(here.abs_diff(share) <= 1, "{slots} {ring} {length}: {here} of {share}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_pass_takes_as_long_as_the_slower_of_drive_and_processor() {
        // 30 of 60 slots: with a ring of 4, 34 are read.
        let drive_bound = steps(60, 1.0, |_| 0.1);
        let seconds = Pass { steps: &drive_bound, slots: one_pool(&[30]) }.seconds(4);
        assert!((34.0..34.2).contains(&seconds), "{seconds}");
        let compute_bound = steps(60, 0.1, |_| 1.0);
        let seconds = Pass { steps: &compute_bound, slots: one_pool(&[30]) }.seconds(4);
        assert!((60.0..60.2).contains(&seconds), "{seconds}");
    }

    #[test]
    fn the_ring_is_no_longer_than_it_needs_to_be() {
        // Even times: while one is computed on, the next is read.
        let even = steps(60, 1.0, |_| 0.9);
        assert!(Pass { steps: &even, slots: one_pool(&[30]) }.best_ring() <= 3);
        // Long computing now and then: the drive goes on through it only as far as the ring reaches.
        let uneven = steps(60, 1.0, |index| if index % 15 == 14 { 5.0 } else { 0.1 });
        let pass = Pass { steps: &uneven, slots: one_pool(&[30]) };
        let ring = pass.best_ring();
        assert!((4..9).contains(&ring), "{ring}");
        assert!(pass.seconds(ring) < 0.9 * pass.seconds(2));
    }

    #[test]
    fn too_few_slots_for_a_ring_still_pass() {
        for slots in 1..4 {
            let seconds = Pass { steps: &steps(9, 1.0, |_| 0.5), slots: one_pool(&[slots]) }.seconds(8);
            assert!(seconds.is_finite() && seconds > 8.9, "{slots}: {seconds}");
        }
    }
}
