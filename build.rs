//! Names the shared library by the version of its ABI, so that a host finds the one that it was built for.

const ABI: &str = "src/ffi/library.rs";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={ABI}");
    let source = std::fs::read_to_string(ABI).expect(ABI);
    let version = source.lines().find_map(|line| line.strip_prefix("pub const HYPURA_ABI_VERSION: u32 = "));
    let version = version.and_then(|rest| rest.strip_suffix(';')).expect("src/ffi/library.rs names the ABI's version");
    match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux") => println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libhypura.so.{version}"),
        Ok("macos") => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libhypura.{version}.dylib");
        }
        _ => {}
    }
}
