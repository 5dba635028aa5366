//! Sessions and fetches on real files: the right bytes, each block once, within the budget, and never stuck.
//!
//! The oracle is the model as it was written (`common`): every delivered byte is compared.

mod common;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{F32, Model, ModelWriter, Q4_K, Random, TestDirectory, dense_model, expert_model, skip, within};
use hypura::error::{Error, ErrorCode};
use hypura::gguf::Gguf;
use hypura::stream::{Fetch, Session};

type ModelMaker = fn(TestDirectory, u64, usize) -> Model;

const MODELS: [ModelMaker; 2] = [expert_model, dense_model];

fn stats(session: &Session) -> serde_json::Value {
    serde_json::from_str(&session.stats_json()).unwrap()
}

fn number(stats: &serde_json::Value, key: &str) -> u64 {
    stats[key].as_u64().unwrap_or_else(|| panic!("{key} is not a number in {stats}"))
}

/// The bytes that all of a model's slots would take.
fn everything_bytes(model: &Model) -> u64 {
    let session = model.session_with_ram(1 << 40, &[]).unwrap();
    model.sweep(&session).unwrap();
    number(&stats(&session), "budget_bytes")
}

/// Demands in a random order, then passes over all tensors in orders that change. Returns how many demands there were for
/// distinct experts.
fn random_demands(model: &Model, session: &Arc<Session>, seed: u64, count: usize) -> Result<usize, Error> {
    let mut random = Random::new(seed);
    let mut fetch = session.new_fetch();
    let mut streamed = model.streamed(session);
    let mut distinct = 0;
    for _ in 0..count {
        let tensor = streamed[random.below(streamed.len())];
        let (routing, tokens) = model.random_routing(&mut random, tensor);
        distinct += model.fetch_all(&mut fetch, tensor, &routing, tokens)?;
    }
    for pass in 0..4 {
        match pass {
            2 => streamed.reverse(),
            3 => random.shuffle(&mut streamed),
            _ => {}
        }
        for &tensor in &streamed {
            let (routing, tokens) = model.random_routing(&mut random, tensor);
            distinct += model.fetch_all(&mut fetch, tensor, &routing, tokens)?;
        }
    }
    Ok(distinct)
}

fn check_every_budget(model: &Model, settings: &[(&str, &str)], seed: u64) {
    let minimum = model.minimum_bytes(settings);
    let everything = everything_bytes(model);
    for percent in [0, 3, 30, 100] {
        let ram_bytes = minimum + (everything.saturating_sub(minimum)) * percent / 100;
        let session = model.session_with_ram(ram_bytes, settings).unwrap();
        let distinct = random_demands(model, &session, seed + percent, 30).unwrap();
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
    within(120, || check_every_setting(expert_model));
}

#[test]
fn any_demand_for_dense_tensors_under_any_budget_delivers_the_files_bytes() {
    within(120, || check_every_setting(dense_model));
}

/// A file system in memory has no direct I/O, although opening with the flag may succeed.
#[test]
fn a_file_system_without_direct_io_serves_the_same_bytes() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return skip("no /dev/shm");
    }
    within(60, move || {
        for make in MODELS {
            check_every_budget(&make(TestDirectory::inside(memory), 7, 1), &[("HYPURA_VERIFY", "1")], 70);
        }
    });
}

#[test]
fn a_pass_in_a_fixed_order_is_read_ahead() {
    within(60, || {
        let model = dense_model(TestDirectory::new(), 11, 1);
        let minimum = model.minimum_bytes(&[]);
        let ram_bytes = minimum + (everything_bytes(&model) - minimum) / 4;
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
    within(60, || {
        let mut writer = ModelWriter::new(3);
        for layer in 0..4 {
            writer.tensor(&format!("blk.{layer}.ffn_up_exps.weight"), Q4_K, &[256, 5, 16]);
        }
        let model = writer.write(TestDirectory::new(), 1);
        let block_bytes = model.block(0, 0).len() as u64;
        for prefetch in ["auto", "off"] {
            let settings = [("HYPURA_DIRECT", "off"), ("HYPURA_PREFETCH", prefetch)];
            let session = model.session_with_ram(4096 * 20, &settings).unwrap();
            let distinct = random_demands(&model, &session, 5, 200).unwrap() as u64;
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
    within(60, || {
        for make in MODELS {
            let model = make(TestDirectory::new(), 13, 1);
            let session = model.session_with_ram(everything_bytes(&model), &[("HYPURA_DIRECT", "off")]).unwrap();
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
            within(60, move || {
                let model = make(TestDirectory::new(), 17, 2);
                let settings = [("HYPURA_PREFETCH", prefetch)];
                let session = model.session_with_ram(model.minimum_bytes(&settings), &settings).unwrap();
                std::thread::scope(|scope| {
                    for seed in 0..8 {
                        let (model, session) = (&model, &session);
                        scope.spawn(move || random_demands(model, session, seed, 60).unwrap());
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
    within(60, || {
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
    within(60, || {
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
    within(60, || {
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
    within(60, || {
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
        let mut experts: Vec<usize> = blocks.iter().map(|block| block.expert).collect();
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
    within(60, || {
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
    within(60, || {
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

/// Demands until one fails. Returns the error; whatever was delivered before it was right.
fn first_error(model: &Model, session: &Arc<Session>) -> Error {
    for seed in 0..1000 {
        if let Err(error) = random_demands(model, session, seed, 20) {
            return error;
        }
    }
    panic!("no demand failed");
}

/// Every demand fails as the first one did, from new fetches and old, whatever is still in RAM.
fn assert_latched(model: &Model, session: &Arc<Session>, first: &Error) {
    for tensor in model.streamed(session) {
        let error = session.new_fetch().begin(tensor, &[], 1).unwrap_err();
        assert_eq!((error.code(), error.message()), (first.code(), first.message()));
    }
    assert!(number(&stats(session), "errors") >= 1);
}

fn damage_and_check(make: ModelMaker, part_count: usize, settings: &[(&str, &str)], damage: fn(&Path)) -> Error {
    let model = make(TestDirectory::new(), 41, part_count);
    let session = model.session_with_ram(model.minimum_bytes(settings), settings).unwrap();
    random_demands(&model, &session, 1, 10).unwrap();
    let streamed = model.streamed(&session);
    let mut open_demand = session.new_fetch();
    let first_tensor = streamed[0];
    let routing: Vec<i32> = (0..model.expert_count(first_tensor) as i32).collect();
    open_demand.begin(first_tensor, &routing, 1).unwrap();
    open_demand.end();

    let damaged = model.paths.last().unwrap();
    damage(damaged);
    let error = first_error(&model, &session);
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(error.message().contains(name), "{name} is not named in: {error}");
    assert_latched(&model, &session, &error);
    let mut blocks = Vec::new();
    open_demand.next(&mut blocks).unwrap_err();
    assert!(blocks.is_empty());

    // The library lives: another model works.
    let other = make(TestDirectory::new(), 43, 1);
    other.sweep(&other.session_with_ram(other.minimum_bytes(&[]), &[]).unwrap()).unwrap();
    error
}

fn cut_in_half(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

fn cut_one_byte(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

fn overwrite(path: &Path) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    let size = file.metadata().unwrap().len() as usize;
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.write_all(&vec![0x5a; size - 4096]).unwrap();
}

fn append(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(&[1]).unwrap();
}

#[test]
fn a_file_that_is_cut_short_fails_every_demand_from_then_on() {
    within(120, || {
        for make in MODELS {
            for part_count in [1, 2] {
                for direct in ["auto", "off"] {
                    for damage in [cut_in_half, cut_one_byte] {
                        let settings = [("HYPURA_DIRECT", direct)];
                        let error = damage_and_check(make, part_count, &settings, damage);
                        assert_eq!(error.code(), ErrorCode::Truncated, "{error}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_file_that_is_written_to_fails_every_demand_from_then_on() {
    within(120, || {
        for make in MODELS {
            for part_count in [1, 2] {
                for direct in ["auto", "off"] {
                    for damage in [overwrite, append] {
                        let settings = [("HYPURA_DIRECT", direct)];
                        let error = damage_and_check(make, part_count, &settings, damage);
                        assert_eq!(error.code(), ErrorCode::Changed, "{error}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_damaged_file_is_noticed_with_verification_as_well() {
    within(60, || {
        for damage in [cut_in_half, cut_one_byte, overwrite, append] {
            damage_and_check(expert_model, 1, &[("HYPURA_VERIFY", "1")], damage);
        }
    });
}

/// A writer that never pauses, so that reads and writes overlap in every way.
#[test]
fn no_wrong_byte_is_delivered_while_a_file_is_being_overwritten() {
    within(120, || {
        for round in 0..20 {
            for make in MODELS {
                let model = make(TestDirectory::new(), 47 + round, 1);
                let direct = if round % 2 == 0 { "auto" } else { "off" };
                let settings = [("HYPURA_DIRECT", direct)];
                let session = model.session_with_ram(model.minimum_bytes(&settings), &settings).unwrap();
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        std::thread::sleep(Duration::from_micros(300 * round));
                        while !stop.load(Ordering::Relaxed) {
                            overwrite(&model.paths[0]);
                        }
                    });
                    let error = first_error(&model, &session);
                    stop.store(true, Ordering::Relaxed);
                    assert_eq!(error.code(), ErrorCode::Changed, "{error}");
                    assert_latched(&model, &session, &error);
                });
            }
        }
    });
}

/// Renaming another file over the model's leaves the open one as it was.
#[test]
fn a_file_that_is_replaced_by_name_goes_on_or_fails() {
    within(60, || {
        let model = expert_model(TestDirectory::new(), 53, 1);
        let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
        random_demands(&model, &session, 1, 10).unwrap();
        let other = model.directory.path().join("other");
        std::fs::copy(&model.paths[0], &other).unwrap();
        overwrite(&other);
        std::fs::rename(&other, &model.paths[0]).unwrap();
        if let Err(error) = random_demands(&model, &session, 2, 100) {
            assert_eq!(error.code(), ErrorCode::Changed, "{error}");
        }
    });
}

/// The table of tensors belongs to the file that it was read from.
#[test]
fn a_file_that_is_replaced_before_it_is_planned_is_not_believed() {
    within(60, || {
        let damages: [fn(&Path); 2] = [cut_in_half, overwrite];
        for damage in damages {
            let model = expert_model(TestDirectory::new(), 59, 1);
            let other = model.directory.path().join("other");
            std::fs::copy(&model.paths[0], &other).unwrap();
            damage(&other);
            std::fs::rename(&other, &model.paths[0]).unwrap();
            let outcome = model.session(&[]).and_then(|session| model.sweep(&session));
            let error = outcome.expect_err("another file must not pass for the model that was opened");
            assert!(matches!(error.code(), ErrorCode::Changed | ErrorCode::Truncated), "{error}");
        }
    });
}

/// The oracle of last resort: bytes that were right when they were read, and are not what the file says now.
#[test]
fn after_a_failed_verification_nothing_is_delivered() {
    within(60, || {
        let model = expert_model(TestDirectory::new(), 61, 1);
        let settings = [("HYPURA_VERIFY", "1"), ("HYPURA_PREFETCH", "off")];
        let session = model.session_with_ram(everything_bytes(&model), &settings).unwrap();
        let tensor = model.streamed(&session)[0];
        let mut fetch = session.new_fetch();
        model.fetch_all(&mut fetch, tensor, &[0, 1], 1).unwrap();
        overwrite(&model.paths[0]);
        // A hit: no read that could notice the change comes before the verification.
        fetch.begin(tensor, &[0, 1], 1).unwrap();
        let mut blocks = Vec::new();
        let error = fetch.next(&mut blocks).unwrap_err();
        assert!(blocks.is_empty(), "blocks come with the error: {error}");
        fetch.next(&mut blocks).unwrap_err();
        assert!(blocks.is_empty());
        assert_latched(&model, &session, &error);
    });
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_one_that_works() {
    within(60, || {
        for make in MODELS {
            for direct in ["auto", "off"] {
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
    within(60, || {
        let mut writer = ModelWriter::new(71);
        writer.tensor("blk.0.ffn_up.weight", F32, &[1, 1]);
        writer.tensor("blk.0.ffn_down.weight", F32, &[3, 1]);
        writer.tensor("blk.1.ffn_up.weight", F32, &[5000, 1]);
        writer.tensor("blk.1.ffn_down.weight", F32, &[1, 2]);
        let model = writer.write(TestDirectory::new(), 1);
        for direct in ["auto", "off"] {
            check_every_budget(&model, &[("HYPURA_DIRECT", direct), ("HYPURA_VERIFY", "1")], 71);
        }
    });
}

/// The keys that tools rely on (design, section 6).
const STATS_KEYS: [&str; 24] = [
    "mode",
    "model_bytes",
    "resident_bytes",
    "budget_bytes",
    "read_bytes",
    "read_seconds",
    "stall_seconds",
    "expert_hits",
    "expert_misses",
    "prefetch_issued",
    "prefetch_used",
    "tokens",
    "prefetch_cancelled",
    "prefetch_wasted",
    "prefetch_pays",
    "lookahead_recall",
    "habit_recall",
    "warm_reads",
    "direct_io",
    "io_engine",
    "plan",
    "predicted_tokens_per_second",
    "measured_tokens_per_second",
    "errors",
];

fn keys(stats: &serde_json::Value) -> BTreeSet<&str> {
    stats.as_object().unwrap().keys().map(String::as_str).collect()
}

fn read_stats_file(path: &Path) -> serde_json::Value {
    let started = Instant::now();
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) => return serde_json::from_str(&text).unwrap(),
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "no statistics: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn statistics_are_written_with_the_keys_that_tools_rely_on() {
    within(60, || {
        for (make, mode) in [(MODELS[0], "expert-streaming"), (MODELS[1], "dense-streaming")] {
            let model = make(TestDirectory::new(), 73, 1);
            let output = TestDirectory::new();
            let path = output.path().join("stats.json");
            let session = model.session(&[("HYPURA_RAM", "64M"), ("HYPURA_STATS", path.to_str().unwrap())]).unwrap();
            assert_eq!(keys(&stats(&session)), BTreeSet::from(STATS_KEYS), "before the first demand");
            model.sweep(&session).unwrap();
            assert_eq!(keys(&read_stats_file(&path)), BTreeSet::from(STATS_KEYS));

            model.sweep(&session).unwrap();
            let last = session.stats_json();
            drop(session);
            let written = read_stats_file(&path);
            assert_eq!(written["mode"], mode);
            assert_eq!(written["errors"], 0);
            assert!(written["io_engine"].is_string() && written["direct_io"].is_boolean());
            // Guesses may still have been in flight when `last` was taken; everything else is final.
            let last: serde_json::Value = serde_json::from_str(&last).unwrap();
            for key in STATS_KEYS.iter().filter(|key| **key != "read_seconds") {
                assert_eq!(written[key], last[key], "{key}");
            }
            let files: Vec<_> = std::fs::read_dir(output.path()).unwrap().collect();
            assert_eq!(files.len(), 1, "no draft is left behind: {files:?}");
        }
    });
}

/// What is told of a plan adds up, for experts and dense weights, from the smallest budget to one for everything.
#[test]
fn the_plan_is_told_once_the_memory_is_divided() {
    within(60, || {
        for make in MODELS {
            let model = make(TestDirectory::new(), 89, 1);
            let minimum = model.session(&[("HYPURA_RAM", "64M")]).unwrap().minimum_bytes();
            for ram_bytes in [minimum, 3 * minimum, everything_bytes(&model)] {
                let session = model.session(&[("HYPURA_RAM", &ram_bytes.to_string())]).unwrap();
                assert_eq!(session.plan_json(), "null");
                assert_eq!(stats(&session)["plan"], serde_json::Value::Null);
                model.sweep(&session).unwrap();
                let plan: serde_json::Value = serde_json::from_str(&session.plan_json()).unwrap();
                let placed = number(&plan, "gpu_bytes") + number(&plan, "ram_bytes") + number(&plan, "drive_bytes");
                assert_eq!(placed, model.gguf.model_bytes(), "{plan}");
                assert!(number(&plan, "slots_bytes") <= ram_bytes, "{plan}");
                let in_slots = number(&plan, "ram_bytes") + number(&plan, "ring_bytes");
                assert!(in_slots <= number(&plan, "ram_budget_bytes"), "{plan}");
                let tensors: usize = plan["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| item["tensors"].as_array().unwrap().len())
                    .sum();
                assert_eq!(tensors, model.gguf.tensors().len(), "{plan}");
                let speed = |plan: &serde_json::Value| plan["tokens_per_second"].as_f64().unwrap();
                assert!(speed(&plan["prediction"]) > 0.0, "{plan}");
                assert!(plan["machine"]["cores"]["parallel"].as_u64().unwrap() > 0, "{plan}");
                let stats = stats(&session);
                assert_eq!(stats["plan"]["mode"], plan["mode"]);
                assert_eq!(stats["predicted_tokens_per_second"], plan["prediction"]["tokens_per_second"]);
                assert!(ram_bytes > minimum || number(&plan, "drive_bytes") > 0, "{plan}");
                assert!(ram_bytes < everything_bytes(&model) || number(&plan, "drive_bytes") == 0, "{plan}");
            }
        }
    });
}

/// A toy is not worth measuring anything for.
#[test]
fn no_speed_is_asked_for_when_it_does_not_matter() {
    let model = expert_model(TestDirectory::new(), 97, 1);
    let session = model.session(&[("HYPURA_RAM", "64M")]).unwrap();
    assert_eq!(session.next_unmeasured(2, 1 << 20), None);
    // Told all the same: no harm.
    session.set_speed(F32, 2, 1e9);
    model.sweep(&session).unwrap();
    assert_eq!(session.next_unmeasured(2, 1 << 20), None);
}

/// Two models of one process, as with `--model-draft`, have figures of their own: the first in the file that
/// the environment names, others beside it.
#[test]
fn sessions_with_one_statistics_file_write_side_by_side_and_never_half_of_one() {
    within(60, || {
        let model = dense_model(TestDirectory::new(), 79, 1);
        let output = TestDirectory::new();
        let path = output.path().join("stats.json");
        let settings = [("HYPURA_RAM", "64M"), ("HYPURA_STATS", path.to_str().unwrap())];
        let running = AtomicU32::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let session = model.session(&settings).unwrap();
                        model.fetch_all(&mut session.new_fetch(), model.streamed(&session)[0], &[], 1).unwrap();
                    }
                    running.fetch_sub(1, Ordering::Relaxed);
                });
            }
            while running.load(Ordering::Relaxed) > 0 {
                assert_eq!(keys(&read_stats_file(&path)), BTreeSet::from(STATS_KEYS));
            }
        });
        for file in std::fs::read_dir(output.path()).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(["stats.json", "stats.json.2", "stats.json.3", "stats.json.4"].contains(&&*name), "{name}");
            assert_eq!(keys(&read_stats_file(&output.path().join(name))), BTreeSet::from(STATS_KEYS));
        }
    });
}

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
                    expert_bytes: 3 * model.block(tensors[0], 0).len() as u64,
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
    within(60, || check_trace(3));
}

/// As with `--n-cpu-moe 1`: the layer after the last one is the first one, and the same.
#[test]
fn a_trace_of_a_single_layer_has_every_token() {
    within(60, || check_trace(1));
}

#[test]
fn split_files_are_found_and_listed_alike() {
    within(60, || {
        let model = expert_model(TestDirectory::new(), 89, 3);
        let listed = Gguf::open(&model.paths).unwrap();
        assert_eq!(listed.tensors(), model.gguf.tensors());
        assert_eq!(listed.files().len(), 3);
        let files: BTreeSet<usize> = listed.tensors().iter().map(|tensor| tensor.file).collect();
        assert_eq!(files, BTreeSet::from([0, 1, 2]), "every part holds tensors");
    });
}
