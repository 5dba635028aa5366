//! Memory that changes while weights are used: every byte that is handed out is compared with the file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Session;
use crate::common::{Model, Random, TestDirectory, dense_model, expert_model, within};
use crate::memory::Tenant;
use crate::plan::minimum_bytes;

/// Fetches at random and in sweeps, until told to stop.
fn use_weights(model: &Model, session: &Arc<Session>, seed: u64, stop: &AtomicBool) {
    let mut random = Random::new(seed);
    let mut fetch = session.new_fetch();
    let streamed = model.streamed(session);
    while !stop.load(Ordering::Relaxed) {
        for &tensor in &streamed {
            let tensor = if random.below(4) == 0 { streamed[random.below(streamed.len())] } else { tensor };
            let (routing, tokens) = model.random_routing(&mut random, tensor);
            model.fetch_all(&mut fetch, tensor, &routing, tokens).unwrap();
        }
    }
}

fn resize_under_load(model: &Model, seed: u64) {
    let session = model.session_with_ram(1 << 30, &[("HYPURA_PREFETCH", "on")]).unwrap();
    model.sweep(&session).unwrap();
    let core = &session.running().unwrap().core;
    let all = core.pool_bytes();
    let least = minimum_bytes(&core.streamed.classes);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (session, stop) = (&session, &stop);
            scope.spawn(move || use_weights(model, session, seed + thread, stop));
        }
        let mut random = Random::new(seed);
        for _ in 0..400 {
            let budget = random.next() % (all + all / 4);
            core.resize(budget);
            assert!(core.pool_bytes() <= budget.max(least), "{} of {budget}", core.pool_bytes());
            session.check();
            std::thread::sleep(std::time::Duration::from_micros(random.next() % 2000));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Once the last reads ahead are done nothing is in use any more, so everything closes, and all of it opens again.
    while core.state.lock().slots.reads_in_flight > 0 {
        std::thread::yield_now();
    }
    core.resize(0);
    let resident = core.state.lock().slots.location.iter().flatten().count();
    let slots: usize = core.state.lock().slots.pools.iter().map(crate::cache::Pool::slot_count).sum();
    assert!(resident <= slots, "{resident} blocks in {slots} slots");
    core.resize(u64::MAX);
    assert_eq!(core.pool_bytes(), all);
    model.sweep(&session).unwrap();
    let missing = core.state.lock().slots.location.iter().filter(|location| location.is_none()).count();
    assert_eq!(missing, 0, "with all memory back, all blocks stay");
}

#[test]
fn what_was_in_use_closes_once_it_is_given_back() {
    let model = dense_model(TestDirectory::new(), 6, 1);
    let session = model.session_with_ram(1 << 30, &[]).unwrap();
    model.sweep(&session).unwrap();
    let core = &session.running().unwrap().core;
    let resident = || core.state.lock().slots.location.iter().flatten().count();
    let (mut fetch, all) = (session.new_fetch(), resident());
    let tensor = *model.streamed(&session).last().unwrap();
    fetch.begin(tensor, &[], 1).unwrap();
    core.resize(0);
    let open: usize = core.state.lock().slots.pools.iter().map(crate::cache::Pool::slot_count).sum();
    core.finish_closing();
    assert_eq!(resident(), open + 1, "of {all}");
    session.check();
    fetch.end();
    core.finish_closing();
    assert_eq!(resident(), open);
    session.check();
}

#[test]
fn experts_stay_right_while_their_memory_changes() {
    within(300, || resize_under_load(&expert_model(TestDirectory::new(), 5, 2), 50));
}

/// The tests of this file again, where closed slots are inaccessible: a read, a copy or a comparison that touched one would end them.
#[test]
fn weights_stay_right_where_what_may_be_written_to_counts() {
    const LIMITED: &str = "ulimit -d 100000000 && exec \"$0\" while_their_memory_changes";
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh").arg("-c").arg(LIMITED).arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("2 passed"), "{output:?}");
}

#[test]
fn dense_weights_stay_right_while_their_memory_changes() {
    within(300, || resize_under_load(&dense_model(TestDirectory::new(), 6, 1), 60));
}
