//! Hosts in C and C++: the header compiles alone and without a warning, and a program that uses all of it works.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Model, TestDirectory, expert_model, skip};

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
const SANITIZERS: [&str; 3] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Language {
    C11,
    C17,
    Cpp17,
    Cpp20,
}

impl Language {
    fn is_cpp(self) -> bool {
        matches!(self, Self::Cpp17 | Self::Cpp20)
    }

    fn standard(self) -> &'static str {
        match self {
            Self::C11 => "-std=c11",
            Self::C17 => "-std=c17",
            Self::Cpp17 => "-std=c++17",
            Self::Cpp20 => "-std=c++20",
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The system's compiler as the `cc` crate finds it (CC and CXX respected); `None`, said loudly, when there is none.
fn compiler(language: Language) -> Option<Command> {
    let system = if cfg!(target_os = "macos") { "apple-darwin" } else { "unknown-linux-gnu" };
    let target = format!("{}-{system}", std::env::consts::ARCH);
    let found = cc::Build::new()
        .cpp(language.is_cpp())
        .target(&target)
        .host(&target)
        .opt_level(0)
        .no_default_flags(true)
        .cargo_metadata(false)
        .try_get_compiler();
    let mut command = match found {
        Ok(tool) if Command::new(tool.path()).arg("--version").output().is_ok() => tool.to_command(),
        _ => {
            skip(&format!("there is no compiler for {language:?}; on Debian and Ubuntu: apt-get install gcc g++"));
            return None;
        }
    };
    // A source file with the ending `.c` is C even to g++.
    command.args(["-x", if language.is_cpp() { "c++" } else { "c" }, language.standard()]);
    command.args(WARNINGS).arg("-I").arg(root().join("include"));
    Some(command)
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[track_caller]
fn expect_success(command: &mut Command) -> String {
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_header_alone_compiles_without_a_warning() {
    let directory = TestDirectory::new();
    for language in [Language::C11, Language::C17, Language::Cpp17, Language::Cpp20] {
        let Some(mut command) = compiler(language) else { continue };
        command.arg("-c").arg(root().join("tests/c/header_alone.c"));
        expect_success(command.arg("-o").arg(directory.path().join("header_alone.o")));
    }
}

/// The shared library that was built along with this test: in the same directory.
fn shared_library() -> PathBuf {
    let name = if cfg!(target_os = "macos") { "libhypura.dylib" } else { "libhypura.so" };
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.is_file(), "cargo builds the shared library with the tests");
    path
}

/// Puts the shared library where its users look for it: under its SONAME, which carries the version of the ABI.
fn install(directory: &Path) {
    let version = hypura::ffi::HYPURA_ABI_VERSION;
    for name in ["libhypura.so".to_owned(), format!("libhypura.so.{version}"), format!("libhypura.{version}.dylib")] {
        std::os::unix::fs::symlink(shared_library(), directory.join(name)).unwrap();
    }
}

/// Compiles and links a program with the shared library.
fn build(language: Language, source: &Path, flags: &[&str], directory: &Path, program: &Path) -> Option<Command> {
    let mut command = compiler(language)?;
    // What the library is must not be guessed from the language.
    command.args(flags).arg(source).args(["-x", "none"]).arg("-L").arg(directory).arg("-lhypura");
    command.arg(format!("-Wl,-rpath,{}", directory.display())).arg("-o").arg(program);
    Some(command)
}

/// Whether programs that are built with sanitizers, linked with the shared library, work here.
fn sanitizers_work(language: Language, directory: &Path) -> bool {
    let source = directory.join("probe.c");
    let program = directory.join("probe");
    std::fs::write(&source, "#include \"hypura.h\"\nint main(void) { return hypura_abi_version() == 0; }\n").unwrap();
    let built = build(language, &source, &SANITIZERS, directory, &program);
    built.is_some_and(|mut command| run(&mut command).status.success())
        && run(&mut Command::new(&program)).status.success()
}

fn streamed_bytes_checksum(model: &Model) -> String {
    let session = model.session(&[]).unwrap();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for tensor in model.streamed(&session) {
        for expert in 0..model.expert_count(tensor) {
            for byte in model.block(tensor, expert) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    format!("{hash:016x}\n")
}

fn run_expert_bytes(language: Language, sanitized: bool) {
    let directory = TestDirectory::new();
    install(directory.path());
    let mut flags: &[&str] = &[];
    if sanitized {
        if !sanitizers_work(language, directory.path()) {
            return skip("programs with address sanitizer cannot be built or run here");
        }
        flags = &SANITIZERS;
    }
    let program = directory.path().join("expert_bytes");
    let source = root().join("tests/c/expert_bytes.c");
    let Some(mut command) = build(language, &source, flags, directory.path(), &program) else { return };
    expect_success(&mut command);

    for part_count in [1, 3] {
        let model = expert_model(TestDirectory::new(), 97, part_count);
        let mut command = Command::new(&program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("HYPURA")) {
                command.env_remove(name);
            }
        }
        let printed = expect_success(command.args(&model.paths));
        assert_eq!(printed, streamed_bytes_checksum(&model));
    }
}

#[test]
fn a_host_in_c_gets_every_experts_bytes() {
    run_expert_bytes(Language::C11, false);
}

#[test]
fn a_host_in_c_under_sanitizers_gets_every_experts_bytes() {
    run_expert_bytes(Language::C11, true);
}

#[test]
fn a_host_in_cpp_gets_every_experts_bytes() {
    run_expert_bytes(Language::Cpp17, false);
}
