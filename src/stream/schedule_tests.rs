//! Slots between fetches, reading threads and a budget that changes, in orders that a seed decides (`make test-schedules`): right
//! bytes, nobody waits for ever, and the books agree in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::schedule::{explore, thread};

use super::Session;
use crate::common::{Model, ModelMaker, Random, TestDirectory, dense_model, expert_model};
use crate::memory::Tenant;

/// Fetches, some of which are given up in the middle.
fn use_weights(model: &Model, session: &Arc<Session>, seed: u64) {
    let mut random = Random::new(seed);
    let streamed = model.streamed(session);
    let mut fetch = session.new_fetch();
    for _ in 0..4 {
        let tensor = streamed[random.below(streamed.len())];
        let (routing, tokens) = model.random_routing(&mut random, tensor);
        if random.below(4) > 0 {
            model.fetch_all(&mut fetch, tensor, &routing, tokens).unwrap();
            continue;
        }
        let mut blocks = Vec::new();
        fetch.begin(tensor, &routing, tokens).unwrap();
        fetch.next(&mut blocks).unwrap();
        blocks.iter().for_each(|block| model.assert_right(tensor, block));
        if random.below(2) == 0 {
            fetch.end();
        } else {
            fetch = session.new_fetch(); // the other one is dropped with what it holds
        }
    }
}

fn check_schedules(make: ModelMaker, runs: usize) {
    let run = AtomicU64::new(0);
    let model = Arc::new(make(TestDirectory::new(), 5, 1));
    let ram_bytes = model.minimum_bytes(&[]) + model.everything_bytes() / 10;
    explore(runs, 1, move || {
        let seed = run.fetch_add(1, Ordering::Relaxed) * 100;
        let settings = [("HYPURA_IO", "threads"), ("HYPURA_PREFETCH", "off"), ("HYPURA_DIRECT", "off")];
        let session = model.session_with_ram(ram_bytes, &settings).unwrap();
        let users: Vec<_> = (0..3)
            .map(|user| {
                let (model, session) = (Arc::clone(&model), Arc::clone(&session));
                thread::spawn(move || use_weights(&model, &session, seed + user))
            })
            .collect();
        let mut random = Random::new(seed + 99);
        let core = &session.running().unwrap().core;
        for _ in 0..6 {
            core.resize(random.next() % (ram_bytes + ram_bytes / 4));
            session.check();
        }
        users.into_iter().for_each(|thread| thread.join().unwrap());
        session.check();
    });
}

#[test]
fn experts_are_right_in_every_order_of_threads() {
    check_schedules(expert_model, 150);
}

#[test]
fn dense_weights_are_right_in_every_order_of_threads() {
    check_schedules(dense_model, 150);
}
