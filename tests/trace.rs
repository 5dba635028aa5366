//! `HYPURA_TRACE`: a line for each expert that was chosen.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{MODELS, ModelWriter, Q4_K, Random, TestDirectory, number, stats, within};
use hypura::index::ExpertId;

/// One line of a trace.
#[derive(Debug, PartialEq)]
struct TraceLine {
    phase: u64,
    step: u64,
    layer: u64,
    slot: u64,
    expert: u64,
    residency: u64,
    expert_bytes: u64,
}

fn read_trace(path: &Path) -> Vec<TraceLine> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("# model: model.gguf"));
    assert_eq!(lines.next(), Some("turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"));
    lines
        .map(|line| {
            let columns: Vec<u64> = line.split(',').map(|column| column.parse().expect(line)).collect();
            let [turn, phase, step, layer, slot, expert, weight, residency, expert_bytes] = columns[..] else {
                panic!("not nine columns: {line}");
            };
            assert_eq!((turn, weight), (0, 0), "{line}");
            assert!(phase <= 1 && residency <= 1, "{line}");
            TraceLine { phase, step, layer, slot, expert, residency, expert_bytes }
        })
        .collect()
}

/// Runs a prompt of three tokens and then two single ones through a model, as llama.cpp would, and checks its trace.
fn check_trace(layers: u64) {
    let mut writer = ModelWriter::new(83);
    for layer in 0..layers {
        for part in ["gate", "up", "down"] {
            writer.tensor(&format!("blk.{layer}.ffn_{part}_exps.weight"), Q4_K, &[256, 3, 8]);
        }
    }
    let model = writer.write(TestDirectory::new(), 1);
    let output = TestDirectory::new();
    let path = output.path().join("trace.csv");
    let session = model.session(&[("HYPURA_RAM", "64M"), ("HYPURA_TRACE", path.to_str().unwrap())]).unwrap();
    let mut fetch = session.new_fetch();
    let mut random = Random::new(83);
    let mut expected = Vec::new();
    let mut seen = BTreeSet::new();
    let streamed = model.streamed(&session);
    for (step, tokens) in [(1, 3), (2, 1), (3, 1)] {
        for (layer, tensors) in streamed.chunks(3).enumerate() {
            let layer = layer as u64;
            let routing: Vec<i32> = (0..tokens * 2).map(|_| random.below(8) as i32).collect();
            for (index, &expert) in routing.iter().enumerate() {
                expected.push(TraceLine {
                    phase: u64::from(tokens == 1),
                    step,
                    layer,
                    slot: index as u64 % 2,
                    expert: expert as u64,
                    residency: u64::from(seen.contains(&(layer, expert))),
                    expert_bytes: 3 * model.block(tensors[0], ExpertId(0)).len() as u64,
                });
            }
            seen.extend(routing.iter().map(|&expert| (layer, expert)));
            for &tensor in tensors {
                model.fetch_all(&mut fetch, tensor, &routing, tokens).unwrap();
            }
        }
    }
    drop((fetch, session));
    let found = read_trace(&path);
    assert_eq!(found.len(), expected.len(), "lines of the trace of {layers} layers");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
}

#[test]
fn a_trace_has_a_line_for_each_token_layer_and_choice() {
    within(300, || check_trace(3));
}

/// As with `--n-cpu-moe 1`: the layer after the last one is the first one, and the same.
#[test]
fn a_trace_of_a_single_layer_has_every_token() {
    within(300, || check_trace(1));
}

/// Everything starts with the first demand. What refused that may be gone by the next one.
#[test]
fn a_refused_start_is_tried_again_by_the_next_demand() {
    within(300, || {
        let model = MODELS[0](TestDirectory::new(), 89, 1);
        let output = TestDirectory::new();
        let folder = output.path().join("traces");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("trace.csv");
        let session = model.session(&[("HYPURA_RAM", "64M"), ("HYPURA_TRACE", path.to_str().unwrap())]).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        for _ in 0..2 {
            let refusal = model.sweep(&session).unwrap_err();
            assert!(refusal.to_string().contains("HYPURA_TRACE"), "{refusal}");
        }
        std::fs::create_dir(&folder).unwrap();
        model.sweep(&session).unwrap();
        assert_eq!(number(&stats(&session), "errors"), 0);
        drop(session);
        assert!(!read_trace(&path).is_empty());
    });
}
