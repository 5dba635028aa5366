//! The models of this process, as far as their memory goes, and what is known of them together.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::governor::Watch;
use super::neighbours::{Neighbour, Neighbourhood};
use super::{Claim, Control, margin_bytes, share};
use crate::hw::{self, MemoryReport};

/// A model, as far as its memory goes.
pub trait Tenant: Send + Sync {
    /// What it can do with memory.
    fn claim(&self) -> Claim;

    /// Bytes of the slots that it may use.
    fn pool_bytes(&self) -> u64;

    /// Bytes of slots that were never used: the system counts them as available, but they are spoken for.
    fn untouched_bytes(&self) -> u64;

    /// Changes how many slots it may use. What is in use now goes with a later call of this or the next.
    fn resize(&self, budget_bytes: u64);

    /// Closes what was in use when it should have been closed.
    fn finish_closing(&self);
}

/// The models that run, and what is remembered between looks.
pub(super) static MODELS: Mutex<Models> = Mutex::new(Models {
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

pub(super) struct Models {
    pub(super) running: Vec<Member>,
    /// Weights that hosts keep in mappings of their files.
    pub(super) mapped_bytes: u64,
    /// Models that are admitted and do not run yet: what they can do with memory, and what they were given.
    pub(super) admitted: Claim,
    pub(super) admitted_bytes: u64,
    pub(super) announced: Vec<Announcement>,
    pub(super) control: Option<Control>,
    /// For how long memory has been short.
    pub(super) short_for: Duration,
    /// Where other processes are met, once somebody has looked for the place.
    neighbourhood: Option<Option<Neighbourhood>>,
    pub(super) thread: Weak<Watch>,
}

pub(super) struct Member {
    pub(super) core: Weak<dyn Tenant>,
    /// Whether its memory may change.
    pub(super) is_flexible: bool,
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

/// Memory that somebody in this process said he would take, and how much the process held then.
pub(super) struct Announcement {
    pub(super) bytes: u64,
    pub(super) held_bytes: u64,
    pub(super) made: Instant,
}

/// Compute buffers are announced at their largest and touched as they are needed: after so long, what is not touched is
/// not counted on.
const ANNOUNCED: Duration = Duration::from_secs(10);

/// For the same reason no more of the available memory than one part in so many is kept for it.
const ANNOUNCED_SHARE: u64 = 4;

impl Models {
    pub(super) fn cores(&mut self, flexible_only: bool) -> Vec<Arc<dyn Tenant>> {
        self.running.retain(|member| member.core.strong_count() > 0);
        let chosen = self.running.iter().filter(|member| member.is_flexible || !flexible_only);
        chosen.filter_map(|member| member.core.upgrade()).collect()
    }

    /// The memory, where what models have reserved and not touched yet is no longer available. Nor are weights that a
    /// host has mapped: the system would take them for its own, as page cache, but every token needs them.
    ///
    /// Comes with the processes that it is to be shared with.
    pub(super) fn memory(&mut self) -> (MemoryReport, Vec<Neighbour>) {
        let mut memory = hw::memory();
        let others = self.neighbourhood().map_or_else(Vec::new, |place| place.others(&memory.limited_by));
        let promised: u64 = self.cores(false).iter().map(|core| core.untouched_bytes()).sum();
        let promised_by_others: u64 = others.iter().map(|other| other.untouched_bytes).sum();
        let spoken_for = promised + promised_by_others + self.mapped_bytes + self.admitted_bytes;
        memory.available_bytes = memory.available_bytes.saturating_sub(spoken_for);
        memory.available_bytes -= self.announced_bytes().min(memory.available_bytes / ANNOUNCED_SHARE);
        (memory, others)
    }

    /// The memory that may be taken: the same, less what the system would not promise.
    pub(super) fn memory_to_take(&mut self) -> (MemoryReport, Vec<Neighbour>) {
        let (memory, others) = self.memory();
        // What models have is promised to them already.
        let promised = hw::within_promises(memory, self.admitted_bytes);
        (promised.memory, if promised.is_own { Vec::new() } else { others })
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
    pub(super) fn touched_bytes(&mut self) -> u64 {
        let touched = |core: &Arc<dyn Tenant>| core.pool_bytes().saturating_sub(core.untouched_bytes());
        self.cores(false).iter().map(touched).sum()
    }

    pub(super) fn neighbourhood(&mut self) -> Option<&mut Neighbourhood> {
        self.neighbourhood.get_or_insert_with(Neighbourhood::of_user).as_mut()
    }

    /// What the flexible models of this process can do with memory, and those that are admitted.
    pub(super) fn claim(&mut self) -> Claim {
        let claims = self.cores(true).into_iter().map(|core| core.claim());
        claims.fold(self.admitted, |sum, claim| Claim { least: sum.least + claim.least, most: sum.most + claim.most })
    }

    /// Lets other processes know what this one has.
    pub(super) fn publish(&mut self) {
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
    pub(super) fn divide(&mut self, total_bytes: u64) {
        let cores = self.cores(true);
        let claims: Vec<Claim> = cores.iter().map(|core| core.claim()).collect();
        for (core, bytes) in cores.iter().zip(share(total_bytes, &claims)) {
            core.resize(bytes);
        }
    }

    pub(super) fn hold(&mut self) {
        self.control.get_or_insert_with(Control::default).hold();
    }
}

pub(super) fn pool_bytes(cores: &[Arc<dyn Tenant>]) -> u64 {
    cores.iter().map(|core| core.pool_bytes()).sum()
}

/// The part of a process in what there is for weights: as much as any other, no less than it needs and no more than it
/// can use.
pub(super) fn fair_part(memory: &MemoryReport, own_pool_bytes: u64, own: Claim, others: &[Neighbour]) -> u64 {
    let held_bytes = own_pool_bytes + others.iter().map(|other| other.pool_bytes).sum::<u64>();
    let total_bytes = (memory.available_bytes + held_bytes).saturating_sub(margin_bytes(memory));
    let claims: Vec<Claim> = std::iter::once(own).chain(others.iter().map(|other| other.claim)).collect();
    share(total_bytes, &claims)[0]
}
