//! Files that are touched, cut, written to or replaced while they are streamed: no wrong byte; the same error for as
//! long as the file is not what it was, and none once it is.

mod common;

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use common::{MODELS, Model, ModelMaker, TestDirectory, expert_model, number, stats, within};
use hypura::error::{Error, ErrorCode};
use hypura::stream::Session;

/// Demands until one fails. Returns the error; whatever was delivered before it was right.
fn first_error(model: &Model, session: &Arc<Session>) -> Error {
    for seed in 0..1000 {
        if let Err(error) = model.random_demands(session, seed, 20) {
            return error;
        }
    }
    panic!("no demand failed");
}

/// Every demand fails as the first one did, from new fetches and old, whatever is still in RAM; or, if a better reason
/// is known by now, with that one.
fn assert_latched(model: &Model, session: &Arc<Session>, first: &Error) {
    let tensors = model.streamed(session);
    let now = session.new_fetch().begin(tensors[0], &[], 1).unwrap_err();
    assert!(now.code() == first.code() || first.code() == ErrorCode::Io, "{now}, and before it {first}");
    for tensor in tensors {
        let error = session.new_fetch().begin(tensor, &[], 1).unwrap_err();
        assert_eq!((error.code(), error.message()), (now.code(), now.message()));
    }
    assert!(number(&stats(session), "errors") >= 1);
}

fn damage_and_check(make: ModelMaker, part_count: usize, settings: &[(&str, &str)], damage: fn(&Path)) -> Error {
    let model = make(TestDirectory::new(), 41, part_count);
    let session = model.session_with_ram(model.minimum_bytes(settings), settings).unwrap();
    model.random_demands(&session, 1, 10).unwrap();
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

/// Models of both kinds, in one file and in two, read directly and through the page cache.
fn check_all(damages: [fn(&Path); 2], expected: ErrorCode) {
    within(300, move || {
        for make in MODELS {
            for part_count in [1, 2] {
                for direct in ["auto", "cold", "off"] {
                    for damage in damages {
                        let error = damage_and_check(make, part_count, &[("HYPURA_DIRECT", direct)], damage);
                        assert_eq!(error.code(), expected, "{error}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_file_that_is_cut_short_fails_every_demand_from_then_on() {
    check_all([cut_in_half, cut_one_byte], ErrorCode::Truncated);
}

#[test]
fn a_file_that_is_written_to_fails_every_demand_from_then_on() {
    check_all([overwrite, append], ErrorCode::Changed);
}

#[test]
fn a_damaged_file_is_noticed_with_verification_as_well() {
    within(300, || {
        for damage in [cut_in_half, cut_one_byte, overwrite, append] {
            damage_and_check(expert_model, 1, &[("HYPURA_VERIFY", "1")], damage);
        }
    });
}

/// A writer that never pauses, so that reads and writes overlap in every way.
#[test]
fn no_wrong_byte_is_delivered_while_a_file_is_being_overwritten() {
    within(300, || {
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

fn touch(path: &Path) {
    OpenOptions::new().write(true).open(path).unwrap().set_modified(SystemTime::now()).unwrap();
}

/// Backups, `chmod` and copies of a file onto itself change its time and nothing else.
#[test]
fn a_file_that_is_only_touched_goes_on() {
    within(300, || {
        for make in MODELS {
            for direct in ["auto", "cold", "off"] {
                let settings = [("HYPURA_DIRECT", direct)];
                let model = make(TestDirectory::new(), 71, 2);
                let session = model.session_with_ram(model.minimum_bytes(&settings), &settings).unwrap();
                model.random_demands(&session, 1, 10).unwrap();
                for round in 0..2 {
                    model.paths.iter().for_each(|path| touch(path));
                    model.random_demands(&session, 2 + round, 20).unwrap();
                }
                // The same bytes written again, while nobody reads.
                let bytes = std::fs::read(&model.paths[1]).unwrap();
                let mut file = OpenOptions::new().write(true).open(&model.paths[1]).unwrap();
                file.write_all(&bytes).unwrap();
                model.sweep(&session).unwrap();
                assert_eq!(number(&stats(&session), "errors"), 0);
            }
        }
    });
}

/// A file that is touched between the reading of its header and the planning is the file that it was.
#[test]
fn a_file_that_is_touched_before_it_is_planned_is_believed() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 73, 2);
        model.paths.iter().for_each(|path| touch(path));
        model.sweep(&model.session(&[]).unwrap()).unwrap();
    });
}

/// Whatever was done to it: when it holds again what it held, the next demand goes on.
#[test]
fn a_file_that_gets_its_content_back_goes_on_with_the_next_demand() {
    within(300, || {
        for make in MODELS {
            for damage in [cut_in_half, cut_one_byte, overwrite, append] {
                let model = make(TestDirectory::new(), 79, 1);
                let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
                model.random_demands(&session, 1, 10).unwrap();
                let bytes = std::fs::read(&model.paths[0]).unwrap();
                for _ in 0..2 {
                    damage(&model.paths[0]);
                    let error = first_error(&model, &session);
                    assert_latched(&model, &session, &error);
                    // In place, as `cp` does it.
                    let mut file = OpenOptions::new().write(true).truncate(true).open(&model.paths[0]).unwrap();
                    file.write_all(&bytes).unwrap();
                    model.random_demands(&session, 2, 10).unwrap();
                    model.sweep(&session).unwrap();
                }
            }
        }
    });
}

/// A demand that was under way when the read failed ends with the error, and the same fetch goes on afterwards.
#[test]
fn fetches_that_failed_together_go_on_together() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 83, 1);
        let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
        let bytes = std::fs::read(&model.paths[0]).unwrap();
        for round in 0..5 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    let (model, session) = (&model, &session);
                    scope.spawn(move || assert_eq!(first_error(model, session).code(), ErrorCode::Truncated));
                }
                std::thread::sleep(Duration::from_millis(round));
                cut_in_half(&model.paths[0]);
            });
            std::fs::write(&model.paths[0], &bytes).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (model, session) = (&model, &session);
                    scope.spawn(move || model.random_demands(session, thread, 10).unwrap());
                }
            });
        }
    });
}

/// Renaming another file over the model's leaves the open one as it was.
#[test]
fn a_file_that_is_replaced_by_name_goes_on_or_fails() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 53, 1);
        let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
        model.random_demands(&session, 1, 10).unwrap();
        let other = model.directory.path().join("other");
        std::fs::copy(&model.paths[0], &other).unwrap();
        overwrite(&other);
        std::fs::rename(&other, &model.paths[0]).unwrap();
        if let Err(error) = model.random_demands(&session, 2, 100) {
            assert_eq!(error.code(), ErrorCode::Changed, "{error}");
        }
    });
}

/// The table of tensors belongs to the file that it was read from.
#[test]
fn a_file_that_is_replaced_before_it_is_planned_is_not_believed() {
    within(300, || {
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
    within(300, || {
        let model = expert_model(TestDirectory::new(), 61, 1);
        let settings = [("HYPURA_VERIFY", "1"), ("HYPURA_PREFETCH", "off")];
        let session = model.session_with_ram(model.everything_bytes(), &settings).unwrap();
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
