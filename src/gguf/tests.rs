//! Whole headers: what is read from good ones, and that bad ones are refused with the right kind of error.

use std::path::{Path, PathBuf};

use super::*;
use crate::common::TestDirectory;
use crate::common::gguf_writer::{GgufWriter, encoded_string};

const F32: u32 = 0;
const Q4_K: u32 = 12;

/// A small mixture-of-experts model with something of everything in its header.
fn model() -> GgufWriter {
    let layers: Vec<u8> = [512_i32, 768, 0].iter().flat_map(|length| length.to_le_bytes()).collect();
    let vocabulary: Vec<u8> = ["a", "", "longer"].iter().flat_map(|text| encoded_string(text)).collect();
    GgufWriter::new()
        // Before the architecture that it belongs to: the order of keys is not fixed.
        .u32("toymoe.block_count", 3)
        .text("general.architecture", "toymoe")
        .text("general.name", "Toy")
        .pair("toymoe.expert_count", 0, &[8])
        .pair("toymoe.expert_used_count", 11, &2_i64.to_le_bytes())
        .u32("toymoe.expert_group_count", 4)
        .u32("toymoe.expert_group_used_count", 2)
        .u32("toymoe.expert_gating_func", 2)
        .pair("toymoe.embedding_length", 3, &256_i16.to_le_bytes())
        .array("toymoe.feed_forward_length", 5, 3, &layers)
        .pair("toymoe.rope.freq_base", 6, &1e6_f32.to_le_bytes())
        .pair("toymoe.use_bias", 7, &[1])
        .array("tokenizer.ggml.tokens", 8, 3, &vocabulary)
        .zeros("token_embd.weight", Q4_K, &[256, 5])
        .zeros("output_norm.weight", F32, &[7])
        .zeros("blk.0.ffn_up_exps.weight", Q4_K, &[256, 3, 8])
}

fn parse_bytes(bytes: &[u8]) -> Result<Header> {
    parse(Path::new("model.gguf"), bytes, bytes.len() as u64, 0)
}

/// The error for a file, which must be of a kind and mention some words.
#[track_caller]
fn assert_refused(writer: &GgufWriter, code: ErrorCode, words: &[&str]) {
    assert_bytes_refused(&writer.bytes(), code, words);
}

#[track_caller]
fn assert_bytes_refused(bytes: &[u8], code: ErrorCode, words: &[&str]) {
    let error = parse_bytes(bytes).err().expect("the file must be refused");
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.message().contains(word), "'{word}' is missing in: {error}");
    }
}

#[test]
fn a_model_in_one_file() {
    let directory = TestDirectory::new();
    let path = directory.path().join("toy.gguf");
    model().write(&path);
    let gguf = Gguf::open(std::slice::from_ref(&path)).unwrap();

    let size_bytes = model().bytes().len() as u64;
    assert_eq!(gguf.files().len(), 1);
    assert_eq!((&gguf.files()[0].path, gguf.files()[0].size_bytes), (&path, size_bytes));
    assert_eq!(
        *gguf.hyper_parameters(),
        HyperParameters {
            architecture: "toymoe".to_owned(),
            name: Some("Toy".to_owned()),
            block_count: 3,
            expert_count: 8,
            expert_used_count: 2,
            expert_group_count: 4,
            expert_group_used_count: 2,
            expert_gating_func: 2,
            embedding_length: 256,
            feed_forward_length: 768,
            nextn_predict_layers: 0,
            ngram_row_count: 0,
            context_length: 0,
        }
    );

    let sizes: Vec<u64> = gguf.tensors().iter().map(|tensor| tensor.size_bytes).collect();
    assert_eq!(sizes, [144 * 5, 28, 144 * 24]);
    assert_eq!(gguf.model_bytes(), 144 * 5 + 28 + 144 * 24);
    assert_eq!(gguf.find("output_norm.weight"), Some(1));
    assert_eq!(gguf.find("nothing"), None);
    let experts = &gguf.tensors()[2];
    assert_eq!((experts.ggml_type.name(), experts.shape, experts.file), ("q4_K", [256, 3, 8, 1], 0));
    // 720 and 28 bytes come before, each padded to 32.
    assert_eq!(experts.offset, gguf.tensors()[0].offset + 736 + 32);
    assert_eq!(experts.offset + experts.size_bytes, size_bytes, "144 * 24 is a multiple of 32: no padding at the end");
}

#[test]
fn extents_point_at_the_data_whatever_the_alignment() {
    for alignment in [1, 8, 32, 4096] {
        let bytes = GgufWriter::new()
            .version(2)
            .alignment(alignment)
            .tensor("a", 24, &[3], b"abc".to_vec())
            .tensor("b", 24, &[2, 2], b"wxyz".to_vec())
            .bytes();
        let tensors = parse_bytes(&bytes).unwrap().tensors;
        let data = |tensor: &TensorInfo| {
            assert_eq!(tensor.offset % u64::from(alignment), 0);
            bytes[tensor.offset as usize..][..tensor.size_bytes as usize].to_vec()
        };
        assert_eq!((data(&tensors[0]), data(&tensors[1])), (b"abc".to_vec(), b"wxyz".to_vec()));
    }
}

#[test]
fn a_tensor_of_an_unknown_type_reaches_up_to_the_next_one() {
    let base = || GgufWriter::new().tensor("before", 24, &[3], b"abc".to_vec());
    let with_next = base().tensor("new", 99, &[8], vec![7; 40]).tensor("next", 24, &[2], b"xy".to_vec());
    let tensors = parse_bytes(&with_next.bytes()).unwrap().tensors;
    let new = &tensors[1];
    assert!(!new.ggml_type.is_known() && tensors[0].ggml_type.is_known());
    assert_eq!((new.ggml_type.id(), new.offset + 64, new.size_bytes), (99, tensors[2].offset, 64));
    let last = base().tensor("new", 99, &[8], vec![7; 40]).bytes();
    let tensors = parse_bytes(&last).unwrap().tensors;
    assert_eq!(tensors[1].offset + tensors[1].size_bytes, last.len() as u64, "up to the end of the file");
    let elsewhere = |offset| base().tensor("new", 99, &[8], vec![7; 40]).false_offset(offset);
    assert_refused(&elsewhere(0), ErrorCode::Format, &["'new'", "overlap"]);
    assert_refused(&elsewhere(96), ErrorCode::Truncated, &["'new'"]);
}

#[test]
fn a_host_may_go_by_another_number_than_the_file_has() {
    let directory = TestDirectory::new();
    let path = directory.path().join("a.gguf");
    model().write(&path);
    let mut gguf = Gguf::open(&[path]).unwrap();
    let before = gguf.hyper_parameters().clone();
    for ignored in ["toymoe.unheard_of", "other.expert_used_count", "expert_used_count", "toymoeexpert_used_count"] {
        gguf.override_key(ignored, 9);
    }
    assert_eq!(*gguf.hyper_parameters(), before);
    gguf.override_key("toymoe.expert_used_count", 4);
    assert_eq!(*gguf.hyper_parameters(), HyperParameters { expert_used_count: 4, ..before });
}

#[test]
fn a_header_alone_and_a_scalar_are_fine() {
    assert!(parse_bytes(&GgufWriter::new().bytes()).unwrap().tensors.is_empty());
    let header = parse_bytes(&GgufWriter::new().zeros("scale", F32, &[]).bytes()).unwrap();
    assert_eq!((header.tensors[0].shape, header.tensors[0].size_bytes), ([1; 4], 4));
}

#[test]
fn other_formats_and_versions() {
    assert_bytes_refused(b"", ErrorCode::Truncated, &["0 bytes"]);
    assert_bytes_refused(b"GG", ErrorCode::Truncated, &["2 bytes"]);
    assert_bytes_refused(b"PK\x03\x04\0\0\0\0", ErrorCode::Format, &["PK"]);
    assert_refused(&model().version(1), ErrorCode::Format, &["version 1", "convert"]);
    assert_refused(&model().version(4), ErrorCode::Format, &["version 4"]);
    assert_refused(&model().version(0), ErrorCode::Format, &["version 0"]);
    assert_refused(&model().version(3_u32.swap_bytes()), ErrorCode::Format, &["big-endian"]);
}

#[test]
fn counts_beyond_the_file() {
    for position in [8, 16] {
        for count in [1_000_u64, u64::MAX / 64, u64::MAX] {
            let mut bytes = model().bytes();
            bytes.truncate(600);
            bytes[position..position + 8].copy_from_slice(&count.to_le_bytes());
            assert!(parse_bytes(&bytes).is_err(), "{count} at {position}");
        }
    }
    let huge = GgufWriter::new().array("tokens", 8, u64::MAX / 16, &[]);
    assert_refused(&huge, ErrorCode::Truncated, &["an array of strings"]);
    let huge = GgufWriter::new().array("tokens", 12, u64::MAX / 4, &[]);
    assert_refused(&huge, ErrorCode::Format, &["an array"]);
}

#[test]
fn key_value_pairs_that_cannot_be_trusted() {
    assert_refused(&GgufWriter::new().u32("", 1), ErrorCode::Format, &["empty"]);
    assert_refused(&GgufWriter::new().u32("a", 1).text("a", "b"), ErrorCode::Format, &["'a'", "twice"]);
    assert_refused(&GgufWriter::new().pair("a", 13, &[0; 8]), ErrorCode::Format, &["'a'", "13"]);
    assert_refused(&GgufWriter::new().array("a", 9, 1, &[0; 32]), ErrorCode::Format, &["array of arrays"]);
    assert_refused(&GgufWriter::new().u32("general.architecture", 1), ErrorCode::Format, &["not text"]);

    let toy = || GgufWriter::new().text("general.architecture", "toy");
    assert_refused(&toy().text("toy.block_count", "3"), ErrorCode::Format, &["not an integer"]);
    assert_refused(&toy().pair("toy.block_count", 1, &[0xff]), ErrorCode::Format, &["toy.block_count", "-1"]);
}

#[test]
fn a_name_that_is_not_unicode_is_shown_as_well_as_can_be() {
    let mut name = 2_u64.to_le_bytes().to_vec();
    name.extend(b"x\xff");
    let header = parse_bytes(&GgufWriter::new().pair("general.name", 8, &name).bytes()).unwrap();
    assert_eq!(header.hyper_parameters.name.as_deref(), Some("x\u{fffd}"));
}

#[test]
fn alignments_that_are_refused() {
    for alignment in [0, 3, 48, 1 << 31] {
        let writer = GgufWriter::new().u32("general.alignment", alignment);
        assert_refused(&writer, ErrorCode::Format, &["general.alignment", &alignment.to_string()]);
    }
}

#[test]
fn tensors_that_cannot_be_trusted() {
    let base = || GgufWriter::new().zeros("first", F32, &[8]);
    assert_refused(&base().zeros("first", F32, &[8]), ErrorCode::Format, &["'first'", "twice"]);
    assert_refused(&base().zeros("", F32, &[8]), ErrorCode::Format, &["empty"]);
    assert_refused(&base().zeros("a\0b", F32, &[8]), ErrorCode::Format, &["NUL"]);
    assert_refused(&base().tensor("t", 31, &[8], vec![]), ErrorCode::Format, &["'t'", "q4_0_4_4", "no longer"]);
    assert_refused(&base().tensor("t", F32, &[8, 0], vec![]), ErrorCode::Format, &["'t'", "0 elements"]);
    assert_refused(&base().tensor("t", F32, &[1; 5], vec![]), ErrorCode::Format, &["5 dimensions"]);
    assert_refused(&base().tensor("t", Q4_K, &[255], vec![]), ErrorCode::Format, &["255", "256"]);
    let huge = [1 << 40, 1 << 40, 1 << 40];
    assert_refused(&base().tensor("t", F32, &huge, vec![]), ErrorCode::Format, &["shape"]);
    assert_refused(&base().tensor("t", F32, &[u64::MAX], vec![]), ErrorCode::Format, &["shape"]);
}

#[test]
fn offsets_that_cannot_be_trusted() {
    let two = |offset| {
        let writer = GgufWriter::new().zeros("first", F32, &[24]).zeros("second", F32, &[24]);
        writer.false_offset(offset)
    };
    assert!(parse_bytes(&two(96).bytes()).is_ok());
    assert_refused(&two(100), ErrorCode::Format, &["'second'", "multiple"]);
    assert_refused(&two(64), ErrorCode::Format, &["'first'", "'second'", "overlap"]);
    assert_refused(&two(0), ErrorCode::Format, &["overlap"]);
    assert_refused(&two(u64::MAX - 31), ErrorCode::Format, &["impossible offset"]);
    assert_refused(&two(128), ErrorCode::Truncated, &["'second'"]);
}

#[test]
fn an_incomplete_download_names_the_bytes_that_are_missing() {
    let mut bytes = model().bytes();
    let size_bytes = bytes.len();
    bytes.truncate(size_bytes - 1);
    assert_bytes_refused(
        &bytes,
        ErrorCode::Truncated,
        &[
            &format!("model.gguf is {} bytes", size_bytes - 1),
            "tensor 'blk.0.ffn_up_exps.weight'",
            &format!("..{size_bytes}; the download may be incomplete"),
        ],
    );
}

/// Mappings are refused by some file systems of the network and in user space; what is there is the same.
#[test]
fn a_header_is_the_same_however_it_is_read() {
    let directory = TestDirectory::new();
    let path = directory.path().join("model.gguf");
    // Longer than what is read at first.
    let long = "x".repeat(2 * FIRST_READ_BYTES as usize);
    model().text("tokenizer.long", &long).write(&path);
    let opened = Opened::open(&path).unwrap();
    let headers = Access::ALL.map(|way| {
        let parse = |bytes: &[u8]| parse(&path, bytes, opened.size_bytes(), 0);
        let header = opened.with_bytes(&path, [way], parse).unwrap();
        assert!(header.size_bytes as u64 > FIRST_READ_BYTES);
        (header.tensors, header.size_bytes)
    });
    assert_eq!(headers[0], headers[1]);
    assert_eq!(headers[0], headers[2]);
    // What is truly too short is so in every way.
    let bytes = std::fs::read(&path).unwrap();
    directory.write("model.gguf", &bytes[..bytes.len() - 1]);
    let opened = Opened::open(&path).unwrap();
    for way in Access::ALL {
        let parse = |bytes: &[u8]| parse(&path, bytes, opened.size_bytes(), 0);
        let error = opened.with_bytes(&path, [way], parse).err().unwrap();
        assert_eq!(error.code(), ErrorCode::Truncated, "{way:?}: {error}");
    }
}

#[test]
fn every_truncation_is_reported_as_one() {
    let bytes = model().bytes();
    for length in 0..bytes.len() {
        let error = parse_bytes(&bytes[..length]).err().expect("a truncated file must be refused");
        assert_eq!(error.code(), ErrorCode::Truncated, "cut at {length}: {error}");
    }
    assert!(parse_bytes(&bytes).is_ok());
}

#[test]
fn random_damage_never_panics_and_never_yields_an_extent_outside_of_the_file() {
    let original = model().text("general.type", "model").alignment(64).bytes();
    // Damage in tensor data changes nothing; keep to the header.
    let header_bytes = parse_bytes(&original).unwrap().tensors[0].offset as usize;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut accepted = 0;
    for _ in 0..40_000 {
        let mut bytes = original.clone();
        for _ in 0..=random(4) {
            // Small, large and sign-flipping numbers reach further than random ones.
            let value = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
            bytes[random(header_bytes)] = value;
        }
        let Ok(header) = parse_bytes(&bytes) else { continue };
        accepted += 1;
        for tensor in &header.tensors {
            assert!(tensor.offset + tensor.size_bytes <= bytes.len() as u64);
        }
    }
    assert!(accepted > 100, "the damage is too coarse to test what passes: {accepted}");
}

#[test]
fn files_that_cannot_be_opened() {
    let directory = TestDirectory::new();
    let code = |path: &Path| Gguf::open(&[path.to_owned()]).unwrap_err().code();
    assert_eq!(Gguf::open(&[]).unwrap_err().code(), ErrorCode::InvalidArgument);
    assert_eq!(code(directory.path()), ErrorCode::Open);
    assert_eq!(code(&directory.write("empty.gguf", "")), ErrorCode::Truncated);

    let missing = directory.path().join("missing.gguf");
    let error = Gguf::open(std::slice::from_ref(&missing)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Open);
    assert!(error.message().contains(&missing.display().to_string()), "{error}");
    assert!(error.message().contains("No such file"), "{error}");
}

/// Writes part `number` of `count` with one tensor of its own, and returns its path.
fn write_part(directory: &TestDirectory, number: u16, count: u16, tensor: &str) -> PathBuf {
    let path = directory.path().join(format!("toy-{:05}-of-{count:05}.gguf", number + 1));
    GgufWriter::new()
        .pair("split.no", 2, &number.to_le_bytes())
        .pair("split.count", 2, &count.to_le_bytes())
        .pair("split.tensors.count", 5, &i32::from(count).to_le_bytes())
        .text("general.architecture", if number == 0 { "toy" } else { "ignored" })
        .zeros(tensor, F32, &[8])
        .write(&path);
    path
}

#[track_caller]
fn assert_open_refused(paths: &[PathBuf], code: ErrorCode, words: &[&str]) {
    let error = Gguf::open(paths).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.message().contains(word), "'{word}' is missing in: {error}");
    }
}

#[test]
fn a_split_is_found_from_its_first_part_or_listed() {
    let directory = TestDirectory::new();
    let parts: Vec<PathBuf> =
        ["a", "b", "c"].iter().zip(0..).map(|(name, number)| write_part(&directory, number, 3, name)).collect();
    for paths in [&parts[..1], &parts[..]] {
        let gguf = Gguf::open(paths).unwrap();
        let found: Vec<&PathBuf> = gguf.files().iter().map(|file| &file.path).collect();
        assert_eq!(found, parts.iter().collect::<Vec<_>>());
        let places: Vec<(&str, usize)> =
            gguf.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.file)).collect();
        assert_eq!(places, [("a", 0), ("b", 1), ("c", 2)]);
        assert_eq!((gguf.find("c"), gguf.model_bytes()), (Some(2), 96));
        assert_eq!(gguf.hyper_parameters().architecture, "toy");
    }
}

#[test]
fn splits_that_do_not_fit_together() {
    let directory = TestDirectory::new();
    let first = write_part(&directory, 0, 2, "a");
    assert_open_refused(std::slice::from_ref(&first), ErrorCode::Open, &["toy-00002-of-00002.gguf", "No such file"]);

    let second = write_part(&directory, 1, 2, "b");
    let open = |paths: &[&PathBuf]| paths.iter().map(|path| (*path).clone()).collect::<Vec<_>>();
    assert_open_refused(&open(&[&second]), ErrorCode::Format, &["part 2 of 2", "first part"]);
    assert_open_refused(&open(&[&second, &first]), ErrorCode::Format, &["part 2 of 2 where part 1"]);
    assert_open_refused(&open(&[&first, &first]), ErrorCode::Format, &["part 1 of 2 where part 2"]);
    assert_open_refused(&open(&[&first, &second, &second]), ErrorCode::Format, &["one of 2 parts", "3"]);

    let stranger = write_part(&directory, 1, 4, "b");
    assert_open_refused(&open(&[&first, &stranger]), ErrorCode::Format, &["one of 4 parts"]);
    let whole = directory.path().join("whole.gguf");
    model().write(&whole);
    assert_open_refused(&open(&[&whole, &whole]), ErrorCode::Format, &["whole model"]);

    write_part(&directory, 1, 2, "a");
    assert_open_refused(&open(&[&first]), ErrorCode::Format, &["'a'", "also in", "00001-of-00002"]);
}

#[test]
fn split_keys_that_contradict_each_other() {
    let split = |number: u32, count: u32| GgufWriter::new().u32("split.no", number).u32("split.count", count);
    assert!(parse_bytes(&split(0, 0).bytes()).is_ok(), "0 means not split");
    assert_refused(&split(3, 3), ErrorCode::Format, &["split.no is 3"]);
    assert_refused(&split(0, 1 << 16), ErrorCode::Format, &["split.count is 65536"]);
    assert_refused(&GgufWriter::new().u32("split.count", 2), ErrorCode::Format, &["split.no is missing"]);

    let directory = TestDirectory::new();
    let path = directory.path().join("short.gguf");
    split(0, 1).u32("split.tensors.count", 5).zeros("a", F32, &[1]).write(&path);
    assert_open_refused(&[path], ErrorCode::Format, &["promises 5 tensors"]);
}
