use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::*;
use crate::common::TestDirectory;
use crate::common::gguf_writer::GgufWriter;
use crate::error::ErrorCode;

const F32: u32 = 0;
const WANTED: Wanted<'_> = Wanted { name: "blk.0.ffn_up.weight", ggml_type: F32, size_bytes: 64 * 64 * 4 };

/// A model with a resident tensor in front of the wanted one, whose bytes are all `fill`.
fn model(fill: u8) -> GgufWriter {
    GgufWriter::new().zeros("token_embd.weight", F32, &[64, 3]).tensor(
        WANTED.name,
        F32,
        &[64, 64],
        vec![fill; WANTED.size_bytes as usize],
    )
}

/// Opens a file the way loaders do.
fn open(path: &Path) -> File {
    let file = File::open(path).unwrap();
    // SAFETY: the descriptor is open, and only a flag of it changes.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) }, 0);
    file
}

/// What is open of a directory: other tests of this process have files open, too.
fn open_in(directory: &TestDirectory) -> Vec<OpenFile> {
    open_files::open_ggufs().into_iter().filter(|file| file.path.starts_with(directory.path())).collect()
}

fn found_in(directory: &TestDirectory) -> Result<Option<Found>> {
    find_among(&open_in(directory), WANTED)
}

#[test]
fn the_model_that_is_open_is_found_until_it_is_closed() {
    let directory = TestDirectory::new();
    let path = directory.path().join("a.gguf");
    model(1).write(&path);
    assert!(found_in(&directory).unwrap().is_none());
    let own = File::open(&path).unwrap();
    assert!(found_in(&directory).unwrap().is_none(), "what closes on exec is not a loader's");
    let mut loaders = open(&path);
    let second = open(&path);
    loaders.read_exact(&mut [0; 9]).unwrap();
    let found = found_in(&directory).unwrap().unwrap();
    assert_eq!(found.gguf.files()[0].path, path);
    assert_eq!(std::io::Seek::stream_position(&mut loaders).unwrap(), 9, "a loader's place in its file stays");
    drop(loaders);
    assert!(found.files[0].is_open(), "it is open twice");
    drop(second);
    assert!(!found.files[0].is_open());
    drop(own);
}

#[test]
fn what_is_not_certain_is_not_found() {
    let directory = TestDirectory::new();
    let (first, second) = (directory.path().join("a.gguf"), directory.path().join("b.gguf"));
    model(1).write(&first);
    let _first = open(&first);
    let refusal = |wanted| find_among(&open_in(&directory), wanted).unwrap_err();
    for wanted in [
        Wanted { name: "blk.1.ffn_up.weight", ..WANTED },
        Wanted { ggml_type: 1, ..WANTED },
        Wanted { size_bytes: WANTED.size_bytes + 4, ..WANTED },
    ] {
        let error = refusal(wanted);
        assert_eq!(error.code(), ErrorCode::Uncertain);
        assert!(error.message().contains("a.gguf has no such tensor"), "{error}");
    }
    model(2).write(&second);
    let _second = open(&second);
    let error = refusal(WANTED);
    assert_eq!(error.code(), ErrorCode::Uncertain);
    assert!(error.message().contains("a.gguf") && error.message().contains("b.gguf"), "{error}");
}

#[test]
fn another_model_that_is_open_does_no_harm() {
    let directory = TestDirectory::new();
    let (first, second) = (directory.path().join("a.gguf"), directory.path().join("projector.gguf"));
    model(1).write(&first);
    GgufWriter::new().zeros("v.blk.0.ffn_up.weight", F32, &[64, 64]).write(&second);
    let _open = [open(&first), open(&second), open(&directory.write("damaged.gguf", b"GGUF and no more"))];
    assert_eq!(found_in(&directory).unwrap().unwrap().gguf.files()[0].path, first);
}

#[test]
fn a_file_that_was_replaced_or_deleted_is_not_found() {
    let directory = TestDirectory::new();
    let path = directory.path().join("a.gguf");
    model(1).write(&path);
    let _open = open(&path);
    let replacement = directory.path().join("b.gguf");
    model(2).write(&replacement);
    std::fs::rename(&replacement, &path).unwrap();
    assert_eq!(found_in(&directory).unwrap_err().code(), ErrorCode::Uncertain);
}

#[test]
fn a_split_model_is_found_when_all_its_parts_are_open() {
    let directory = TestDirectory::new();
    let part = |number: u32| GgufWriter::new().u32("split.count", 2).u32("split.no", number);
    let paths = [1, 2].map(|number| directory.path().join(format!("a-0000{number}-of-00002.gguf")));
    part(0).zeros("token_embd.weight", F32, &[64, 3]).write(&paths[0]);
    part(1).zeros(WANTED.name, F32, &[64, 64]).write(&paths[1]);
    let _first = open(&paths[0]);
    assert_eq!(found_in(&directory).unwrap_err().code(), ErrorCode::Uncertain);
    let second = open(&paths[1]);
    let found = found_in(&directory).unwrap().unwrap();
    assert_eq!(found.gguf.files().len(), 2);
    drop(second);
    assert!(!found.files.iter().all(OpenFile::is_open));
}

/// Pages of a mapping that are in memory.
fn resident_pages(mapping: &[u8]) -> usize {
    let mut pages = vec![0_u8; mapping.len().div_ceil(crate::hw::page_size())];
    // SAFETY: the mapping starts at a page, and there is a byte for each of its pages.
    let status = unsafe { libc::mincore(mapping.as_ptr().cast_mut().cast(), mapping.len(), pages.as_mut_ptr().cast()) };
    assert_eq!(status, 0);
    pages.iter().filter(|&&page| page & 1 == 1).count()
}

#[test]
fn a_mapping_of_the_right_place_agrees_and_gives_its_pages_back() {
    let directory = TestDirectory::new();
    let path = directory.path().join("a.gguf");
    let size_bytes = 64 * 64 * 4 * 1024;
    GgufWriter::new().zeros("t", F32, &[64, 64, 1024]).write(&path);
    let opened = File::open(&path).unwrap();
    opened.sync_all().unwrap(); // what is not written yet stays in the page cache
    let gguf = Gguf::open(&[path]).unwrap();
    let (file, tensor) = (&gguf.files()[0], &gguf.tensors()[0]);
    // SAFETY: nothing writes to the file while it is mapped.
    let mapping = unsafe { memmap2::MmapOptions::new().populate().map(&opened) }.unwrap();
    let bytes = &mapping[tensor.offset as usize..][..size_bytes];
    assert!(resident_pages(&mapping) >= size_bytes / 4096);
    assert_eq!(agree(file, tensor, bytes).unwrap(), Source::Mapped);
    // The system keeps pages in blocks of up to some MiB, and those at the ends are in use.
    let left = resident_pages(&mapping);
    assert!(left <= size_bytes / 4096 / 2, "{left} pages are left");
    assert!(bytes.iter().all(|&byte| byte == 0), "the bytes are the file's still");
}

#[test]
fn a_copy_agrees_when_it_is_equal() {
    let directory = TestDirectory::new();
    let path = directory.path().join("a.gguf");
    model(1).write(&path);
    let gguf = Gguf::open(std::slice::from_ref(&path)).unwrap();
    let (file, tensor) = (&gguf.files()[0], &gguf.tensors()[1]);
    let mut copy = vec![1; tensor.size_bytes as usize];
    assert_eq!(agree(file, tensor, &copy).unwrap(), Source::Copied);
    assert_eq!(agree(file, tensor, &copy[1..]).unwrap_err().code(), ErrorCode::Uncertain);
    *copy.last_mut().unwrap() = 0;
    assert_eq!(agree(file, tensor, &copy).unwrap_err().code(), ErrorCode::Uncertain);
    // A mapping of another place is no proof, but equal bytes are.
    let other = directory.path().join("b.gguf");
    model(1).write(&other);
    // SAFETY: nothing writes to the file while it is mapped.
    let mapping = unsafe { memmap2::Mmap::map(&File::open(&other).unwrap()) }.unwrap();
    let bytes = &mapping[tensor.offset as usize..][..tensor.size_bytes as usize];
    assert_eq!(agree(file, tensor, bytes).unwrap(), Source::Copied);
    model(1).write(&path);
    assert_eq!(agree(file, tensor, bytes).unwrap(), Source::Copied, "written to, with what it held");
    model(2).write(&path);
    assert_eq!(agree(file, tensor, bytes).unwrap_err().code(), ErrorCode::Changed);
}
