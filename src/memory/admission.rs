//! Memory for whoever comes next: a model that is about to run, or the host, which is about to take some.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::models::{Announcement, MODELS, Tenant, fair_part, pool_bytes};
use super::{Claim, margin_bytes, share};
use crate::error::{Error, ErrorCode, Result};
use crate::hw::{self, MemoryReport};
use crate::plan::in_gigabytes;

/// How long a model that is about to run waits for others to give up its part.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it looks meanwhile.
const LOOKS: Duration = Duration::from_millis(20);

/// A part that is smaller than it should be by less than one in so many is as good as it should be.
pub(super) const FAIR_SHARE: u64 = 32;

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
    let (memory, _) = models.memory_to_take();
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
    let (memory, others) = models.memory_to_take();
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
    let mut shares = share(total_bytes, &claims);
    models.hold();
    for (core, &bytes) in cores.iter().zip(&shares[1..]) {
        core.resize(bytes.min(core.pool_bytes()));
    }
    let (memory, _) = models.memory_to_take();
    if memory.available_bytes < shares[0] && hw::charges_reservations() {
        // A slot that was in use, or being read into, stays promised until the next time that it is to close.
        if may_wait {
            return None;
        }
        shares[0] = memory.available_bytes.saturating_sub(margin);
        if shares[0] < newcomer.least {
            models.publish();
            return Some(Err(too_little(&memory, newcomer)));
        }
    }
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
