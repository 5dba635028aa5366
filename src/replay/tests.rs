//! Reading traces, Belady beside brute force, and the policies on routing that is made up but repeats itself as the
//! real does.

use super::*;
use crate::cache::policy::{Lru, Policy, PolicyKind, Position, Shape, Use};
use crate::common::Random;
use crate::error::ErrorCode;
use crate::index::{ExpertId, PolicyLayer, UnitId};

/// One token a pass, using what is named, by layer.
fn trace_of(shape: Shape, tokens: &[Vec<Vec<usize>>]) -> Trace {
    let layer = |(layer, experts): (usize, &Vec<usize>)| LayerUse {
        layer: PolicyLayer(layer),
        token_count: 1,
        experts: experts.iter().map(|&expert| ExpertUse { expert: ExpertId(expert), routed_count: 1 }).collect(),
    };
    let pass = |token: &Vec<Vec<usize>>| Pass {
        turn: 0,
        is_decode: true,
        layers: token.iter().enumerate().map(layer).collect(),
    };
    Trace { model: "made up".to_owned(), shape, passes: tokens.iter().map(pass).collect() }
}

/// Routing that repeats itself as that of real models does: some experts of a layer are popular, what is popular drifts, and a token
/// tends to repeat the choices of the one before it.
fn made_up(shape: Shape, used: usize, token_count: usize, seed: u64) -> Trace {
    let mut random = Random::new(seed);
    let mut ranking: Vec<Vec<usize>> = (0..shape.layer_count).map(|_| (0..shape.expert_count).collect()).collect();
    ranking.iter_mut().for_each(|experts| random.shuffle(experts));
    let mut tokens: Vec<Vec<Vec<usize>>> = Vec::new();
    for _ in 0..token_count {
        let mut token = Vec::new();
        for (layer, ranking) in ranking.iter_mut().enumerate() {
            let (a, b) = (random.below(shape.expert_count), random.below(shape.expert_count));
            ranking.swap(a, b);
            let mut experts: Vec<usize> = Vec::new();
            let before = tokens.last().map(|token: &Vec<Vec<usize>>| token[layer].clone()).unwrap_or_default();
            experts.extend(before.into_iter().filter(|_| random.below(100) < 35));
            while experts.len() < used {
                let rank = (0..3).map(|_| random.below(shape.expert_count)).min().unwrap_or(0);
                if !experts.contains(&ranking[rank]) {
                    experts.push(ranking[rank]);
                }
            }
            token.push(experts);
        }
        tokens.push(token);
    }
    trace_of(shape, &tokens)
}

fn hits(trace: &Trace, slots: usize, kind: PolicyKind) -> u64 {
    simulate(trace, slots, &mut *kind.build(trace.shape)).hits
}

#[test]
fn a_step_of_a_prefill_is_a_token() {
    let trace = Trace::parse(
        "# route_trace v1\n# model=m.gguf arch=x n_layer=9 n_expert=8 n_expert_used=2\n\
         turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n\
         0,0,0,1,0,5,0.5,0,10\n0,0,0,1,1,3,0.5,0,10\n0,0,0,4,0,0,,,10\n0,0,0,4,1,7,,,10\n\
         0,0,1,1,0,3,,,10\n0,0,1,1,1,2,,,10\n0,0,1,4,0,7,,,10\n0,0,1,4,1,1,,,10\n\
         0,1,2,1,0,6,,,10\n0,1,2,4,0,1,,,10\n0,1,3,1,0,6,,,10\n1,1,3,1,0,6,,,10\n",
    )
    .unwrap();
    assert_eq!((trace.model.as_str(), trace.shape), ("m.gguf", Shape { layer_count: 2, expert_count: 8 }));
    assert_eq!(trace.passes.len(), 4, "a prompt, two tokens, and one of another turn");
    let experts =
        [(5, 1), (3, 2), (2, 1)].map(|(expert, routed_count)| ExpertUse { expert: ExpertId(expert), routed_count });
    assert_eq!(
        trace.passes[0].layers[0],
        LayerUse { layer: PolicyLayer(0), token_count: 2, experts: experts.to_vec() }
    );
    assert_eq!(trace.passes[0].layers[1].layer, PolicyLayer(1));
    assert!(!trace.passes[0].is_decode && trace.passes[1].is_decode);
    assert_eq!(trace.passes[3].turn, 1);
    assert_eq!(trace.without_prompts().passes, trace.passes[1..]);
}

#[test]
fn a_step_of_a_prefill_is_a_batch_when_its_slots_repeat() {
    let trace = Trace::parse(
        "# model: mine.gguf\n0,0,1,0,0,5,0,0,9\n0,0,1,0,1,4,0,0,9\n0,0,1,0,0,4,0,0,9\n0,0,1,0,1,5,0,0,9\n\
         0,0,2,0,0,1,0,0,9\n0,0,2,0,1,0,0,0,9\n0,0,2,0,0,1,0,0,9\n0,0,2,0,1,2,0,0,9\n",
    )
    .unwrap();
    assert_eq!(trace.model, "mine.gguf");
    assert_eq!(trace.shape.expert_count, 6, "without a header, what is named counts");
    let counts: Vec<(u32, usize)> =
        trace.passes.iter().map(|pass| (pass.layers[0].token_count, pass.layers[0].experts.len())).collect();
    assert_eq!(counts, [(2, 2), (2, 3)]);
}

#[test]
fn what_is_no_trace_is_an_error_that_names_the_line() {
    for (text, problem) in [
        ("", "0 layers"),
        ("# model=x\n\n", "0 layers"),
        ("0,1,0,0,0\n", "line 1 has too few columns"),
        ("0,1,0,0,0,1\n0,2,0,0,0,1\n", "line 2 is of phase 2"),
        ("0,1,0,0,0,-1\n", "line 1 has '-1'"),
        ("0,1,0,4000000000,0,1\n", "line 1 is of layer 4000000000"),
        ("# n_expert=many\n", "line 1 has 'many'"),
        ("0,1,0,0,0,4294967295\n", "line 1 is of layer 0 and expert 4294967295"),
        ("# n_expert=4294967295\n0,1,0,0,0,1\n", "1 layers and 4294967295 experts"),
    ] {
        let found = Trace::parse(text).unwrap_err();
        assert!(found.contains(problem), "{text:?}: {found}");
    }
    let missing = Trace::open("/nowhere/trace.csv".as_ref()).unwrap_err();
    assert_eq!(missing.code(), ErrorCode::Open);
}

/// The most hits that any choice of victims gives: tries them all.
fn most_hits(trace: &Trace, slots: usize) -> u64 {
    let layers: Vec<&LayerUse> = trace.passes.iter().flat_map(|pass| &pass.layers).collect();
    fn choose(trace: &Trace, cached: u64, held: u64, missing: &[usize], slots: usize, rest: &[&LayerUse]) -> u64 {
        let Some((&unit, missing)) = missing.split_first() else { return run(trace, cached, slots, rest) };
        let with = |cached: u64| choose(trace, cached | 1 << unit, held | 1 << unit, missing, slots, rest);
        if (cached.count_ones() as usize) < slots {
            return with(cached);
        }
        (0..64).filter(|bit| (cached & !held) >> bit & 1 == 1).map(|bit| with(cached & !(1 << bit))).max().unwrap()
    }
    fn run(trace: &Trace, cached: u64, slots: usize, layers: &[&LayerUse]) -> u64 {
        let Some((layer, rest)) = layers.split_first() else { return 0 };
        let units = layer.experts.iter().map(|used| trace.shape.unit(layer.layer, used.expert).0);
        let (hits, missing): (Vec<usize>, Vec<usize>) = units.partition(|unit| cached >> unit & 1 == 1);
        let held = hits.iter().fold(0, |held, unit| held | 1 << unit);
        hits.len() as u64 + choose(trace, cached, held, &missing, slots, rest)
    }
    run(trace, 0, slots, &layers)
}

#[test]
fn belady_hits_as_often_as_any_choice_of_victims_could() {
    let shape = Shape { layer_count: 2, expert_count: 3 };
    for seed in 0..30 {
        let used = 1 + seed as usize % 2;
        let trace = made_up(shape, used, if used == 1 { 9 } else { 5 }, seed);
        for slots in used..=4 {
            let found = simulate(&trace, slots, &mut Belady::new(&trace)).hits;
            assert_eq!(found, most_hits(&trace, slots), "seed {seed}, {slots} slots");
        }
    }
}

#[test]
fn no_policy_beats_belady_and_the_default_beats_lru() {
    let shape = Shape { layer_count: 6, expert_count: 32 };
    for seed in 0..4 {
        let trace = made_up(shape, 4, 200, seed);
        for share in [5, 10, 25, 50] {
            let slots = shape.unit_count() * share / 100;
            let best = simulate(&trace, slots, &mut Belady::new(&trace));
            assert_eq!(best.uses, 200 * 6 * 4);
            for kind in PolicyKind::ALL {
                assert!(hits(&trace, slots, kind) <= best.hits, "{kind:?} at {share}%");
            }
            if share <= 10 {
                // With more slots, what is made up here is too much like LRU's view of the world.
                let [lru, default] = [PolicyKind::Lru, PolicyKind::DEFAULT].map(|kind| hits(&trace, slots, kind));
                assert!(default * 100 > lru * 103, "{default} and {lru} at {share}%, seed {seed}");
            }
        }
    }
}

#[test]
fn everything_is_a_hit_from_the_second_use_on_when_all_fits() {
    let shape = Shape { layer_count: 3, expert_count: 8 };
    let trace = made_up(shape, 3, 50, 7);
    let mut units: Vec<UnitId> = Vec::new();
    for layer in trace.passes.iter().flat_map(|pass| &pass.layers) {
        units.extend(layer.experts.iter().map(|used| shape.unit(layer.layer, used.expert)));
    }
    let uses = units.len() as u64;
    units.sort_unstable();
    units.dedup();
    for kind in PolicyKind::ALL {
        assert_eq!(hits(&trace, shape.unit_count(), kind), uses - units.len() as u64);
    }
}

#[test]
fn a_cycle_that_does_not_fit_keeps_a_fixed_set() {
    let shape = Shape { layer_count: 8, expert_count: 4 };
    let token: Vec<Vec<usize>> = vec![vec![0, 1, 2, 3]; 8];
    let trace = trace_of(shape, &vec![token; 100]);
    let slots = 16;
    assert_eq!(hits(&trace, slots, PolicyKind::Lru), 0, "what is used next is what was used longest ago");
    // Of 32 units 12 can stay while the others pass through the 4 slots of the layer in work.
    let best = simulate(&trace, slots, &mut Belady::new(&trace)).hits;
    assert!((12 * 99..=16 * 99).contains(&best));
    let found = hits(&trace, slots, PolicyKind::Forecast);
    assert!(found * 100 >= best * 90, "{found} of {best}");
}

#[test]
fn a_batch_larger_than_the_cache_passes_in_waves() {
    let shape = Shape { layer_count: 2, expert_count: 16 };
    let all: Vec<usize> = (0..16).collect();
    let trace = trace_of(shape, &vec![vec![all.clone(), all]; 5]);
    for kind in PolicyKind::ALL {
        for slots in 1..20 {
            let found = simulate(&trace, slots, &mut *kind.build(shape));
            assert_eq!(found.uses, 160);
            assert!(found.hits < 160);
        }
    }
}

#[test]
fn prompts_are_played_but_not_counted() {
    let shape = Shape { layer_count: 1, expert_count: 4 };
    let mut trace = trace_of(shape, &[vec![vec![0, 1]], vec![vec![1, 2]]]);
    trace.passes[0].is_decode = false;
    assert_eq!(simulate(&trace, 4, &mut Lru::new(shape)), Outcome { uses: 2, hits: 1 });
}

/// Evicts units that are not there.
#[derive(Debug)]
struct Liar;

impl Policy for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }
    fn used(&mut self, _unit: UnitId, _at: Position, _usage: Use) {}
    fn set_evictable(&mut self, _unit: UnitId) {}
    fn set_in_use(&mut self, _unit: UnitId) {}
    fn evictable_count(&self) -> usize {
        1
    }
    fn victim(&self, _at: Position) -> Option<UnitId> {
        Some(UnitId(3))
    }
    fn score(&self, _unit: UnitId, _at: Position) -> f64 {
        0.0
    }
}

#[test]
#[should_panic(expected = "a victim must be in RAM")]
fn a_victim_that_is_not_in_ram_is_noticed() {
    let shape = Shape { layer_count: 1, expert_count: 4 };
    simulate(&trace_of(shape, &[vec![vec![0]], vec![vec![1]]]), 1, &mut Liar);
}

/// The recall of everything by a habit that holds without exception, and of nothing by one that never does.
#[test]
fn recall_counts_what_was_foreseen() {
    let shape = Shape { layer_count: 2, expert_count: 8 };
    // The second layer follows the first; the first never uses what it used for the token before.
    let tokens: Vec<Vec<Vec<usize>>> = (0..400)
        .map(|token| {
            let expert = token % 4;
            vec![vec![expert], vec![7 - expert]]
        })
        .collect();
    let trace = trace_of(shape, &tokens);
    let recall = profile_recall(&trace);
    assert_eq!([recall.next_layer.uses, recall.next_token.uses, recall.popularity.uses], [400, 2 * 399, 800]);
    assert!(recall.next_layer.percents()[0] >= 99.0, "{recall:?}");
    assert!(recall.next_token.percents()[0] >= 98.0, "{recall:?}");
    assert_eq!(recall.repetition.percents(), [0.0, 0.0]);
    let [as_many, twice] = recall.popularity.percents();
    assert!(as_many < 30.0 && twice > as_many, "{recall:?}");
}

#[test]
fn a_text_like_those_before_it_starts_warmer() {
    let shape = Shape { layer_count: 3, expert_count: 32 };
    let mut trace = made_up(shape, 3, 300, 5);
    assert_eq!(warm_start(&trace, 20), None, "there is one text");
    for (index, pass) in trace.passes.iter_mut().enumerate() {
        pass.turn = index as u32 / 100;
    }
    for slots in [10, 30, 60] {
        let WarmStart { cold, warm } = warm_start(&trace, slots).unwrap();
        assert_eq!((cold.uses, warm.uses), (2 * 32 * 9, 2 * 32 * 9));
        assert!(warm.hits > cold.hits, "{slots} slots: {warm:?} beside {cold:?}");
    }
}
