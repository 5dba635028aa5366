//! Hostile model files, as `tests/corpus.rs` tries those that are kept.

#![no_main]

#[path = "../../tests/common/hostile.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostile::try_files(data));
