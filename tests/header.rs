//! The committed header is what cbindgen makes of the sources.

use std::path::Path;

/// What the header is made of, in its order.
const SOURCES: [&str; 8] = ["library", "log", "model", "plan", "speed", "discover", "fetch", "copy"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml is well-formed");
    let sources = SOURCES.map(|name| root().join(format!("src/ffi/{name}.rs")));
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), cbindgen::Builder::with_src);
    let bindings = builder.generate().expect("the sources parse");
    let mut text = Vec::new();
    bindings.write(&mut text);
    // What Rust's safety sections demand is for C readers the contract of the arguments, which doxygen knows by its commands.
    String::from_utf8(text).expect("the header is UTF-8").replace("/// # Safety\n", "")
}

#[test]
fn the_committed_header_is_current() {
    let committed = std::fs::read_to_string(root().join("include/hypura.h")).unwrap();
    assert!(committed == generate(), "include/hypura.h is not what the sources say: run `make header` and commit it");
}

#[test]
fn the_header_has_every_function_that_is_exported() {
    let header = generate();
    let declarations: String = header.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut exported = 0;
    for entry in std::fs::read_dir(root().join("src/ffi")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for after in source.split("#[unsafe(no_mangle)]").skip(1) {
            let name =
                after.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).expect("a function follows").0;
            assert!(
                declarations.contains(&format!("{name}(")),
                "{name} is exported, but its file is not among {SOURCES:?}"
            );
            exported += 1;
        }
    }
    assert!(exported > 40, "{exported} exported functions were found");
}

#[test]
#[ignore = "writes include/hypura.h; run by `make header`"]
fn regenerate() {
    std::fs::write(root().join("include/hypura.h"), generate()).unwrap();
}
