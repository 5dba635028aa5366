//! What fuzzing has found worth keeping (`make fuzz` adds to it): each file is tried as a model, or as the description of one.

#[path = "common/hostile.rs"]
mod hostile;

use std::path::Path;

#[test]
fn hostile_models_are_errors_and_nothing_else() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/gguf");
    let inputs = std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let count = inputs.map(|input| hostile::try_files(&input)).count();
    assert!(count > 50, "the corpus has gone");
}
