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

use super::crowding::{Crowded, Crowding};
use super::neighbours::{Neighbour, Neighbourhood};
use super::{Change, Claim, Control, Reading, margin_bytes, share};
use crate::error::{Error, ErrorCode, Result};
use crate::hw::{self, MemoryReport};
use crate::plan::in_gigabytes;

/// How often memory is looked at: the room that is left must suffice for as long.
const INTERVAL: Duration = Duration::from_millis(100);

/// A change of this share of the memory is worth a line in the log.
const NOTABLE_SHARE: u64 = 8;

/// How long a model that is about to run waits for others to give up its part.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it looks meanwhile.
const LOOKS: Duration = Duration::from_millis(20);

/// A part that is smaller than it should be by less than one in so many is as good as it should be.
const FAIR_SHARE: u64 = 32;

/// How long memory may be short before this process gives up what others should have.
const OTHERS_TIME: Duration = Duration::from_millis(500);

/// A model, as far as its memory goes.
pub trait Tenant: Send + Sync {
    /// What it can do with memory.
    fn claim(&self) -> Claim;

    /// Bytes of the slots that it may use.
    fn pool_bytes(&self) -> u64;

    /// Bytes of slots that were never used: the system counts them as available, but they are spoken for.
    fn untouched_bytes(&self) -> u64;

    /// Changes how many slots it may use. What is in use now goes with a later call.
    fn resize(&self, budget_bytes: u64);
}

/// The models that run, and what is remembered between looks.
static MODELS: Mutex<Models> = Mutex::new(Models {
    running: Vec::new(),
    mapped_bytes: 0,
    admitted: Claim { least: 0, most: 0 },
    admitted_bytes: 0,
    announced: Vec::new(),
    control: None,
    short_for: Duration::ZERO,
    neighbourhood: None,
    thread: Weak::new(),
});

struct Models {
    running: Vec<Member>,
    /// Weights that hosts keep in mappings of their files.
    mapped_bytes: u64,
    /// Models that are admitted and do not run yet: what they can do with memory, and what they were given.
    admitted: Claim,
    admitted_bytes: u64,
    announced: Vec<Announcement>,
    control: Option<Control>,
    /// For how long memory has been short.
    short_for: Duration,
    /// Where other processes are met, once somebody has looked for the place.
    neighbourhood: Option<Option<Neighbourhood>>,
    thread: Weak<Watch>,
}

struct Member {
    core: Weak<dyn Tenant>,
    /// Whether its memory may change.
    is_flexible: bool,
}

/// Weights that a host keeps in a mapping of their file; they count until this is dropped.
pub struct MappedWeights(u64);

impl MappedWeights {
    /// Counts them.
    pub fn new(bytes: u64) -> Self {
        MODELS.lock().mapped_bytes += bytes;
        Self(bytes)
    }
}

impl Drop for MappedWeights {
    fn drop(&mut self) {
        MODELS.lock().mapped_bytes -= self.0;
    }
}

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

/// A budget that was promised to a model, until the model is known itself and this is dropped.
pub struct Admission {
    claim: Claim,
    budget_bytes: u64,
}

impl Admission {
    /// The budget.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut models = MODELS.lock();
        models.admitted.least -= self.claim.least;
        models.admitted.most -= self.claim.most;
        models.admitted_bytes -= self.budget_bytes;
        models.publish();
    }
}

/// Memory that somebody in this process said he would take, and how much the process held then.
struct Announcement {
    bytes: u64,
    held_bytes: u64,
    made: Instant,
}

/// Compute buffers are announced at their largest and touched as they are needed: after so long, what is not touched is
/// not counted on.
const ANNOUNCED: Duration = Duration::from_secs(10);

/// For the same reason no more of the available memory than one part in so many is kept for it.
const ANNOUNCED_SHARE: u64 = 4;

impl Models {
    fn cores(&mut self, flexible_only: bool) -> Vec<Arc<dyn Tenant>> {
        self.running.retain(|member| member.core.strong_count() > 0);
        let chosen = self.running.iter().filter(|member| member.is_flexible || !flexible_only);
        chosen.filter_map(|member| member.core.upgrade()).collect()
    }

    /// The memory, where what models have reserved and not touched yet is no longer available. Nor are weights that a
    /// host has mapped: the system would take them for its own, as page cache, but every token needs them.
    ///
    /// Comes with the processes that it is to be shared with.
    fn memory(&mut self) -> (MemoryReport, Vec<Neighbour>) {
        let mut memory = hw::memory();
        let others = self.neighbourhood().map_or_else(Vec::new, |place| place.others(&memory.limited_by));
        let promised: u64 = self.cores(false).iter().map(|core| core.untouched_bytes()).sum();
        let promised_by_others: u64 = others.iter().map(|other| other.untouched_bytes).sum();
        let spoken_for = promised + promised_by_others + self.mapped_bytes + self.admitted_bytes;
        memory.available_bytes = memory.available_bytes.saturating_sub(spoken_for);
        memory.available_bytes -= self.announced_bytes().min(memory.available_bytes / ANNOUNCED_SHARE);
        (memory, others)
    }

    /// What was announced and has not been taken yet.
    fn announced_bytes(&mut self) -> u64 {
        self.announced.retain(|announced| announced.made.elapsed() < ANNOUNCED);
        if self.announced.is_empty() {
            return 0;
        }
        // Slots that were read into since are no part of it.
        let held_bytes = hw::held_bytes().saturating_sub(self.touched_bytes());
        let left =
            |announced: &Announcement| announced.bytes.saturating_sub(held_bytes.saturating_sub(announced.held_bytes));
        self.announced.iter().map(left).max().unwrap_or(0)
    }

    /// What of the slots has been read into.
    fn touched_bytes(&mut self) -> u64 {
        let touched = |core: &Arc<dyn Tenant>| core.pool_bytes().saturating_sub(core.untouched_bytes());
        self.cores(false).iter().map(touched).sum()
    }

    fn neighbourhood(&mut self) -> Option<&mut Neighbourhood> {
        self.neighbourhood.get_or_insert_with(Neighbourhood::of_user).as_mut()
    }

    /// What the flexible models of this process can do with memory, and those that are admitted.
    fn claim(&mut self) -> Claim {
        let claims = self.cores(true).into_iter().map(|core| core.claim());
        claims.fold(self.admitted, |sum, claim| Claim { least: sum.least + claim.least, most: sum.most + claim.most })
    }

    /// Lets other processes know what this one has.
    fn publish(&mut self) {
        let (claim, cores) = (self.claim(), self.cores(true));
        let untouched_bytes: u64 = cores.iter().map(|core| core.untouched_bytes()).sum();
        let own = Neighbour {
            limited_by: hw::memory().limited_by,
            claim,
            pool_bytes: pool_bytes(&cores) + self.admitted_bytes,
            untouched_bytes: untouched_bytes + self.admitted_bytes,
        };
        if let Some(place) = self.neighbourhood() {
            if claim.most == 0 { place.leave() } else { place.publish(&own) }
        }
    }

    /// Divides `total_bytes` among the flexible models.
    fn divide(&mut self, total_bytes: u64) {
        let cores = self.cores(true);
        let claims: Vec<Claim> = cores.iter().map(|core| core.claim()).collect();
        for (core, bytes) in cores.iter().zip(share(total_bytes, &claims)) {
            core.resize(bytes);
        }
    }

    fn hold(&mut self) {
        self.control.get_or_insert_with(Control::default).hold();
    }
}

fn pool_bytes(cores: &[Arc<dyn Tenant>]) -> u64 {
    cores.iter().map(|core| core.pool_bytes()).sum()
}

/// The memory that another model could have: what is available, and what the models that are there could do without.
pub fn memory_for_another() -> MemoryReport {
    let mut models = MODELS.lock();
    let (mut memory, _) = models.memory();
    let spare = |core: &Arc<dyn Tenant>| core.pool_bytes().saturating_sub(core.claim().least);
    let spare_bytes: u64 = models.cores(true).iter().map(spare).sum();
    memory.available_bytes = (memory.available_bytes + spare_bytes).min(memory.limit_bytes);
    memory
}

/// Somebody in this process is about to take so much memory at most: the models give up what is needed for it, as far
/// as they can, and for a while do not count on what of it is not taken yet.
pub fn make_room(bytes: u64) {
    let held_bytes = hw::held_bytes();
    MODELS.lock().announced.push(Announcement { bytes, held_bytes, made: Instant::now() });
    make_room_to_load(bytes);
}

/// The same for a model's weights, whose memory is filled at once.
pub fn make_room_to_load(bytes: u64) {
    let mut models = MODELS.lock();
    let cores = models.cores(true);
    if cores.is_empty() {
        return;
    }
    models.hold();
    let (memory, _) = models.memory();
    let missing = bytes.saturating_add(margin_bytes(&memory)).saturating_sub(memory.available_bytes);
    if missing > 0 {
        models.divide(pool_bytes(&cores).saturating_sub(missing));
        models.publish();
    }
}

/// Whether a model of which `resident_bytes` stay with the host can run at all.
///
/// # Errors
/// Why not.
pub fn check_load(resident_bytes: u64, newcomer: Claim) -> std::result::Result<(), Refusal> {
    let mut models = MODELS.lock();
    let (memory, others) = models.memory();
    let cores = models.cores(true);
    let spare = |held: u64, claim: Claim| held.saturating_sub(claim.least);
    let spare_bytes: u64 = cores.iter().map(|core| spare(core.pool_bytes(), core.claim())).sum::<u64>()
        + others.iter().map(|other| spare(other.pool_bytes, other.claim)).sum::<u64>();
    let needed_bytes = resident_bytes.saturating_add(newcomer.least);
    if needed_bytes <= memory.available_bytes + spare_bytes {
        return Ok(());
    }
    let held_bytes: u64 = others.iter().map(|other| other.pool_bytes).sum();
    let by_others = match held_bytes {
        0 => String::new(),
        _ => format!("; other processes that stream hold {} of them", in_gigabytes(held_bytes)),
    };
    Err(Refusal {
        is_by_others: held_bytes > 0,
        reason: format!(
            "{} of weights stay in memory and {} more are needed to stream the rest, but {} of {} ({}) can be had{by_others}",
            in_gigabytes(resident_bytes),
            in_gigabytes(newcomer.least),
            in_gigabytes(memory.available_bytes + spare_bytes),
            in_gigabytes(memory.limit_bytes),
            memory.limited_by,
        ),
    })
}

/// Why a model cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// It could, if other processes that stream were not there.
    pub is_by_others: bool,
    /// One sentence, without its end.
    pub reason: String,
}

/// The budget of a model that is about to run, given what it can do with memory; the others give up what it gets. Those
/// of other processes are waited for, a second at most.
///
/// # Errors
/// `Budget` when it cannot get what it needs at least. Another time it may.
pub fn admit(newcomer: Claim) -> Result<Admission> {
    let until = Instant::now() + PATIENCE;
    loop {
        let may_wait = Instant::now() < until;
        if let Some(outcome) = try_admit(newcomer, may_wait) {
            return outcome;
        }
        std::thread::sleep(LOOKS);
    }
}

/// `None` when it is worth waiting for other processes.
fn try_admit(newcomer: Claim, may_wait: bool) -> Option<Result<Admission>> {
    let mut models = MODELS.lock();
    let turn = models.neighbourhood().map(|place| place.admission());
    if matches!(turn, Some(None)) && may_wait {
        return None; // another process is at it
    }
    let cores = models.cores(true);
    let (memory, others) = models.memory();
    let margin = margin_bytes(&memory);
    let claims: Vec<Claim> = std::iter::once(newcomer).chain(cores.iter().map(|core| core.claim())).collect();
    let mut own = models.claim();
    own = Claim { least: own.least + newcomer.least, most: own.most + newcomer.most };
    let fair_bytes = fair_part(&memory, pool_bytes(&cores) + models.admitted_bytes, own, &others);
    let total_bytes = (memory.available_bytes + pool_bytes(&cores)).saturating_sub(margin);
    let is_early = !others.is_empty() && total_bytes < fair_bytes - fair_bytes / FAIR_SHARE;
    if is_early && may_wait {
        // The others see it at their next look, and give up what is not theirs any more.
        models.admitted =
            Claim { least: models.admitted.least + newcomer.least, most: models.admitted.most + newcomer.most };
        models.publish();
        models.admitted =
            Claim { least: models.admitted.least - newcomer.least, most: models.admitted.most - newcomer.most };
        return None;
    }
    let total_bytes = if others.is_empty() { total_bytes } else { total_bytes.min(fair_bytes) };
    let needed: u64 = claims.iter().map(|claim| claim.least).sum();
    if total_bytes < needed {
        models.publish();
        return Some(Err(too_little(&memory, newcomer)));
    }
    let shares = share(total_bytes, &claims);
    for (core, &bytes) in cores.iter().zip(&shares[1..]) {
        core.resize(bytes.min(core.pool_bytes()));
    }
    models.hold();
    models.admitted.least += newcomer.least;
    models.admitted.most += newcomer.most;
    models.admitted_bytes += shares[0];
    models.publish();
    Some(Ok(Admission { claim: newcomer, budget_bytes: shares[0] }))
}

fn too_little(memory: &MemoryReport, newcomer: Claim) -> Error {
    Error::new(
        ErrorCode::Budget,
        format!(
            "{} is available ({}), which leaves too little to stream this model: it needs {} for weights; \
             free memory, use a smaller context, or take the risk with HYPURA_RAM={}K",
            in_gigabytes(memory.available_bytes),
            memory.limited_by,
            in_gigabytes(newcomer.least),
            newcomer.least.div_ceil(1 << 10)
        ),
    )
}

/// The part of a process in what there is for weights: as much as any other, no less than it needs and no more than it
/// can use.
fn fair_part(memory: &MemoryReport, own_pool_bytes: u64, own: Claim, others: &[Neighbour]) -> u64 {
    let held_bytes = own_pool_bytes + others.iter().map(|other| other.pool_bytes).sum::<u64>();
    let total_bytes = (memory.available_bytes + held_bytes).saturating_sub(margin_bytes(memory));
    let claims: Vec<Claim> = std::iter::once(own).chain(others.iter().map(|other| other.claim)).collect();
    share(total_bytes, &claims)[0]
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
struct Watch {
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
    pools_bytes: Option<u64>,
    crowding: Crowding,
}

/// Looks at memory once, and changes what the models have.
fn look(elapsed: Duration, reported: &mut Reported) {
    let mut models = MODELS.lock();
    let cores = models.cores(true);
    let (memory, others) = models.memory();
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
    if target != before {
        models.divide(target);
    }
    models.publish();
    let rest_bytes = || hw::held_bytes().saturating_sub(models.touched_bytes());
    let crowded = reported.crowding.look(pool_bytes(&cores), rest_bytes);
    drop(models);
    report(before, pool_bytes(&cores), others.is_empty(), reported);
    if let Some(crowded) = crowded {
        tell_crowded(crowded);
    }
}

/// Tells of a notable change.
fn report(before: u64, now: u64, is_alone: bool, reported: &mut Reported) {
    let reported = reported.pools_bytes.get_or_insert(before);
    if now.abs_diff(*reported) <= *reported / NOTABLE_SHARE {
        return;
    }
    *reported = now;
    let what = match (now < before, is_alone) {
        (false, _) => "there is more memory again",
        (true, true) => "memory runs short",
        (true, false) => "memory is shared with other processes that stream",
    };
    tracing::warn!("{what}: {} for weights now, {} before", in_gigabytes(now), in_gigabytes(before));
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
    fn nobody_gives_up_what_no_other_can_use() {
        let small = Neighbour { claim: Claim { least: 5, most: 60 }, ..other(60) };
        assert_eq!(target_bytes(Change::Keep, 900, 840, &[small], false), 900);
    }
}
