//! Tables that are looked up: the right bytes of any rows in any order, within the budget, also beside experts.

mod common;

use std::sync::Arc;

use common::{F32, Model, ModelWriter, Q4_K, Q8_0, Random, TestDirectory, number, stats, within};
use hypura::error::ErrorCode;
use hypura::index::ExpertId;
use hypura::stream::{Fetch, Session};

const TABLE: &str = "per_layer_token_embd.weight";

/// A table of 3,000 rows of 816 bytes, which begin anywhere in a page, beside some experts.
fn model(seed: u64) -> Model {
    let mut writer = ModelWriter::new(seed);
    writer.tensor("token_embd.weight", F32, &[64, 50]);
    writer.tensor("blk.0.ffn_up_exps.weight", Q4_K, &[256, 33, 5]);
    writer.tensor(TABLE, Q8_0, &[768, 3000]);
    writer.tensor("blk.1.ffn_up_exps.weight", Q4_K, &[256, 33, 5]);
    writer.write(TestDirectory::new(), 1)
}

struct Table<'a> {
    model: &'a Model,
    tensor: usize,
}

impl Table<'_> {
    const ROW_BYTES: usize = 768 / 32 * 34;

    fn of(model: &Model) -> Table<'_> {
        Table { model, tensor: model.gguf.find(TABLE).unwrap() }
    }

    /// Looks rows up and compares every byte with the file as it was written.
    #[track_caller]
    fn check(&self, fetch: &mut Fetch, ids: &[i32]) {
        let mut rows = vec![0xaa; ids.len() * Self::ROW_BYTES];
        fetch.rows(self.tensor, ids, &mut rows).unwrap();
        let contents = self.model.block(self.tensor, ExpertId(0));
        for (&id, row) in ids.iter().zip(rows.chunks(Self::ROW_BYTES)) {
            assert!(row == &contents[id as usize * Self::ROW_BYTES..][..Self::ROW_BYTES], "row {id} is wrong");
        }
    }
}

fn random_rows(random: &mut Random, count: usize) -> Vec<i32> {
    (0..count).map(|_| random.below(3000) as i32).collect()
}

fn check_any_rows(session: &Arc<Session>, model: &Model, seed: u64) {
    let (table, mut fetch, mut random) = (Table::of(model), session.new_fetch(), Random::new(seed));
    table.check(&mut fetch, &[0, 2999, 0, 1, 1498, 1499, 2998]);
    table.check(&mut fetch, &[]);
    for _ in 0..20 {
        let count = 1 + random.below(40);
        table.check(&mut fetch, &random_rows(&mut random, count));
        // A demand that is not finished stays as it is.
        let experts = model.gguf.find("blk.1.ffn_up_exps.weight").unwrap();
        let mut blocks = Vec::new();
        fetch.begin(experts, &[random.below(5) as i32], 1).unwrap();
        fetch.next(&mut blocks).unwrap();
        table.check(&mut fetch, &random_rows(&mut random, 3));
        model.assert_right(experts, &blocks[0]);
        fetch.end();
    }
    table.check(&mut fetch, &(0..3000).rev().collect::<Vec<i32>>());
    let stats = stats(session);
    assert_eq!(number(&stats, "errors"), 0, "{stats}");
    assert!(number(&stats, "resident_bytes") <= number(&stats, "budget_bytes"), "{stats}");
    assert!(number(&stats, "rows") > 3000, "{stats}");
}

#[test]
fn any_rows_under_any_budget_are_the_files() {
    within(300, || {
        let model = model(1);
        let minimum = model.minimum_bytes(&[]);
        for (budget, settings) in [
            (minimum, &[("HYPURA_VERIFY", "1")][..]),
            (minimum, &[("HYPURA_DIRECT", "off"), ("HYPURA_IO", "threads")]),
            (8 << 20, &[("HYPURA_IO", "threads")]),
            (64 << 20, &[("HYPURA_VERIFY", "1"), ("HYPURA_DIRECT", "off")]),
        ] {
            let session = model.session_with_ram(budget, settings).unwrap();
            check_any_rows(&session, &model, budget);
            let stats = stats(&session);
            assert!(number(&stats, "budget_bytes") <= budget, "{stats}");
        }
        let error = model.session_with_ram(minimum - 1024, &[]).err().unwrap();
        assert_eq!(error.code(), ErrorCode::Budget);
        assert!(error.message().contains(&format!("HYPURA_RAM={}K", minimum.div_ceil(1024))), "{error}");
    });
}

#[test]
fn rows_that_are_used_again_are_not_read_again() {
    within(300, || {
        let model = model(2);
        let session = model.session_with_ram(64 << 20, &[]).unwrap();
        let (table, mut fetch) = (Table::of(&model), session.new_fetch());
        table.check(&mut fetch, &[5, 700, 701, 2999]);
        let read = number(&stats(&session), "read_bytes");
        assert!(read > 0 && read <= 6 * 4096, "{read} bytes for four rows");
        table.check(&mut fetch, &[2999, 5, 700, 701, 5]);
        assert_eq!(number(&stats(&session), "read_bytes"), read);
    });
}

#[test]
fn rows_that_were_announced_are_read_before_anybody_waits() {
    within(300, || {
        let model = model(5);
        // With room for all of them, for some, and for hardly any.
        for budget in [64 << 20, 4 << 20, model.minimum_bytes(&[])] {
            let session = model.session_with_ram(budget, &[("HYPURA_VERIFY", "1")]).unwrap();
            let (table, mut fetch, mut random) = (Table::of(&model), session.new_fetch(), Random::new(budget));
            for round in 0..10 {
                let ids = random_rows(&mut random, 150);
                fetch.expect(table.tensor, &[-1, 3000, i32::MAX]);
                fetch.expect(table.tensor, &ids);
                // Some announcements are for a pass that is given up.
                if round % 3 > 0 {
                    ids.chunks(40).for_each(|ids| table.check(&mut fetch, ids));
                }
                table.check(&mut fetch, &random_rows(&mut random, 3));
            }
            let stats = stats(&session);
            assert!(number(&stats, "row_reads_ahead") > 0, "{stats}");
            assert!(number(&stats, "row_reads_ahead") < number(&stats, "row_reads"), "{stats}");
            assert_eq!(number(&stats, "errors"), 0, "{stats}");
            assert!(number(&stats, "resident_bytes") <= number(&stats, "budget_bytes"), "{stats}");
        }
    });
}

#[test]
fn what_was_announced_is_not_read_twice() {
    within(300, || {
        let model = model(6);
        let session = model.session_with_ram(64 << 20, &[]).unwrap();
        let (table, mut fetch) = (Table::of(&model), session.new_fetch());
        let ids: Vec<i32> = (0..100).map(|index| index * 29).collect();
        fetch.expect(table.tensor, &ids);
        fetch.expect(table.tensor, &ids);
        let announced = number(&stats(&session), "row_reads");
        assert!(announced >= 100);
        table.check(&mut fetch, &ids);
        let stats = stats(&session);
        assert_eq!((number(&stats, "row_reads"), number(&stats, "row_reads_ahead")), (announced, announced), "{stats}");
    });
}

#[test]
fn threads_look_up_at_the_same_time() {
    within(300, || {
        let model = model(3);
        let session = model.session_with_ram(model.minimum_bytes(&[]), &[]).unwrap();
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (session, model) = (&session, &model);
                scope.spawn(move || {
                    let (table, mut fetch, mut random) = (Table::of(model), session.new_fetch(), Random::new(seed));
                    for _ in 0..30 {
                        let ids = random_rows(&mut random, 25);
                        fetch.expect(table.tensor, &ids);
                        table.check(&mut fetch, &ids);
                    }
                });
            }
        });
    });
}

#[test]
fn what_makes_no_sense_is_refused_and_the_fetch_goes_on() {
    within(300, || {
        let model = model(4);
        let session = model.session_with_ram(8 << 20, &[]).unwrap();
        let (table, mut fetch) = (Table::of(&model), session.new_fetch());
        let experts = model.gguf.find("blk.0.ffn_up_exps.weight").unwrap();
        let mut row = vec![0; Table::ROW_BYTES];
        for (tensor, ids, length) in [
            (table.tensor, &[-1][..], Table::ROW_BYTES),
            (table.tensor, &[3000], Table::ROW_BYTES),
            (table.tensor, &[1, 2], Table::ROW_BYTES),
            (table.tensor, &[1], Table::ROW_BYTES - 1),
            (experts, &[0], Table::ROW_BYTES),
            (0, &[0], Table::ROW_BYTES),
        ] {
            let error = fetch.rows(tensor, ids, &mut row[..length]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
        }
        let error = fetch.begin(table.tensor, &[], 1).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "a table is no demand: {error}");
        assert!(error.message().contains("ask for rows of it (hypura_fetch_rows)"), "{error}");
        let error = fetch.rows(experts, &[0], &mut row).unwrap_err();
        assert!(error.message().contains("is no table"), "{error}");
        table.check(&mut fetch, &[17]);
        assert_eq!(number(&stats(&session), "errors"), 0);
    });
}

#[test]
fn a_file_that_is_cut_short_fails_the_lookup_and_all_that_follows() {
    within(300, || {
        let model = model(5);
        let session = model.session_with_ram(8 << 20, &[]).unwrap();
        let (table, mut fetch) = (Table::of(&model), session.new_fetch());
        table.check(&mut fetch, &[1]);
        let file = std::fs::OpenOptions::new().write(true).open(&model.paths[0]).unwrap();
        file.set_len(model.gguf.tensors()[table.tensor].offset + 1_000_000).unwrap();
        drop(file);
        let mut row = vec![0; Table::ROW_BYTES];
        let failed = |outcome: hypura::error::Result<()>| {
            let code = outcome.unwrap_err().code();
            assert!([ErrorCode::Truncated, ErrorCode::Changed].contains(&code), "{code:?}");
        };
        failed(fetch.rows(table.tensor, &[2500], &mut row));
        failed(fetch.rows(table.tensor, &[1], &mut row));
        failed(fetch.begin(model.gguf.find("blk.0.ffn_up_exps.weight").unwrap(), &[0], 1));
    });
}
