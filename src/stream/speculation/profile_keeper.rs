//! Keeps a model's usage profile from run to run: what earlier runs have learned warms the cache at the start, and what this one
//! learns is stored, now and then and at the end. On a thread of its own.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::error::{Error, ErrorCode, Result};
use crate::index::BlockId;
use crate::io::{DirectFile, Engine, Priority};
use crate::predict::{ProfileFile, UsageProfile};

use crate::stream::core::{Core, State};

/// How often the usage profile is stored.
const INTERVAL: Duration = Duration::from_secs(60);

/// Blocks that are read at once to warm the cache. As many slots of each size are left empty, so that a demand never waits for
/// one of these.
const IN_FLIGHT: usize = 4;

/// The thread, until dropped.
pub(in crate::stream) struct ProfileKeeper {
    core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

impl ProfileKeeper {
    /// Tells the policies what is stored, and starts the thread; it reads what was hot while there is room, if `warms` is set.
    pub(in crate::stream) fn start(
        mut file: ProfileFile,
        warms: bool,
        core: &Arc<Core>,
        files: Arc<[DirectFile]>,
        engine: Arc<dyn Engine>,
    ) -> Result<Self> {
        let usage_profile = &mut *core.usage_profile.lock();
        file.load(usage_profile);
        let mut blocks = remember(core, usage_profile);
        if !warms {
            blocks.clear();
        }
        let for_thread = Arc::clone(core);
        let thread = std::thread::Builder::new()
            .name("hypura-habits".to_owned())
            .spawn(move || {
                warm(&for_thread, &files, &*engine, blocks);
                drop((files, engine));
                while sleep_until_store_is_due(&for_thread) {
                    store_news(&for_thread, &mut file);
                }
                store_news(&for_thread, &mut file);
            })
            .map_err(|error| {
                Error::new(ErrorCode::Resource, format!("cannot start the thread for the usage profile: {error}"))
            })?;
        Ok(Self { core: Arc::clone(core), thread: Some(thread) })
    }
}

impl Drop for ProfileKeeper {
    fn drop(&mut self) {
        self.core.state.lock().stopping = true;
        self.core.keeper.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only the usage profile.
            let _ = thread.join();
        }
    }
}

/// Tells the policies how often each expert was used. Returns the blocks of those that were, the hottest expert last.
fn remember(core: &Core, usage_profile: &UsageProfile) -> Vec<BlockId> {
    let mut state = core.state.lock();
    let mut experts = Vec::new();
    for layer in usage_profile.layers() {
        for expert in usage_profile.experts() {
            let uses_per_token =
                usage_profile.uses_per_token(layer, expert).filter(|&uses_per_token| uses_per_token > 0.0);
            experts.extend(uses_per_token.map(|uses_per_token| (uses_per_token, layer, expert)));
        }
    }
    experts.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
    let mut blocks = Vec::new();
    for (uses_per_token, layer, expert) in experts {
        for &index in core.streamed.expert_layers[layer].iter().rev() {
            let tensor = &core.streamed.tensors[index];
            if tensor.has(expert) {
                state.slots.pools[tensor.pool].remember(tensor.first_unit + expert, uses_per_token);
                blocks.push(tensor.first_block + expert);
            }
        }
    }
    blocks
}

/// Reads blocks, the last one first, into slots that are empty, while the drive has nothing else to do.
fn warm(core: &Core, files: &[DirectFile], engine: &dyn Engine, mut blocks: Vec<BlockId>) {
    let mut requests = Vec::new();
    let mut state = core.state.lock();
    while let Some(block) = blocks.pop() {
        while state.warming.len() >= IN_FLIGHT && !state.is_over() {
            core.keeper.wait(&mut state);
        }
        if state.is_over() || !has_room_to_warm(core, &state) {
            return;
        }
        let pool = core.streamed.tensor_of(block).0.pool;
        if !state.slots.is_missing(block) || state.slots.pools[pool].empty_count() <= IN_FLIGHT {
            continue;
        }
        let Some(id) = state.slots.read(core, files, block, Priority::Speculative, &mut requests) else {
            continue;
        };
        // Not a prefetch for the next layer, which would be dropped when it turns out wrong, but a block like any other.
        state.slots.pools[pool].expire(id.slot);
        state.warming.push(id);
        core.counters.warm_reads.add(1);
        MutexGuard::unlocked(&mut state, || engine.submit(&mut requests));
    }
}

fn has_room_to_warm(core: &Core, state: &State) -> bool {
    let classes = state.slots.pools.iter().zip(&core.streamed.classes);
    classes.filter(|(_, class)| !class.every_pass).any(|(pool, _)| pool.empty_count() > IN_FLIGHT)
}

/// Says whether the session goes on.
fn sleep_until_store_is_due(core: &Core) -> bool {
    let due = Instant::now() + INTERVAL;
    let mut state = core.state.lock();
    while !state.stopping {
        if core.keeper.wait_until(&mut state, due).timed_out() {
            break;
        }
    }
    !state.stopping
}

/// Stores what was learned since the last time, if anything was.
fn store_news(core: &Core, file: &mut ProfileFile) {
    let mut usage_profile = core.usage_profile.lock();
    if !usage_profile.take_news() {
        return;
    }
    let (layers, expert_count) = (usage_profile.layers(), usage_profile.expert_count());
    drop(usage_profile);
    // Layer by layer, so that no fetch waits for long.
    let layers = layers.map(|layer| core.usage_profile.lock().layer(layer)).collect();
    file.save(UsageProfile::of_layers(expert_count, layers));
}
