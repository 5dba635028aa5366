//! The memory of all models of this process: shared when another one comes, watched as long as any is there.
//!
//! A model whose budget the user has fixed takes no part, but what it has reserved counts.
//!
//! Processes of one user whose memory is limited by the same share it evenly: each looks at what all of them have and
//! goes for its own part of that. Nobody tells another what to do, so one that hangs holds up nobody but itself.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::admission::FAIR_SHARE;
use super::crowding::{Crowded, Crowding};
use super::models::{MODELS, Member, Tenant, fair_part, pool_bytes};
use super::neighbours::Neighbour;
use super::{Change, Control, Reading, margin_bytes};
use crate::error::{Error, ErrorCode, Result};
use crate::hw;
use crate::plan::in_gigabytes;

/// How often memory is looked at: the room that is left must suffice for as long.
const INTERVAL: Duration = Duration::from_millis(100);

/// A change of this share of the memory is worth a line in the log.
const NOTABLE_SHARE: u64 = 8;

/// How long memory may be short before this process gives up what others should have.
const OTHERS_TIME: Duration = Duration::from_millis(500);

/// A model's part in the memory of the process; given up by dropping it.
pub struct Membership {
    watch: Option<Arc<Watch>>,
    core: Weak<dyn Tenant>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        // Not under the lock: the thread may be waiting for it.
        self.watch = None;
        let mut models = MODELS.lock();
        models.running.retain(|member| !member.core.ptr_eq(&self.core));
        models.publish();
    }
}

/// Makes a model that runs known. Its memory is watched if it is flexible.
///
/// # Errors
/// `Resource` when the system refuses a thread.
pub fn join(core: &Arc<dyn Tenant>, is_flexible: bool) -> Result<Membership> {
    let mut models = MODELS.lock();
    models.running.push(Member { core: Arc::downgrade(core), is_flexible });
    if !is_flexible {
        return Ok(Membership { watch: None, core: Arc::downgrade(core) });
    }
    let watch = match models.thread.upgrade() {
        Some(watch) => watch,
        None => Arc::new(Watch::start()?),
    };
    models.thread = Arc::downgrade(&watch);
    models.publish();
    Ok(Membership { watch: Some(watch), core: Arc::downgrade(core) })
}

/// The thread that looks at memory, stopped on drop.
pub(super) struct Watch {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start() -> Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&stop);
        let watch = move || {
            let (stopping, changed) = &*shared;
            let mut stopping = stopping.lock();
            let mut reported = Reported::default();
            let mut looked_at = Instant::now();
            while !*stopping {
                changed.wait_for(&mut stopping, INTERVAL);
                let elapsed = std::mem::replace(&mut looked_at, Instant::now()).elapsed();
                look(elapsed, &mut reported);
            }
        };
        let thread = std::thread::Builder::new().name("hypura-memory".to_owned()).spawn(watch).map_err(|error| {
            Error::new(ErrorCode::Resource, format!("cannot start the thread that watches memory: {error}"))
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only its watching.
            let _ = thread.join();
        }
    }
}

/// What the log has been told.
#[derive(Default)]
struct Reported {
    pools_bytes: u64,
    model_count: usize,
    crowding: Crowding,
}

/// Looks at memory once, and changes what the models have.
fn look(elapsed: Duration, reported: &mut Reported) {
    let mut models = MODELS.lock();
    let cores = models.cores(true);
    let (memory, others) = models.memory_to_take();
    let reading = Reading {
        free_bytes: memory.available_bytes,
        margin_bytes: margin_bytes(&memory),
        events: hw::memory_events(),
        pressure: hw::memory_pressure(),
    };
    let before = pool_bytes(&cores);
    let change = models.control.get_or_insert_with(Control::default).step(&reading, elapsed);
    let is_short = matches!(change, Change::Shrink(_));
    models.short_for = if is_short { models.short_for + elapsed } else { Duration::ZERO };
    let own = models.claim();
    let fair_bytes = fair_part(&memory, before + models.admitted_bytes, own, &others);
    let is_late = models.short_for >= OTHERS_TIME;
    let target = target_bytes(change, before, fair_bytes, &others, is_late);
    match target == before {
        true => cores.iter().for_each(|core| core.finish_closing()),
        false => models.divide(target),
    }
    models.publish();
    let rest_bytes = || hw::held_bytes().saturating_sub(models.touched_bytes());
    let crowded = reported.crowding.look(pool_bytes(&cores), rest_bytes);
    drop(models);
    if let Some(told) = reported.notable_change(before, pool_bytes(&cores), cores.len(), others.is_empty()) {
        tracing::warn!("{told}");
    }
    if let Some(crowded) = crowded {
        tell_crowded(crowded);
    }
}

impl Reported {
    /// What to tell of what the models have now; models that come and go are no change.
    fn notable_change(&mut self, before: u64, now: u64, model_count: usize, is_alone: bool) -> Option<String> {
        if self.model_count != model_count {
            (self.model_count, self.pools_bytes) = (model_count, before);
        }
        let told = self.pools_bytes;
        if now.abs_diff(told) <= told / NOTABLE_SHARE {
            return None;
        }
        self.pools_bytes = now;
        let what = match (now < told, is_alone) {
            (false, _) => "there is more memory again",
            (true, true) => "memory runs short",
            (true, false) => "memory is shared with other processes that stream",
        };
        Some(format!("{what}: {} for weights now, {} before", in_gigabytes(now), in_gigabytes(told)))
    }
}

/// Says what to do when the host takes the memory that weights had. Nothing here could keep it from doing so.
fn tell_crowded(crowded: Crowded) {
    tracing::warn!(
        "this program has taken {} since weights had {}, which leaves them {}, and may go on until the system ends it; \
         llama-server keeps up to 8 GiB of prompts unless --cache-ram MIB says less",
        in_gigabytes(crowded.taken_bytes),
        in_gigabytes(crowded.weights_most_bytes),
        in_gigabytes(crowded.weights_bytes),
    );
}

/// What the models of this process should have, given what they have and their fair part. What is short is given up by
/// those that have more than their part, so that it is given up once; if `is_late`, they did not.
fn target_bytes(change: Change, before: u64, fair_bytes: u64, others: &[Neighbour], is_late: bool) -> u64 {
    if others.is_empty() || is_late {
        return match change {
            Change::Keep => before,
            Change::Shrink(bytes) => before.saturating_sub(bytes),
            Change::Grow(bytes) => before + bytes,
        };
    }
    let tolerated_bytes = fair_bytes + fair_bytes / FAIR_SHARE;
    // Those that have too little could use more, and nobody but us may have too much.
    let is_poor = |other: &Neighbour| other.pool_bytes < other.claim.most && other.pool_bytes < fair_bytes;
    match change {
        Change::Shrink(_) => before.min(fair_bytes),
        _ if before > tolerated_bytes && others.iter().any(is_poor) => fair_bytes,
        Change::Grow(bytes) if before < fair_bytes => (before + bytes).min(fair_bytes),
        _ => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Claim, share};

    fn other(pool_bytes: u64) -> Neighbour {
        let claim = Claim { least: 10, most: 1000 };
        Neighbour { limited_by: String::new(), claim, pool_bytes, untouched_bytes: 0 }
    }

    /// Processes that look one after the other, until nothing changes. Returns what they have, and after how many
    /// rounds.
    fn settle(mut pools: Vec<u64>, all_bytes: u64, margin: u64) -> (Vec<u64>, usize) {
        for round in 0..100 {
            let before = pools.clone();
            for index in 0..pools.len() {
                let free = all_bytes - pools.iter().sum::<u64>().min(all_bytes);
                let others: Vec<Neighbour> = (0..pools.len())
                    .filter(|&neighbour| neighbour != index)
                    .map(|neighbour| other(pools[neighbour]))
                    .collect();
                let total = all_bytes - margin;
                let claims = vec![Claim { least: 10, most: 1000 }; pools.len()];
                let fair = share(total, &claims)[0];
                let change = match free {
                    free if free < margin / 4 * 3 => Change::Shrink(margin - free),
                    free if free > margin + margin / 4 => Change::Grow((free - margin) / 2),
                    _ => Change::Keep,
                };
                pools[index] = target_bytes(change, pools[index], fair, &others, false);
            }
            if pools == before {
                return (pools, round);
            }
        }
        panic!("no end: {pools:?}");
    }

    #[test]
    fn a_newcomer_gets_what_the_first_one_has_too_much() {
        let (pools, rounds) = settle(vec![900, 10], 1000, 100);
        assert!(pools.iter().all(|pool| pool.abs_diff(450) <= 45), "{pools:?}");
        assert!(rounds < 20);
        assert_eq!(target_bytes(Change::Keep, 900, 450, &[other(10)], false), 450, "at the first look");
    }

    #[test]
    fn a_shortage_is_given_up_once() {
        // Each of three that have the same would give up all of it, were it alone.
        let (pools, _) = settle(vec![320, 320, 320], 1000, 100);
        let sum: u64 = pools.iter().sum();
        assert!((890..=925).contains(&sum), "{pools:?}");
        assert!(pools.iter().all(|pool| pool.abs_diff(300) <= 20), "{pools:?}");
    }

    #[test]
    fn one_that_has_too_much_and_does_not_move_is_not_waited_for_for_ever() {
        let stuck = [other(900)];
        assert_eq!(target_bytes(Change::Shrink(50), 100, 450, &stuck, false), 100);
        assert_eq!(target_bytes(Change::Shrink(50), 100, 450, &stuck, true), 50);
    }

    #[test]
    fn what_is_told_is_a_change_of_the_same_models() {
        const MIB: u64 = 1 << 20;
        let mut reported = Reported::default();
        let mut told = |before: u64, now: u64, count| reported.notable_change(before * MIB, now * MIB, count, true);
        assert_eq!(told(800, 800, 1), None);
        assert_eq!(told(800, 720, 1), None);
        let short = "memory runs short: 640.0 MiB for weights now, 800.0 MiB before";
        assert_eq!(told(720, 640, 1).as_deref(), Some(short));
        assert_eq!(told(900, 900, 2), None, "another one came");
        assert_eq!(told(260, 260, 1), None, "the first one went");
        let more = "there is more memory again: 300.0 MiB for weights now, 260.0 MiB before";
        assert_eq!(told(260, 300, 1).as_deref(), Some(more));
    }

    #[test]
    fn nobody_gives_up_what_no_other_can_use() {
        let small = Neighbour { claim: Claim { least: 5, most: 60 }, ..other(60) };
        assert_eq!(target_bytes(Change::Keep, 900, 840, &[small], false), 900);
    }
}
