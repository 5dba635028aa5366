#[test]
fn show() {
    println!(
        "{}",
        bindgen::Builder::default()
            .header("include/hypura.h")
            .allowlist_item("(?i)hypura_.*")
            .prepend_enum_name(false)
            .generate()
            .unwrap()
    );
}
