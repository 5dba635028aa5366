#[test]
fn show() {
    println!(
        "{}",
        bindgen::Builder::default()
            .header("include/hypura.h")
            .allowlist_file(".*hypura\\.h")
            .prepend_enum_name(false)
            .generate()
            .unwrap()
    );
}
