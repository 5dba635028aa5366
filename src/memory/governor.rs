//! The memory of all models of this process: shared when another one comes, watched as long as any is there.
//!
//! A model whose budget the user has fixed takes no part, but what it has reserved counts.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Change, Claim, Control, Reading, margin_bytes, share};
use crate::error::{Error, ErrorCode, Result};
use crate::hw::{self, MemoryReport};
use crate::plan::in_gigabytes;

/// How often memory is looked at: the room that is left must suffice for as long.
const INTERVAL: Duration = Duration::from_millis(100);

/// A change of this share of the memory is worth a line in the log.
const NOTABLE_SHARE: u64 = 8;

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
static MODELS: Mutex<Models> =
    Mutex::new(Models { running: Vec::new(), mapped_bytes: 0, control: None, thread: Weak::new() });

struct Models {
    running: Vec<Member>,
    /// Weights that hosts keep in mappings of their files.
    mapped_bytes: u64,
    control: Option<Control>,
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
    _watch: Option<Arc<Watch>>,
}

impl Models {
    fn cores(&mut self, flexible_only: bool) -> Vec<Arc<dyn Tenant>> {
        self.running.retain(|member| member.core.strong_count() > 0);
        let chosen = self.running.iter().filter(|member| member.is_flexible || !flexible_only);
        chosen.filter_map(|member| member.core.upgrade()).collect()
    }

    /// The memory, where what models have reserved and not touched yet is no longer available. Nor are weights that a host has
    /// mapped: the system would take them for its own, as page cache, but every token needs them.
    fn memory(&mut self) -> MemoryReport {
        let mut memory = hw::memory();
        let promised: u64 = self.cores(false).iter().map(|core| core.untouched_bytes()).sum();
        memory.available_bytes = memory.available_bytes.saturating_sub(promised + self.mapped_bytes);
        memory
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
    let mut memory = models.memory();
    let spare = |core: &Arc<dyn Tenant>| core.pool_bytes().saturating_sub(core.claim().least);
    let spare_bytes: u64 = models.cores(true).iter().map(spare).sum();
    memory.available_bytes = (memory.available_bytes + spare_bytes).min(memory.limit_bytes);
    memory
}

/// Somebody in this process is about to take so much memory: the models give up what is needed for it, as far as they can.
pub fn make_room(bytes: u64) {
    let mut models = MODELS.lock();
    let cores = models.cores(true);
    if cores.is_empty() {
        return;
    }
    models.hold();
    let memory = models.memory();
    let missing = bytes.saturating_add(margin_bytes(&memory)).saturating_sub(memory.available_bytes);
    if missing > 0 {
        models.divide(pool_bytes(&cores).saturating_sub(missing));
    }
}

/// The budget of a model that is about to run, given what it can do with memory; the others give up what it gets.
///
/// # Errors
/// `Budget` when it cannot get what it needs at least.
pub fn admit(newcomer: Claim) -> Result<u64> {
    let mut models = MODELS.lock();
    let cores = models.cores(true);
    let memory = models.memory();
    let total_bytes = (memory.available_bytes + pool_bytes(&cores)).saturating_sub(margin_bytes(&memory));
    let claims: Vec<Claim> = std::iter::once(newcomer).chain(cores.iter().map(|core| core.claim())).collect();
    let needed = claims.iter().map(|claim| claim.least).sum();
    if total_bytes < needed {
        return Err(Error::new(
            ErrorCode::Budget,
            format!(
                "{} is available ({}), which leaves too little to stream this model: it needs {} for weights; \
                 free memory or use a smaller context and load it again, or take the risk with HYPURA_RAM={}K",
                in_gigabytes(memory.available_bytes),
                memory.limited_by,
                in_gigabytes(newcomer.least),
                newcomer.least.div_ceil(1 << 10)
            ),
        ));
    }
    let shares = share(total_bytes, &claims);
    for (core, &bytes) in cores.iter().zip(&shares[1..]) {
        core.resize(bytes.min(core.pool_bytes()));
    }
    models.hold();
    Ok(shares[0])
}

/// Makes a model that runs known. Its memory is watched if it is flexible.
///
/// # Errors
/// `Resource` when the system refuses a thread.
pub fn join(core: &Arc<dyn Tenant>, is_flexible: bool) -> Result<Membership> {
    let mut models = MODELS.lock();
    models.running.push(Member { core: Arc::downgrade(core), is_flexible });
    if !is_flexible {
        return Ok(Membership { _watch: None });
    }
    let watch = match models.thread.upgrade() {
        Some(watch) => watch,
        None => Arc::new(Watch::start()?),
    };
    models.thread = Arc::downgrade(&watch);
    Ok(Membership { _watch: Some(watch) })
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
            let mut reported_bytes = None;
            let mut looked_at = Instant::now();
            while !*stopping {
                changed.wait_for(&mut stopping, INTERVAL);
                let elapsed = std::mem::replace(&mut looked_at, Instant::now()).elapsed();
                look(elapsed, &mut reported_bytes);
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

/// Looks at memory once, and changes what the models have.
fn look(elapsed: Duration, reported_bytes: &mut Option<u64>) {
    let mut models = MODELS.lock();
    let cores = models.cores(true);
    let memory = models.memory();
    let reading = Reading {
        free_bytes: memory.available_bytes,
        margin_bytes: margin_bytes(&memory),
        events: hw::memory_events(),
        pressure: hw::memory_pressure(),
    };
    let before = pool_bytes(&cores);
    match models.control.get_or_insert_with(Control::default).step(&reading, elapsed) {
        Change::Keep => return,
        Change::Shrink(bytes) => models.divide(before.saturating_sub(bytes)),
        Change::Grow(bytes) => models.divide(before + bytes),
    }
    drop(models);
    let now = pool_bytes(&cores);
    let reported = reported_bytes.get_or_insert(before);
    if now.abs_diff(*reported) > *reported / NOTABLE_SHARE {
        *reported = now;
        let what = if now < before { "memory runs short" } else { "there is more memory again" };
        tracing::warn!("{what}: {} for weights now, {} before", in_gigabytes(now), in_gigabytes(before));
    }
}
