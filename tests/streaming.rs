//! Sessions and fetches on real files: the right bytes, each block once, within the budget, and never stuck.
//!
//! The oracle is the model as it was written (`common`): every delivered byte is compared.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{
    F32, MODELS, Model, ModelMaker, ModelWriter, Q4_K, Random, TestDirectory, dense_model, expert_model, number, skip,
    stats, within,
};
use hypura::error::ErrorCode;
use hypura::gguf::Gguf;
use hypura::index::ExpertId;
use hypura::stream::Fetch;

fn check_every_budget(model: &Model, settings: &[(&str, &str)], seed: u64) {
    let minimum = model.minimum_bytes(settings);
    let everything = model.everything_bytes();
    for percent in [0, 3, 30, 100] {
        let ram_bytes = minimum + (everything.saturating_sub(minimum)) * percent / 100;
        let session = model.session_with_ram(ram_bytes, settings).unwrap();
        let distinct = model.random_demands(&session, seed + percent, 30).unwrap();
        let stats = stats(&session);
        let budget_bytes = number(&stats, "budget_bytes");
        assert!(budget_bytes <= ram_bytes, "{stats}");
        assert!(number(&stats, "resident_bytes") <= budget_bytes, "{stats}");
        assert_eq!(number(&stats, "errors"), 0, "{stats}");
        if stats["mode"] == "expert-streaming" {
            let used = number(&stats, "expert_hits") + number(&stats, "expert_misses");
            assert_eq!(used, distinct as u64, "{stats}");
        }
        assert!(number(&stats, "prefetch_used") <= number(&stats, "prefetch_issued"), "{stats}");
        if settings.contains(&("HYPURA_PREFETCH", "off")) {
            assert_eq!(number(&stats, "prefetch_issued"), 0, "{stats}");
        }
        if settings.contains(&("HYPURA_DIRECT", "off")) {
            assert_eq!(stats["direct_io"], false);
        }
    }
}

/// All values of each setting, and every pair of them, without all combinations.
fn check_every_setting(make: ModelMaker) {
    let mut seed = 1;
    for part_count in [1, 3] {
        let model = make(TestDirectory::new(), seed, part_count);
        for (direct, prefetch, verify, engine) in [
            ("auto", "auto", "0", "auto"),
            ("auto", "off", "1", "threads"),
            ("off", "auto", "1", "threads"),
            ("off", "off", "0", "auto"),
        ] {
            seed += 1;
            let settings = [
                ("HYPURA_DIRECT", direct),
                ("HYPURA_PREFETCH", prefetch),
                ("HYPURA_VERIFY", verify),
                ("HYPURA_IO", engine),
            ];
            check_every_budget(&model, &settings, seed * 1000);
        }
    }
}

#[test]
fn any_demand_for_experts_under_any_budget_delivers_the_files_bytes() {
    within(300, || check_every_setting(expert_model));
}

/// Layers in the file that the host never loads: their blocks get no slots, and there is nothing to demand of them.
#[test]
fn what_the_host_never_binds_takes_no_part() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 7, 1);
        let all_bytes = model.everything_bytes();
        let session = model.session_with_ram(all_bytes, &[]).unwrap();
        let streamed = model.streamed(&session);
        let (unbound, bound) = streamed.split_last().unwrap();
        bound.iter().for_each(|&tensor| session.note_bound(tensor));
        session.note_loaded();
        let mut fetch = session.new_fetch();
        let error = fetch.begin(*unbound, &[0], 1).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.message().contains("was not bound"), "{error}");
        let mut blocks = Vec::new();
        for &tensor in bound {
            fetch.begin(tensor, &[0], 1).unwrap();
            fetch.next(&mut blocks).unwrap();
            assert_eq!(blocks.len(), 1);
            model.assert_right(tensor, &blocks[0]);
        }
        fetch.end();
        let pools = number(&stats(&session), "budget_bytes");
        assert!(pools < all_bytes - model.gguf.tensors()[*unbound].size_bytes, "{pools} of {all_bytes} bytes");
    });
}

/// A looped model uses its layers twice for a token; the second time ends with another tensor.
#[test]
fn a_pass_of_a_looped_model_is_one_token_and_is_read_ahead_in_its_order() {
    within(300, || {
        let model = dense_model(TestDirectory::new(), 8, 1);
        let minimum = model.minimum_bytes(&[]);
        let third = (model.everything_bytes() - minimum) / 3;
        let session = model.session_with_ram(minimum + third, &[]).unwrap();
        let streamed = model.streamed(&session);
        let (last, looped) = streamed.split_last().unwrap();
        let mut fetch = session.new_fetch();
        let mut blocks = Vec::new();
        for _ in 0..12 {
            fetch.begin_pass();
            for &tensor in looped.iter().chain(looped).chain([last]) {
                fetch.begin(tensor, &[], 1).unwrap();
                fetch.next(&mut blocks).unwrap();
                model.assert_right(tensor, &blocks[0]);
                fetch.end();
            }
        }
        drop(fetch);
        let stats = stats(&session);
        assert_eq!(number(&stats, "tokens"), 12, "{stats}");
        // All that is read ahead is used, but for what is under way at the end.
        let in_vain = number(&stats, "prefetch_issued") - number(&stats, "prefetch_used");
        assert!(number(&stats, "prefetch_issued") > 50 && in_vain <= 10, "{stats}");
    });
}

#[test]
fn any_demand_for_dense_tensors_under_any_budget_delivers_the_files_bytes() {
    within(300, || check_every_setting(dense_model));
}

/// A file system in memory has no direct I/O, although opening with the flag may succeed.
#[test]
fn a_file_system_without_direct_io_serves_the_same_bytes() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return skip("no /dev/shm");
    }
    within(300, move || {
        for make in MODELS {
            check_every_budget(&make(TestDirectory::inside(memory), 7, 1), &[("HYPURA_VERIFY", "1")], 70);
        }
    });
}

#[test]
fn a_pass_in_a_fixed_order_is_read_ahead() {
    within(300, || {
        let model = dense_model(TestDirectory::new(), 11, 1);
        let minimum = model.minimum_bytes(&[]);
        let ram_bytes = minimum + (model.everything_bytes() - minimum) / 4;
        let session = model.session_with_ram(ram_bytes, &[]).unwrap();
        for _ in 0..5 {
            model.sweep(&session).unwrap();
        }
        let stats = stats(&session);
        assert!(number(&stats, "prefetch_used") > 0, "{stats}");
        assert_eq!(number(&stats, "tokens"), 5, "one for each pass: {stats}");
    });
}

/// With buffered reads, which are never widened, and nobody else, every count can be foretold.
#[test]
fn the_counters_add_up() {
    within(300, || {
        let mut writer = ModelWriter::new(3);
        for layer in 0..4 {
            writer.tensor(&format!("blk.{layer}.ffn_up_exps.weight"), Q4_K, &[256, 5, 16]);
        }
        let model = writer.write(TestDirectory::new(), 1);
        let block_bytes = model.block(0, ExpertId(0)).len() as u64;
        for prefetch in ["auto", "off"] {
            let settings = [("HYPURA_DIRECT", "off"), ("HYPURA_PREFETCH", prefetch)];
            let session = model.session_with_ram(4096 * 20, &settings).unwrap();
            let distinct = model.random_demands(&session, 5, 200).unwrap() as u64;
            let stats = stats(&session);
            let (hits, misses) = (number(&stats, "expert_hits"), number(&stats, "expert_misses"));
            assert_eq!(hits + misses, distinct, "{stats}");
            assert!(hits > 0 && misses > 0, "{stats}");
            let blocks_read = misses - number(&stats, "prefetch_used") + number(&stats, "prefetch_issued");
            assert_eq!(number(&stats, "read_bytes"), blocks_read * block_bytes, "{stats}");
            assert_eq!(number(&stats, "budget_bytes"), 4096 * 20, "{stats}");
            assert_eq!(number(&stats, "model_bytes"), model.gguf.model_bytes());
            assert!(stats["read_seconds"].as_f64().unwrap() > 0.0, "{stats}");
            assert!(stats["stall_seconds"].as_f64().unwrap() > 0.0, "{stats}");
        }
    });
}

#[test]
fn what_fits_is_read_once() {
    within(300, || {
        for make in MODELS {
            let model = make(TestDirectory::new(), 13, 1);
            let session = model.session_with_ram(model.everything_bytes(), &[("HYPURA_DIRECT", "off")]).unwrap();
            for _ in 0..3 {
                model.sweep(&session).unwrap();
            }
            let bytes: u64 =
                model.streamed(&session).iter().map(|&tensor| model.gguf.tensors()[tensor].size_bytes).sum();
            let stats = stats(&session);
            assert_eq!(number(&stats, "read_bytes"), bytes, "{stats}");
            assert_eq!(number(&stats, "resident_bytes"), bytes, "{stats}");
        }
    });
}

#[test]
fn threads_share_a_session_of_the_smallest_budget() {
    for make in MODELS {
        for prefetch in ["auto", "off"] {
            within(300, move || {
                let model = make(TestDirectory::new(), 17, 2);
                let settings = [("HYPURA_PREFETCH", prefetch)];
                let session = model.session_with_ram(model.minimum_bytes(&settings), &settings).unwrap();
                std::thread::scope(|scope| {
                    for seed in 0..8 {
                        let (model, session) = (&model, &session);
                        scope.spawn(move || model.random_demands(session, seed, 60).unwrap());
                    }
                });
                assert_eq!(number(&stats(&session), "errors"), 0);
                model.sweep(&session).unwrap();
            });
        }
    }
}

/// Threads that all want the same few experts: slots are joined while others' reads are in flight.
#[test]
fn threads_that_want_the_same_blocks_share_them() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 19, 1);
        let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        model.sweep(&session).unwrap();
                    }
                });
            }
        });
    });
}

fn abandon(model: &Model, fetch: &mut Fetch, random: &mut Random, streamed: &[usize]) {
    let tensor = streamed[random.below(streamed.len())];
    let (routing, tokens) = model.random_routing(random, tensor);
    fetch.begin(tensor, &routing, tokens).unwrap();
    let mut blocks = Vec::new();
    for _ in 0..random.below(3) {
        fetch.next(&mut blocks).unwrap();
        for block in &blocks {
            model.assert_right(tensor, block);
        }
    }
}

#[test]
fn abandoned_demands_leave_nothing_stuck() {
    within(300, || {
        for make in MODELS {
            let model = make(TestDirectory::new(), 23, 1);
            let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
            let streamed = model.streamed(&session);
            let mut random = Random::new(23);
            let mut fetch = session.new_fetch();
            for round in 0..300 {
                abandon(&model, &mut fetch, &mut random, &streamed);
                match random.below(4) {
                    0 => fetch.end(),
                    1 => fetch = session.new_fetch(),
                    2 => {
                        fetch.end();
                        // At the smallest budget another fetch goes on only when the ended one holds nothing any more.
                        let tensor = streamed[round % streamed.len()];
                        let (routing, tokens) = model.random_routing(&mut random, tensor);
                        model.fetch_all(&mut session.new_fetch(), tensor, &routing, tokens).unwrap();
                    }
                    _ => {}
                }
            }
            drop(fetch);
            model.sweep(&session).unwrap();
        }
    });
}

#[test]
fn a_demand_that_is_refused_holds_nothing_and_the_fetch_goes_on() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 29, 1);
        let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
        let streamed = model.streamed(&session);
        let mut fetch = session.new_fetch();
        let mut blocks = Vec::new();
        for routing in [[0, 12], [1, -1], [i32::MAX, 0], [i32::MIN, 0]] {
            let error = fetch.begin(streamed[0], &routing, 1).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            assert!(error.message().contains("12"), "names the number of experts: {error}");
            // Not "all delivered": that would pass for success.
            assert_eq!(fetch.next(&mut blocks).unwrap_err().code(), ErrorCode::InvalidArgument);
            assert!(blocks.is_empty());
        }
        for tensor in [0, model.gguf.tensors().len(), usize::MAX] {
            assert_eq!(fetch.begin(tensor, &[], 1).unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        model.fetch_all(&mut fetch, streamed[0], &[3, 3, 5], 1).unwrap();
        model.fetch_all(&mut fetch, streamed[0], &[], 0).unwrap();
        model.sweep(&session).unwrap();
    });
}

#[test]
fn what_is_in_ram_can_be_had_before_it_is_demanded() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 31, 1);
        let session = model.session_with_ram(1 << 40, &[]).unwrap();
        model.sweep(&session).unwrap();
        let streamed = model.streamed(&session);
        let (now, later) = (streamed[0], streamed[1]);
        let mut fetch = session.new_fetch();
        let mut blocks = Vec::new();
        assert_eq!(
            fetch.early(later, &mut blocks).unwrap_err().code(),
            ErrorCode::InvalidArgument,
            "nothing is demanded"
        );
        fetch.begin(now, &[3, 1, 3], 1).unwrap();
        let before = number(&stats(&session), "expert_hits");
        fetch.early(later, &mut blocks).unwrap();
        let mut experts: Vec<usize> = blocks.iter().map(|block| block.expert.0).collect();
        experts.sort_unstable();
        assert_eq!(experts, [1, 3]);
        blocks.iter().for_each(|block| model.assert_right(later, block));
        assert_eq!(number(&stats(&session), "expert_hits"), before, "it is no demand");
        assert_eq!(fetch.early(usize::MAX, &mut blocks).unwrap_err().code(), ErrorCode::InvalidArgument);
        fetch.end();
        assert_eq!(model.fetch_all(&mut fetch, later, &[3, 1], 1).unwrap(), 2, "its own demand delivers them again");
    });
}

#[test]
fn sessions_and_fetches_are_dropped_while_reads_are_in_flight() {
    within(300, || {
        for make in MODELS {
            let model = make(TestDirectory::new(), 31, 1);
            for round in 0..60 {
                let percent = round as u64 % 3;
                let ram_bytes = model.minimum_bytes(&[]) * (1 + percent);
                let session = model.session_with_ram(ram_bytes, &[]).unwrap();
                let streamed = model.streamed(&session);
                let mut fetches: Vec<Fetch> = (0..2).map(|_| session.new_fetch()).collect();
                for (index, fetch) in fetches.iter_mut().enumerate() {
                    let tensor = streamed[(round + 5 * index) % streamed.len()];
                    let routing: Vec<i32> = (0..model.expert_count(tensor) as i32).collect();
                    fetch.begin(tensor, &routing, 1).unwrap();
                }
                if round % 2 == 0 {
                    drop(session);
                    drop(fetches);
                } else {
                    drop(fetches);
                    drop(session);
                }
            }
        }
    });
}

#[test]
fn a_fetch_keeps_its_session_alive() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 37, 1);
        let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
        let streamed = model.streamed(&session);
        let mut fetch = session.new_fetch();
        drop(session);
        for tensor in streamed {
            model.fetch_all(&mut fetch, tensor, &[1, 0, 1, 4], 2).unwrap();
        }
    });
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_one_that_works() {
    within(300, || {
        for make in MODELS {
            for direct in ["auto", "cold", "off"] {
                let model = make(TestDirectory::new(), 67, 1);
                let settings = [("HYPURA_DIRECT", direct)];
                let minimum = model.minimum_bytes(&settings);
                for ram_bytes in [0, 1, minimum / 2, minimum - 1] {
                    let Err(error) = model.session_with_ram(ram_bytes, &settings) else {
                        panic!("{ram_bytes} is less than {minimum}");
                    };
                    assert_eq!(error.code(), ErrorCode::Budget);
                    let advice = error.message().split("HYPURA_RAM=").nth(1).expect("the message says what to set");
                    let advice: String = advice.chars().take_while(char::is_ascii_alphanumeric).collect();
                    let settings = [("HYPURA_RAM", &*advice), ("HYPURA_DIRECT", direct)];
                    let session = model.session(&settings).unwrap();
                    model.sweep(&session).unwrap();
                    let kibibytes: u64 = advice.trim_end_matches('K').parse().unwrap();
                    assert_eq!(kibibytes, minimum.div_ceil(1024));
                    assert!(number(&stats(&session), "budget_bytes") <= kibibytes * 1024);
                }
            }
        }
    });
}

#[test]
fn a_tensor_smaller_than_the_alignment_works() {
    within(300, || {
        let mut writer = ModelWriter::new(71);
        writer.tensor("blk.0.ffn_up.weight", F32, &[1, 1]);
        writer.tensor("blk.0.ffn_down.weight", F32, &[3, 1]);
        writer.tensor("blk.1.ffn_up.weight", F32, &[5000, 1]);
        writer.tensor("blk.1.ffn_down.weight", F32, &[1, 2]);
        let model = writer.write(TestDirectory::new(), 1);
        for direct in ["auto", "cold", "off"] {
            check_every_budget(&model, &[("HYPURA_DIRECT", direct), ("HYPURA_VERIFY", "1")], 71);
        }
    });
}

#[test]
fn split_files_are_found_and_listed_alike() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 89, 3);
        let listed = Gguf::open(&model.paths).unwrap();
        assert_eq!(listed.tensors(), model.gguf.tensors());
        assert_eq!(listed.files().len(), 3);
        let files: BTreeSet<usize> = listed.tensors().iter().map(|tensor| tensor.file).collect();
        assert_eq!(files, BTreeSet::from([0, 1, 2]), "every part holds tensors");
    });
}
