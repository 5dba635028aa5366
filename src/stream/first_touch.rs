//! Touches slots before reads do.
//!
//! The system zeroes memory when it is first written to, and the host of a virtual machine may have to find it first: 0.1 to 1.8 s for a
//! gigabyte. A read into such a slot does that before it is the drive's turn, on the one thread that keeps the drive busy, and so the
//! drive idles. A thread of its own touches all open slots once, and lets others go first. What is read into before it
//! gets there is touched by the read, and slots that are opened later by theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use typed_index_collections::TiVec;

use crate::error::{Error, ErrorCode, Result};
use crate::index::{PoolId, SlotNumber};
use crate::memory;

use super::core::Core;

/// How much is touched at once, or one slot that is larger: a huge page. The session ends, slots are closed and mappings are made in between.
const CHUNK_BYTES: usize = 2 << 20;

/// The thread, until dropped.
pub(super) struct FirstTouch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FirstTouch {
    pub(super) fn start(core: &Arc<Core>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (for_thread, is_stopped) = (Arc::clone(core), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("hypura-touch".to_owned())
            .spawn(move || {
                memory::yield_to_others();
                touch_all(&for_thread, &is_stopped);
            })
            .map_err(|error| {
                Error::new(ErrorCode::Resource, format!("cannot start the thread that touches slots: {error}"))
            })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for FirstTouch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread lost only time.
            let _ = thread.join();
        }
    }
}

/// Ends where the system refuses: it cannot be asked, it has no memory, or slots are closed by now that may not be touched then.
fn touch_all(core: &Core, is_stopped: &AtomicBool) {
    let mut reached: TiVec<PoolId, SlotNumber> = vec![SlotNumber(0); core.streamed.classes.len()].into();
    while !is_stopped.load(Ordering::Relaxed) {
        let state = core.state.lock();
        let pools = &state.slots.pools;
        // A pass fills all pools at once, so none is left behind.
        let share = |pool: PoolId| reached[pool].0 as f64 / pools[pool].slot_count() as f64;
        let next = |pool: PoolId| Some((pool, pools[pool].untouched_from(reached[pool], CHUNK_BYTES)?));
        let least = pools.keys().filter_map(next).min_by(|(one, _), (other, _)| share(*one).total_cmp(&share(*other)));
        let Some((pool, slots)) = least else { return };
        let (address, length) =
            (pools[pool].address(slots.start), (slots.end - slots.start) * pools[pool].slot_bytes());
        drop(state);
        // Not under the lock, which computing waits for.
        if !memory::touch(address, length) {
            return;
        }
        reached[pool] = slots.end;
        core.state.lock().slots.pools[pool].touched(slots);
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use crate::common::{TestDirectory, expert_model, within};
    use crate::memory::Tenant;

    #[test]
    fn all_slots_are_touched_without_a_demand() {
        within(60, || {
            let model = expert_model(TestDirectory::new(), 3, 2);
            let session = model.session_with_ram(1 << 30, &[]).unwrap();
            let core = &session.running().unwrap().core;
            while core.untouched_bytes() > 0 {
                std::thread::yield_now();
            }
            session.check();
            model.sweep(&session).unwrap();
        });
    }
}
