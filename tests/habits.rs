//! What a run learns of a model makes the next one start warmer, and never makes it wrong.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Model, ModelWriter, Q4_K, Random, TestDirectory, number, stats, within};
use hypura::config::Config;
use hypura::index::{ExpertId, ExpertLayer};
use hypura::persist::Store;
use hypura::plan::Place;
use hypura::predict::{ProfileFile, UsageProfile};
use hypura::stream::Session;

const LAYERS: usize = 4;
const EXPERTS: usize = 32;
const USED: usize = 4;
/// Slots of a page each; there are three matrices.
const SLOTS: u64 = 160;

/// Slots that warming up leaves empty.
const LEFT_EMPTY: u64 = 4;

fn expert_layers() -> Model {
    let mut writer = ModelWriter::new(97);
    for layer in 0..LAYERS {
        for part in ["gate", "up", "down"] {
            writer.tensor(&format!("blk.{layer}.ffn_{part}_exps.weight"), Q4_K, &[256, 8, EXPERTS as u64]);
        }
    }
    writer.write(TestDirectory::new(), 1)
}

fn session(model: &Model, directory: &Path, slots: u64, settings: &[(&str, &str)]) -> Arc<Session> {
    let ram_bytes = (slots * 4096).to_string();
    // Buffered reads need no widening, so that a block takes one page.
    let fixed = [("HYPURA_RAM", &*ram_bytes), ("HYPURA_DIRECT", "off")];
    let config = model.config(&[&fixed, settings].concat()).unwrap();
    let config = Config { store: Store::at(directory), ..config };
    Session::plan(&model.gguf, &config, |_| Place::Ram).unwrap().expect("it is told to stream")
}

/// The choices of tokens for each layer: some experts are popular, others in every layer.
fn routing(seed: u64, token_count: usize) -> Vec<Vec<Vec<i32>>> {
    let mut random = Random::new(seed);
    let mut choose = |layer: usize| {
        let mut experts = Vec::new();
        while experts.len() < USED {
            let rank = (0..4).map(|_| random.below(EXPERTS)).min().unwrap_or(0);
            let expert = ((rank * 5 + layer * 11) % EXPERTS) as i32;
            if !experts.contains(&expert) {
                experts.push(expert);
            }
        }
        experts
    };
    (0..token_count).map(|_| (0..LAYERS).map(&mut choose).collect()).collect()
}

/// Runs tokens one by one; every byte is compared.
fn run(model: &Model, session: &Arc<Session>, tokens: &[Vec<Vec<i32>>]) {
    let mut fetch = session.new_fetch();
    let streamed = model.streamed(session);
    for token in tokens {
        for (tensors, experts) in streamed.chunks(3).zip(token) {
            for &tensor in tensors {
                model.fetch_all(&mut fetch, tensor, experts, 1).unwrap();
            }
        }
    }
}

/// A model without a router that could be applied early: its habits alone tell what comes next.
#[test]
fn without_a_router_habits_are_gone_by() {
    within(300, || {
        let mut writer = ModelWriter::new(103);
        for layer in 0..LAYERS {
            // One matrix a layer: nothing but a guess reads ahead of need.
            writer.tensor(&format!("blk.{layer}.ffn_up_exps.weight"), Q4_K, &[256, 8, EXPERTS as u64]);
        }
        let model = writer.write(TestDirectory::new(), 1);
        let session = session(&model, TestDirectory::new().path(), 30, &[("HYPURA_PREFETCH", "on")]);
        let streamed = model.streamed(&session);
        let mut fetch = session.new_fetch();
        let mut blocks = Vec::new();
        let mut token = 0;
        while number(&stats(&session), "prefetch_used") < 100 || token < 200 {
            // Each layer answers the one before, and each token the last one: eight tokens in a cycle.
            for (layer, &tensor) in streamed.iter().enumerate() {
                let routing = [0, 1, 2].map(|choice| ((token % 8 * 4 + layer * 9 + choice) % EXPERTS) as i32);
                fetch.begin(tensor, &routing, 1).unwrap();
                fetch.look_ahead(1, &[0.0]);
                // Foreseeing is given the time that computing would take.
                std::thread::sleep(Duration::from_micros(300));
                loop {
                    fetch.next(&mut blocks).unwrap();
                    if blocks.is_empty() {
                        break;
                    }
                    blocks.iter().for_each(|block| model.assert_right(tensor, block));
                }
            }
            token += 1;
        }
        let recall = stats(&session)["habit_recall"].as_f64().unwrap();
        assert!(recall > 0.7, "{recall} after {token} tokens");
        assert!(stats(&session)["lookahead_recall"].is_null(), "there is no router");
        assert_eq!(number(&stats(&session), "errors"), 0);
    });
}

fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn habit_files(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "bin")).collect()
}

#[test]
fn a_second_run_of_the_same_tokens_misses_less() {
    within(300, || {
        let model = expert_layers();
        let directory = TestDirectory::new();
        let tokens = routing(1, 32);
        let misses: Vec<u64> = (0..2)
            .map(|round| {
                let session = session(&model, directory.path(), SLOTS, &[]);
                // The first demand starts everything. A prompt would take longer than this to warm up.
                model.fetch_all(&mut session.new_fetch(), model.streamed(&session)[0], &[0], 1).unwrap();
                if round == 1 {
                    let everything = (LAYERS * EXPERTS * 3) as u64;
                    assert!(SLOTS < everything);
                    let block_bytes = model.block(0, ExpertId(0)).len() as u64;
                    wait_until(|| number(&stats(&session), "resident_bytes") >= (SLOTS - LEFT_EMPTY) * block_bytes);
                    assert!(number(&stats(&session), "warm_reads") > SLOTS / 2);
                }
                let before = number(&stats(&session), "expert_misses");
                run(&model, &session, &tokens);
                assert_eq!(number(&stats(&session), "errors"), 0);
                assert_eq!(number(&stats(&session), "prefetch_wasted"), 0, "a warm block is no guess");
                number(&stats(&session), "expert_misses") - before
            })
            .collect();
        assert_eq!(habit_files(directory.path()).len(), 1);
        assert!(misses[1] * 4 < misses[0] * 3, "{misses:?}");
    });
}

#[test]
fn what_is_stored_is_what_was_used() {
    within(300, || {
        let model = expert_layers();
        let directory = TestDirectory::new();
        let tokens = routing(2, 50);
        let first = session(&model, directory.path(), SLOTS, &[("HYPURA_PREFETCH", "off")]);
        run(&model, &first, &tokens);
        drop(first);
        let mut usage_profile = UsageProfile::new(&[0, 1, 2, 3], EXPERTS);
        ProfileFile::new(directory.path(), model.gguf.fingerprint()).load(&mut usage_profile);
        for layer in 0..LAYERS {
            for expert in 0..EXPERTS {
                let uses = tokens.iter().filter(|token| token[layer].contains(&(expert as i32))).count();
                assert_eq!(
                    usage_profile.uses_per_token(ExpertLayer(layer), ExpertId(expert)),
                    Some(uses as f32 / 50.0)
                );
            }
        }
        let second = session(&model, directory.path(), SLOTS, &[("HYPURA_PREFETCH", "off")]);
        run(&model, &second, &tokens);
        assert_eq!(number(&stats(&second), "warm_reads"), 0, "nothing is read ahead");
    });
}

/// With the fewest slots, and many threads, and an end in the middle of it.
#[test]
fn warming_up_holds_nobody_up() {
    within(300, || {
        let model = expert_layers();
        let directory = TestDirectory::new();
        run(&model, &session(&model, directory.path(), SLOTS, &[]), &routing(3, 40));
        let minimum = session(&model, directory.path(), SLOTS, &[]).minimum_bytes() / 4096;
        for round in 0..40 {
            let slots = [minimum, minimum + 5, SLOTS, 3 * EXPERTS as u64 * LAYERS as u64][round % 4];
            let session = session(&model, directory.path(), slots, &[]);
            let tokens = routing(round as u64, round / 8);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| run(&model, &session, &tokens));
                }
            });
            assert_eq!(number(&stats(&session), "errors"), 0);
        }
    });
}

#[test]
fn another_model_and_rubbish_change_nothing() {
    within(300, || {
        let directory = TestDirectory::new();
        let model = expert_layers();
        let other = common::expert_model(TestDirectory::new(), 101, 1);
        run(&model, &session(&model, directory.path(), SLOTS, &[]), &routing(4, 20));
        let config = other.config(&[("HYPURA_RAM", "64M")]).unwrap();
        let config = Config { store: Store::at(directory.path()), ..config };
        let of_other = Session::plan(&other.gguf, &config, |_| Place::Ram).unwrap().unwrap();
        other.sweep(&of_other).unwrap();
        drop(of_other);
        let files = habit_files(directory.path());
        assert_eq!(files.len(), 2, "{files:?}");
        for path in files {
            std::fs::write(path, "rubbish").unwrap();
        }
        let again = session(&model, directory.path(), SLOTS, &[]);
        run(&model, &again, &routing(4, 20));
        assert_eq!((number(&stats(&again), "warm_reads"), number(&stats(&again), "errors")), (0, 0));
    });
}
