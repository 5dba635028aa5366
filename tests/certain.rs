//! Experts that follow from the tokens are read before anybody asks for them, and the rest goes on as it would.

mod common;

use std::sync::Arc;

use common::{I32, Model, ModelWriter, Q4_K, Random, TestDirectory, number, stats, within};
use hypura::stream::{Fetch, Session};

const LAYERS: usize = 3;
const EXPERTS: usize = 12;

/// Three layers of experts, of which the first two look theirs up by the token.
fn model(seed: u64) -> Model {
    let mut writer = ModelWriter::new(seed);
    for layer in 0..LAYERS {
        for part in ["gate", "up", "down"] {
            writer.tensor(&format!("blk.{layer}.ffn_{part}_exps.weight"), Q4_K, &[256, 33, EXPERTS as u64]);
        }
        if layer < 2 {
            writer.tensor(&format!("blk.{layer}.ffn_gate_tid2eid.weight"), I32, &[2, 50]);
        }
    }
    writer.write(TestDirectory::new(), 1)
}

fn tensor(model: &Model, layer: usize, part: &str) -> usize {
    model.gguf.find(&format!("blk.{layer}.ffn_{part}_exps.weight")).unwrap()
}

/// Computes a pass of one token; every byte is compared with the file as it was written.
fn pass(model: &Model, fetch: &mut Fetch, routing: &[[i32; 2]; LAYERS]) {
    fetch.begin_pass();
    let mut blocks = Vec::new();
    for (layer, experts) in routing.iter().enumerate() {
        for part in ["gate", "up", "down"] {
            let tensor = tensor(model, layer, part);
            fetch.begin(tensor, experts, 1).unwrap();
            loop {
                fetch.next(&mut blocks).unwrap();
                if blocks.is_empty() {
                    break;
                }
                blocks.iter().for_each(|block| model.assert_right(tensor, block));
            }
        }
    }
    fetch.end();
}

fn announce(model: &Model, fetch: &mut Fetch, routing: &[[i32; 2]; LAYERS]) {
    (0..2).for_each(|layer| fetch.expect(tensor(model, layer, "gate"), &routing[layer]));
}

fn random_routing(random: &mut Random) -> [[i32; 2]; LAYERS] {
    [(); LAYERS].map(|()| {
        let first = random.below(EXPERTS) as i32;
        [first, (first + 1 + random.below(EXPERTS - 1) as i32) % EXPERTS as i32]
    })
}

fn session_and_fetch(model: &Model, settings: &[(&str, &str)]) -> (Arc<Session>, Fetch) {
    let session = model.session_with_ram(40 * 6 * 4096, settings).unwrap();
    let fetch = session.new_fetch();
    (session, fetch)
}

#[test]
fn what_was_announced_is_on_its_way_when_its_layer_comes() {
    within(300, || {
        let (model, mut random) = (model(1), Random::new(1));
        let (session, mut fetch) = session_and_fetch(&model, &[("HYPURA_VERIFY", "1")]);
        for _ in 0..30 {
            let routing = random_routing(&mut random);
            announce(&model, &mut fetch, &routing);
            pass(&model, &mut fetch, &routing);
        }
        let stats = stats(&session);
        assert_eq!(number(&stats, "certain_unknown"), 0, "{stats}");
        assert!(number(&stats, "certain_reads") >= number(&stats, "certain_used"), "{stats}");
        assert!(number(&stats, "certain_used") > 30, "{stats}");
        assert_eq!(number(&stats, "errors"), 0, "{stats}");
    });
}

#[test]
fn a_hash_layer_of_which_nobody_told_is_counted() {
    within(300, || {
        let (model, mut random) = (model(2), Random::new(2));
        let (session, mut fetch) = session_and_fetch(&model, &[]);
        (0..5).for_each(|_| pass(&model, &mut fetch, &random_routing(&mut random)));
        let stats = stats(&session);
        assert!(number(&stats, "certain_unknown") > 0, "{stats}");
        assert_eq!(number(&stats, "certain_reads"), 0, "{stats}");
    });
}

#[test]
fn what_was_announced_in_vain_is_let_go() {
    within(300, || {
        let (model, mut random) = (model(3), Random::new(3));
        let (session, mut fetch) = session_and_fetch(&model, &[("HYPURA_VERIFY", "1")]);
        for round in 0..40 {
            // The tokens of a pass that was given up, a layer that is none, experts that do not exist.
            announce(&model, &mut fetch, &random_routing(&mut random));
            fetch.expect(usize::MAX, &[0]);
            fetch.expect(tensor(&model, 2, "up"), &[-1, EXPERTS as i32, i32::MAX]);
            if round % 3 > 0 {
                let routing = random_routing(&mut random);
                pass(&model, &mut fetch, &routing);
            }
        }
        drop(fetch);
        // Nothing is left that could not be evicted: all slots serve others.
        let mut other = session.new_fetch();
        (0..20).for_each(|_| pass(&model, &mut other, &random_routing(&mut random)));
        assert_eq!(number(&stats(&session), "errors"), 0);
    });
}
