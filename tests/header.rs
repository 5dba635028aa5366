//! The committed header is what cbindgen makes of the sources.

use std::path::Path;

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is well-formed");
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi/library.rs"))
        .with_src(root.join("src/ffi/log.rs"))
        .with_src(root.join("src/ffi/model.rs"))
        .with_src(root.join("src/ffi/discover.rs"))
        .with_src(root.join("src/ffi/fetch.rs"))
        .with_src(root.join("src/ffi/copy.rs"))
        .generate()
        .expect("the sources parse");
    let mut text = Vec::new();
    bindings.write(&mut text);
    // What Rust's safety sections demand is for C readers the contract of the arguments, which doxygen knows by its commands.
    String::from_utf8(text).expect("the header is UTF-8").replace("/// # Safety\n", "")
}

#[test]
fn the_committed_header_is_current() {
    let committed = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("include/hypura.h")).unwrap();
    assert!(committed == generate(), "include/hypura.h is not what the sources say: run `make header` and commit it");
}

#[test]
#[ignore = "writes include/hypura.h; run by `make header`"]
fn regenerate() {
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("include/hypura.h"), generate()).unwrap();
}
