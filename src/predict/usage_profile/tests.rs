//! Counting beside counting by hand, foreseeing, and what survives on disk.

use std::path::Path;

use super::encoding::{decode, encode};
use super::*;
use crate::common::{Random, TestDirectory};

const LAYERS: [u32; 3] = [1, 2, 5];
const EXPERTS: usize = 6;

fn new() -> UsageProfile {
    UsageProfile::new(&LAYERS, EXPERTS)
}

/// Runs tokens one by one, each with the experts of every layer.
fn run(usage_profile: &mut UsageProfile, tokens: &[[[i32; 2]; 3]]) {
    let mut recent = Recent::default();
    for token in tokens {
        for (layer, experts) in token.iter().enumerate() {
            usage_profile.observe(&mut recent, ExpertLayer(layer), experts, 1);
        }
    }
}

fn random_tokens(seed: u64, count: usize) -> Vec<[[i32; 2]; 3]> {
    let mut random = Random::new(seed);
    let mut pair = || {
        let first = random.below(EXPERTS);
        [first as i32, ((first + 1 + random.below(EXPERTS - 1)) % EXPERTS) as i32]
    };
    (0..count).map(|_| [pair(), pair(), pair()]).collect()
}

fn experts(predicted: &[Predicted]) -> Vec<usize> {
    predicted.iter().map(|predicted| predicted.expert.0).collect()
}

fn next_layer(usage_profile: &UsageProfile, layer: ExpertLayer, used: &[usize]) -> Vec<Predicted> {
    let mut predicted = Vec::new();
    let used: Vec<ExpertId> = used.iter().copied().map(ExpertId).collect();
    usage_profile.predict_next_layer(layer, &used, &mut predicted);
    predicted
}

#[test]
fn uses_and_pairs_are_those_counted_by_hand() {
    let tokens = random_tokens(1, 300);
    let mut usage_profile = new();
    run(&mut usage_profile, &tokens);
    let has = |experts: [i32; 2], expert: usize| experts.contains(&(expert as i32));
    for layer in 0..LAYERS.len() {
        let counted = usage_profile.layer(ExpertLayer(layer));
        for one in 0..EXPERTS {
            let uses = tokens.iter().filter(|token| has(token[layer], one)).count();
            assert_eq!(usize::from(counted.uses[ExpertId(one)]), uses);
            assert_eq!(usage_profile.uses_per_token(ExpertLayer(layer), ExpertId(one)), Some(uses as f32 / 300.0));
            for other in 0..EXPERTS {
                let pair = one * EXPERTS + other;
                let together = tokens
                    .iter()
                    .filter(|token| layer + 1 < LAYERS.len() && has(token[layer], one) && has(token[layer + 1], other));
                assert_eq!(usize::from(counted.next_layer[pair]), together.count());
                let after = tokens.windows(2).filter(|pair| has(pair[0][layer], one) && has(pair[1][layer], other));
                assert_eq!(usize::from(counted.next_token[pair]), after.count());
            }
        }
    }
}

#[test]
fn what_follows_is_foreseen_and_a_stranger_by_what_is_popular() {
    let mut usage_profile = new();
    // Layer 0 alternates; the next layer answers 0,1 with 4,5 and 2,3 with 1,2.
    let tokens: Vec<_> = (0..40).map(|token| [[[0, 1], [4, 5], [0, 3]], [[2, 3], [1, 2], [0, 5]]][token % 2]).collect();
    run(&mut usage_profile, &tokens);
    let predicted = next_layer(&usage_profile, ExpertLayer(0), &[0, 1]);
    assert_eq!(experts(&predicted[..2]), [4, 5]);
    assert!(predicted[0].probability > 0.9 && predicted[2].probability < 0.1, "{predicted:?}");
    assert_eq!(experts(&next_layer(&usage_profile, ExpertLayer(0), &[3, 2])[..2]), [1, 2]);
    let mut again = Vec::new();
    usage_profile.predict_next_token(ExpertLayer(0), &[0, 1].map(ExpertId), &mut again);
    assert_eq!(experts(&again[..2]), [2, 3], "the layer alternates");
    assert_eq!(experts(&next_layer(&usage_profile, ExpertLayer(1), &[0])[..1]), [0], "every token uses 0 there");
    assert!(next_layer(&usage_profile, ExpertLayer(2), &[0]).is_empty(), "nothing comes after the last layer");
    assert!(next_layer(&new(), ExpertLayer(0), &[0]).is_empty(), "nothing is known yet");
}

#[test]
fn of_a_large_batch_some_tokens_count_and_layers_are_joined_row_by_row() {
    let mut usage_profile = new();
    let mut recent = Recent::default();
    let tokens = 10 * ROWS_MAX;
    // The first half goes from 0 to 1, the second from 2 to 3.
    let halves = |first: i32, second: i32| -> Vec<i32> {
        (0..tokens).map(|token| if token < tokens / 2 { first } else { second }).collect()
    };
    for (layer, routing) in [(0, halves(0, 2)), (1, halves(1, 3))] {
        usage_profile.observe(&mut recent, ExpertLayer(layer), &routing, tokens);
    }
    let layer = usage_profile.layer(ExpertLayer(0));
    let half = (ROWS_MAX / 2) as u16;
    assert_eq!((layer.tokens, &layer.uses.raw[..3]), (2 * half, &[half, 0, half][..]));
    let pairs: Vec<usize> = (0..EXPERTS * EXPERTS).filter(|&pair| layer.next_layer[pair] > 0).collect();
    assert_eq!(pairs, [1, 2 * EXPERTS + 3]);
    // Another number of tokens, as in the last layer of a prompt, cannot be joined with it; nor can a layer that was
    // skipped.
    usage_profile.observe(&mut recent, ExpertLayer(2), &[0], 1);
    usage_profile.observe(&mut recent, ExpertLayer(0), &[0], 1);
    usage_profile.observe(&mut recent, ExpertLayer(2), &[0], 1);
    assert!(usage_profile.layer(ExpertLayer(1)).next_layer.iter().all(|&count| count == 0));
    assert_eq!(recent.experts(ExpertLayer(2)).collect::<Vec<_>>(), [ExpertId(0)]);
}

#[test]
fn users_at_the_same_time_do_not_follow_each_other() {
    let mut usage_profile = new();
    let (mut one, mut other) = (Recent::default(), Recent::default());
    for (recent, layer, expert) in
        [(&mut one, 0, 0), (&mut other, 0, 2)].map(|(recent, layer, expert)| (recent, layer, [expert]))
    {
        usage_profile.observe(recent, ExpertLayer(layer), &expert, 1);
    }
    usage_profile.observe(&mut one, ExpertLayer(1), &[1], 1);
    usage_profile.observe(&mut other, ExpertLayer(1), &[3], 1);
    let layer = usage_profile.layer(ExpertLayer(0));
    let pairs: Vec<usize> = (0..EXPERTS * EXPERTS).filter(|&pair| layer.next_layer[pair] > 0).collect();
    assert_eq!(pairs, [1, 2 * EXPERTS + 3]);
}

#[test]
fn old_habits_fade() {
    let mut usage_profile = new();
    let max = usize::from(TOKENS_MAX);
    run(&mut usage_profile, &vec![[[0, 1]; 3]; max]);
    assert_eq!(usage_profile.uses_per_token(ExpertLayer(0), ExpertId(0)), Some(1.0));
    run(&mut usage_profile, &vec![[[2, 3]; 3]; max]);
    assert!(usage_profile.uses_per_token(ExpertLayer(0), ExpertId(2)).unwrap() > 0.7);
    assert!(usage_profile.uses_per_token(ExpertLayer(0), ExpertId(0)).unwrap() > 0.1, "not at once");
    run(&mut usage_profile, &vec![[[2, 3]; 3]; 12 * max]);
    assert_eq!(usage_profile.uses_per_token(ExpertLayer(0), ExpertId(0)), Some(0.0));
    assert_eq!(next_layer(&usage_profile, ExpertLayer(0), &[2, 3])[0].expert, ExpertId(2));
    assert!(usage_profile.layer(ExpertLayer(0)).tokens <= TOKENS_MAX);
}

#[test]
fn without_pairs_uses_are_counted_and_the_store_is_read() {
    let directory = TestDirectory::new();
    let mut with_pairs = new();
    run(&mut with_pairs, &[[[0, 1], [2, 3], [4, 5]]; 10]);
    ProfileFile::new(directory.path(), "a").save(with_pairs);
    let mut without = new();
    without.leave_pairs_out();
    ProfileFile::new(directory.path(), "a").load(&mut without);
    run(&mut without, &[[[0, 1], [2, 3], [4, 5]]; 10]);
    let mut predicted = Vec::new();
    without.predict_next_layer(ExpertLayer(0), &[ExpertId(0)], &mut predicted);
    assert!(predicted.is_empty());
    assert_eq!(without.uses_per_token(ExpertLayer(0), ExpertId(0)), Some(1.0));
}

#[test]
fn pairs_take_what_is_said() {
    // A profile, its copy, and the one that was stored: two counts of two bytes for each pair.
    assert_eq!(UsageProfile::pairs_bytes_at_most(3, 8), 3 * 3 * 8 * 8 * 4);
    assert_eq!(UsageProfile::pairs_bytes_at_most(100, 512), 0);
}

#[test]
fn a_model_too_large_for_pairs_has_its_uses_counted() {
    let numbers: Vec<u32> = (0..100).collect();
    let mut usage_profile = UsageProfile::new(&numbers, 512);
    let mut recent = Recent::default();
    for layer in 0..3 {
        usage_profile.observe(&mut recent, ExpertLayer(layer), &[511, 7], 1);
    }
    assert_eq!(usage_profile.uses_per_token(ExpertLayer(1), ExpertId(511)), Some(1.0));
    assert!(next_layer(&usage_profile, ExpertLayer(0), &[7]).is_empty());
}

#[test]
fn bytes_give_back_what_was_encoded_and_nothing_when_damaged() {
    let mut usage_profile = new();
    run(&mut usage_profile, &random_tokens(2, 500));
    let bytes = encode(&usage_profile);
    usage_profile.take_news();
    assert_eq!(decode(&bytes, EXPERTS).as_ref(), Ok(&usage_profile));
    assert!(decode(&bytes, EXPERTS + 1).unwrap_err().contains("number of experts"));
    for length in 0..bytes.len() {
        decode(&bytes[..length], EXPERTS).unwrap_err();
        let mut damaged = bytes.clone();
        damaged[length] ^= 0x10;
        decode(&damaged, EXPERTS).unwrap_err();
    }
    // Rubbish with a right checksum.
    let mut random = Random::new(3);
    for _ in 0..1000 {
        let mut rubbish = bytes[..bytes.len() - 8].to_vec();
        for _ in 0..3 {
            let place = 11 + random.below(rubbish.len() - 11);
            rubbish[place] = random.below(256) as u8;
        }
        rubbish.truncate(12 + random.below(rubbish.len()));
        rubbish.extend(crate::fnv::Fnv::of(&rubbish).to_le_bytes());
        let _ = decode(&rubbish, EXPERTS);
    }
}

fn stored(directory: &Path, name: &str) -> UsageProfile {
    let mut usage_profile = new();
    ProfileFile::new(directory, name).load(&mut usage_profile);
    usage_profile
}

#[test]
fn runs_of_a_model_share_a_file_and_models_do_not() {
    let directory = TestDirectory::new();
    let place = directory.path().join("not-there-yet");
    let (mut first, mut second) = (ProfileFile::new(&place, "a"), ProfileFile::new(&place, "a"));
    let (mut one, mut other) = (new(), new());
    first.load(&mut one);
    second.load(&mut other);
    run(&mut one, &[[[0, 1]; 3]; 100]);
    run(&mut other, &[[[0, 2]; 3]; 100]);
    first.save(one.clone());
    assert_eq!(stored(&place, "a").uses_per_token(ExpertLayer(0), ExpertId(1)), Some(1.0));
    second.save(other);
    let both = stored(&place, "a");
    assert_eq!([0, 1, 2].map(|expert| both.uses_per_token(ExpertLayer(1), ExpertId(expert)).unwrap()), [1.0, 0.5, 0.5]);
    assert!(stored(&place, "b").uses_per_token(ExpertLayer(0), ExpertId(0)).is_none());

    // Saved again, with nothing new from others, it stays what it is.
    let mut third = ProfileFile::new(&place, "a");
    let mut usage_profile = new();
    third.load(&mut usage_profile);
    for _ in 0..3 {
        third.save(usage_profile.clone());
    }
    assert_eq!(stored(&place, "a"), both);
}

#[test]
fn layers_that_a_run_does_not_stream_are_kept() {
    let directory = TestDirectory::new();
    let mut all = new();
    run(&mut all, &[[[0, 1], [2, 3], [4, 5]]; 10]);
    ProfileFile::new(directory.path(), "a").save(all);
    let mut part = UsageProfile::new(&LAYERS[1..], EXPERTS);
    let mut store = ProfileFile::new(directory.path(), "a");
    store.load(&mut part);
    assert_eq!(part.layers().count(), 2);
    assert_eq!(part.uses_per_token(ExpertLayer(0), ExpertId(2)), Some(1.0));
    store.save(part);
    assert_eq!(stored(directory.path(), "a").uses_per_token(ExpertLayer(0), ExpertId(0)), Some(1.0));
}

#[test]
fn rubbish_is_ignored_and_replaced() {
    let directory = TestDirectory::new();
    let path = directory.path().join("habits-a.bin");
    std::fs::write(&path, "rubbish").unwrap();
    let mut usage_profile = new();
    let mut store = ProfileFile::new(directory.path(), "a");
    store.load(&mut usage_profile);
    assert_eq!(usage_profile, new());
    run(&mut usage_profile, &[[[0, 1]; 3]; 10]);
    store.save(usage_profile);
    assert_eq!(stored(directory.path(), "a").uses_per_token(ExpertLayer(0), ExpertId(1)), Some(1.0));
}

#[test]
fn the_models_used_last_are_remembered() {
    let directory = TestDirectory::new();
    let path = |number: usize| directory.path().join(format!("habits-{number}.bin"));
    std::fs::write(directory.path().join("other.json"), "{}").unwrap();
    for number in 0..100 {
        let file = std::fs::File::create(path(number)).unwrap();
        let age = std::time::Duration::from_secs(1000 - number as u64);
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    ProfileFile::new(directory.path(), "new").save(new());
    assert_eq!((0..100).filter(|&number| path(number).exists()).collect::<Vec<_>>(), (37..100).collect::<Vec<_>>());
    assert!(directory.path().join("habits-new.bin").exists() && directory.path().join("other.json").exists());
}
