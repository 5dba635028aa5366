//! The C ABI from the outside: what a compiler reads in the header is what the Rust side has, the shared library exports
//! just that, and the promises at the top of the header hold when a host breaks its own.

mod common;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;
use std::ptr::{null, null_mut};

use common::host::{Host, overwrite};
use common::{TestDirectory, expert_model, skip, within};
use hypura::ffi::*;
use hypura::index::ExpertId;

/// Text without white space, so that two ways of formatting it compare equal.
fn packed(text: &str) -> String {
    text.split_whitespace().collect()
}

/// What libclang makes of the header, as Rust text without white space. `None`, said loudly, when there is no libclang.
fn read_header(language: &str) -> Option<String> {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/hypura.h");
    let generated = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header(header.to_str().unwrap())
            .clang_args(language.split(' '))
            .allowlist_file(".*hypura\\.h")
            .prepend_enum_name(false)
            .generate_comments(false)
            .formatter(bindgen::Formatter::None)
            .generate()
    });
    match generated {
        Ok(bindings) => Some(packed(&bindings.expect("the header has no errors").to_string())),
        Err(panic) => {
            let reason = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            assert!(reason.contains("libclang"), "bindgen panicked: {reason}");
            skip(
                "there is no libclang; `sh scripts/tools.sh` installs one, and `eval \"$(sh scripts/tools.sh --env)\"` finds it",
            );
            None
        }
    }
}

const LANGUAGES: [&str; 2] = ["-x c -std=c11", "-x c++ -std=c++17"];

/// The pieces of a text between two marks.
fn pieces<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).filter_map(move |rest| rest.split_once(end).map(|(piece, _)| piece))
}

/// Sizes, alignments and offsets by what they are of, such as `Size of hypura_plan` without its spaces.
type Layout = BTreeMap<String, usize>;

macro_rules! layout_of {
    ($layout:ident, $type:ident as $name:literal { $($field:ident),* $(,)? }) => {
        $layout.insert(format!("Sizeof{}", $name), size_of::<$type>());
        $layout.insert(format!("Alignmentof{}", $name), align_of::<$type>());
        $($layout.insert(format!("Offsetoffield:{}::{}", $name, stringify!($field)), offset_of!($type, $field));)*
        // Does not compile when a field is missing in the list.
        let _ = |all: &$type| { let $type { $($field: _),* } = all; };
    };
}

fn layout_in_rust() -> Layout {
    let mut layout = Layout::new();
    layout_of!(layout, HypuraTensorInfo as "hypura_tensor_info" {
        size, name, shape, ggml_type, file, offset, size_bytes, expert_count,
    });
    layout_of!(layout, HypuraPlan as "hypura_plan" {
        size, mode, streamed_tensor_count, streamed_bytes, minimum_bytes, maximum_bytes,
    });
    layout_of!(layout, HypuraBlock as "hypura_block" { expert, data });
    layout
}

#[test]
fn structs_have_the_same_layout_in_c_and_rust() {
    for language in LANGUAGES {
        let Some(header) = read_header(language) else { return };
        // Lines such as ["Size of hypura_plan"][::std::mem::size_of::<hypura_plan>() - 40usize];
        let in_c: Layout = pieces(&header, "[\"", "usize];")
            .map(|line| {
                let (what, rest) = line.split_once("\"]").expect(line);
                (what.to_owned(), rest.rsplit_once('-').expect(line).1.parse().expect(line))
            })
            .collect();
        assert_eq!(in_c, layout_in_rust(), "{language}");
    }
}

macro_rules! values_of {
    ($values:ident, $prefix:literal, $type:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        $($values.insert(format!("{}_{}", $prefix, $name), $type::$variant as i64);)*
        // Does not compile when a variant is missing in the list.
        let _ = |value: $type| match value { $($type::$variant => ()),* };
        assert_eq!(size_of::<$type>(), size_of::<i32>());
    };
}

fn values_in_rust() -> BTreeMap<String, i64> {
    let mut values = BTreeMap::from([
        ("HYPURA_ABI_VERSION".to_owned(), i64::from(HYPURA_ABI_VERSION)),
        ("HYPURA_VERSION_MAJOR".to_owned(), i64::from(HYPURA_VERSION_MAJOR)),
        ("HYPURA_VERSION_MINOR".to_owned(), i64::from(HYPURA_VERSION_MINOR)),
        ("HYPURA_VERSION_PATCH".to_owned(), i64::from(HYPURA_VERSION_PATCH)),
    ]);
    values_of!(values, "HYPURA_STATUS", HypuraStatus {
        Ok = "OK", InvalidArgument = "INVALID_ARGUMENT", Config = "CONFIG", Open = "OPEN", Format = "FORMAT",
        Truncated = "TRUNCATED", Io = "IO", Changed = "CHANGED", Budget = "BUDGET", Verify = "VERIFY", Panic = "PANIC",
        Version = "VERSION", Resource = "RESOURCE", Uncertain = "UNCERTAIN",
    });
    values_of!(values, "HYPURA_SETTING", HypuraSetting { Auto = "AUTO", Off = "OFF", Stream = "STREAM" });
    values_of!(values, "HYPURA_MODE", HypuraMode {
        FullResident = "FULL_RESIDENT", ExpertStreaming = "EXPERT_STREAMING", DenseStreaming = "DENSE_STREAMING",
        TableStreaming = "TABLE_STREAMING",
    });
    values_of!(values, "HYPURA_PLACE", HypuraPlace { Device = "DEVICE", Ram = "RAM", Spare = "SPARE", Remote = "REMOTE" });
    values_of!(values, "HYPURA_LOG_LEVEL", HypuraLogLevel {
        Error = "ERROR", Warn = "WARN", Info = "INFO", Debug = "DEBUG", Trace = "TRACE",
    });
    values
}

#[test]
fn constants_have_the_same_values_in_c_and_rust() {
    for language in LANGUAGES {
        let Some(header) = read_header(language) else { return };
        let in_c: BTreeMap<String, i64> = pieces(&header, "pubconst", ";")
            .map(|line| {
                let (name, rest) = line.split_once(':').expect(line);
                (name.to_owned(), rest.rsplit_once('=').expect(line).1.parse().expect(line))
            })
            .collect();
        assert_eq!(in_c, values_in_rust(), "{language}");
        for name in ["hypura_status", "hypura_setting", "hypura_mode", "hypura_place", "hypura_log_level"] {
            assert!(header.contains(&format!("pubtype{name}=i32;")), "{name} is not an int32_t in {language}");
        }
    }
}

/// The numbers are part of the ABI: a released one never changes, whatever the header and the library agree on.
#[test]
fn released_codes_keep_their_numbers() {
    let values = values_in_rust();
    let released = [
        ("HYPURA_ABI_VERSION", 1),
        ("HYPURA_STATUS_OK", 0),
        ("HYPURA_STATUS_INVALID_ARGUMENT", 1),
        ("HYPURA_STATUS_CONFIG", 2),
        ("HYPURA_STATUS_OPEN", 3),
        ("HYPURA_STATUS_FORMAT", 4),
        ("HYPURA_STATUS_TRUNCATED", 5),
        ("HYPURA_STATUS_IO", 6),
        ("HYPURA_STATUS_CHANGED", 7),
        ("HYPURA_STATUS_BUDGET", 8),
        ("HYPURA_STATUS_VERIFY", 9),
        ("HYPURA_STATUS_PANIC", 10),
        ("HYPURA_STATUS_VERSION", 11),
        ("HYPURA_STATUS_RESOURCE", 12),
        ("HYPURA_STATUS_UNCERTAIN", 13),
        ("HYPURA_MODE_FULL_RESIDENT", 0),
        ("HYPURA_MODE_EXPERT_STREAMING", 1),
        ("HYPURA_MODE_DENSE_STREAMING", 2),
    ];
    for (name, value) in released {
        assert_eq!(values[name], value, "{name}");
    }
}

macro_rules! signatures {
    ($($name:ident: fn($($argument:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// The functions by name, with their types as written below, which the compiler has checked.
        fn signatures_in_rust() -> BTreeMap<String, String> {
            // Safe functions coerce to this type too; only what crosses the ABI counts.
            $(let _: unsafe extern "C" fn($($argument),*) $(-> $result)? = $name;)*
            BTreeMap::from([$((
                stringify!($name).to_owned(),
                packed(concat!("(", $(stringify!($argument), ",",)* ")", $("->", stringify!($result))?)),
            )),*])
        }
    };
}

signatures! {
    hypura_abi_version: fn() -> u32;
    hypura_version: fn() -> *const c_char;
    hypura_status_name: fn(i32) -> *const c_char;
    hypura_setting_from_environment: fn(*mut i32, *mut c_char, usize) -> i32;
    hypura_log_set: fn(HypuraLogCallback, *mut c_void);
    hypura_model_open: fn(
        *const *const c_char, usize, *const *const c_char, *mut *mut HypuraModel, *mut c_char, usize
    ) -> i32;
    hypura_model_free: fn(*mut HypuraModel);
    hypura_model_tensor_count: fn(*const HypuraModel) -> usize;
    hypura_model_tensor_info: fn(*const HypuraModel, usize, *mut HypuraTensorInfo, *mut c_char, usize) -> i32;
    hypura_model_find_tensor: fn(*const HypuraModel, *const c_char, *mut usize, *mut c_char, usize) -> i32;
    hypura_model_override: fn(*mut HypuraModel, *const c_char, u64, *mut c_char, usize) -> i32;
    hypura_model_loaded: fn(*const HypuraModel);
    hypura_model_plan: fn(*mut HypuraModel, *const u8, usize, *mut HypuraPlan, *mut c_char, usize) -> i32;
    hypura_model_is_table: fn(*const HypuraModel, usize) -> bool;
    hypura_model_streams: fn(*const HypuraModel, usize) -> bool;
    hypura_type_define: fn(u32, *const c_char, u64, u64, *mut c_char, usize) -> i32;
    hypura_make_room: fn(u64);
    hypura_model_micro_batch: fn(*const HypuraModel, usize, usize) -> usize;
    hypura_model_next_unmeasured: fn(*const HypuraModel, usize, u64, *mut u32) -> bool;
    hypura_model_set_speed: fn(*const HypuraModel, u32, usize, f64);
    hypura_model_set_remote_speed: fn(*const HypuraModel, f64, f64);
    hypura_model_bind: fn(*const HypuraModel, usize, usize, u64, u64, *mut c_char, usize) -> i32;
    hypura_model_discover: fn(
        *const c_char, u32, u64, *const *const c_char, *mut *mut HypuraModel, *mut c_char, usize
    ) -> i32;
    hypura_model_is_loading: fn(*const HypuraModel) -> bool;
    hypura_model_bind_memory: fn(*const HypuraModel, usize, *const u8, usize, *mut c_char, usize) -> i32;
    hypura_model_read: fn(*const HypuraModel, usize, u64, usize, *mut u8, *mut c_char, usize) -> i32;
    hypura_model_stats_json: fn(*const HypuraModel, *mut c_char, usize, *mut usize, *mut c_char, usize) -> i32;
    hypura_model_plan_json: fn(*const HypuraModel, *mut c_char, usize, *mut usize, *mut c_char, usize) -> i32;
    hypura_model_use_memory: fn(
        *const HypuraModel, HypuraAllocate, HypuraRelease, *mut c_void, *mut c_char, usize
    ) -> i32;
    hypura_copy_budget: fn(*const HypuraModel, u64, u64) -> u64;
    hypura_copy_budget_now: fn(*const HypuraModel, u64, u64, u64) -> u64;
    hypura_copy_note_memory: fn(*const HypuraModel, i64);
    hypura_copy_set_speed: fn(*const HypuraModel, f64, f64);
    hypura_copy_add: fn(*const HypuraModel, usize, usize, *mut c_char, usize) -> i32;
    hypura_copy_worth: fn(*const HypuraModel, usize, usize) -> f64;
    hypura_copy_remove: fn(*const HypuraModel, usize, usize, *mut *mut c_void, *mut c_char, usize) -> i32;
    hypura_copy_rescued: fn(*const HypuraModel, usize, usize, *mut c_char, usize) -> i32;
    hypura_fetch_new: fn(*const HypuraModel, *mut *mut HypuraFetch, *mut c_char, usize) -> i32;
    hypura_fetch_begin: fn(*mut HypuraFetch, usize, *const i32, usize, usize, *mut c_char, usize) -> i32;
    hypura_fetch_begin_some: fn(
        *mut HypuraFetch, usize, *const i32, usize, usize, *const i32, usize, *mut c_char, usize
    ) -> i32;
    hypura_fetch_begin_pass: fn(*mut HypuraFetch);
    hypura_fetch_keep: fn(*mut HypuraFetch);
    hypura_fetch_release: fn(*mut HypuraFetch);
    hypura_fetch_rows: fn(*mut HypuraFetch, usize, *const i32, usize, *mut u8, usize, *mut c_char, usize) -> i32;
    hypura_fetch_look_ahead: fn(*mut HypuraFetch, *const f32, usize, usize);
    hypura_fetch_expect: fn(*mut HypuraFetch, usize, *const i32, usize);
    hypura_fetch_next: fn(*mut HypuraFetch, *mut HypuraBlock, usize, *mut usize, *mut c_char, usize) -> i32;
    hypura_fetch_is_ready: fn(*const HypuraFetch) -> bool;
    hypura_fetch_early: fn(
        *mut HypuraFetch, usize, *mut HypuraBlock, usize, *mut usize, *mut c_char, usize
    ) -> i32;
    hypura_fetch_end: fn(*mut HypuraFetch);
    hypura_fetch_free: fn(*mut HypuraFetch);
}

/// The C names of types, in Rust's.
fn in_rust_names(text: &str) -> String {
    let names = [
        ("::std::os::raw::", ""),
        ("::std::option::", ""),
        ("hypura_model_t", "HypuraModel"),
        ("hypura_fetch_t", "HypuraFetch"),
        ("hypura_tensor_info", "HypuraTensorInfo"),
        ("hypura_plan", "HypuraPlan"),
        ("hypura_block", "HypuraBlock"),
        ("hypura_log_callback", "HypuraLogCallback"),
        ("hypura_allocate_callback", "HypuraAllocate"),
        ("hypura_release_callback", "HypuraRelease"),
    ];
    names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[test]
fn functions_have_the_same_signatures_in_c_and_rust() {
    for language in LANGUAGES {
        let Some(header) = read_header(language) else { return };
        let in_c: BTreeMap<String, String> = pieces(&header, "pubfn", ";")
            .map(|line| {
                let (name, rest) = line.split_once('(').expect(line);
                let (arguments, result) = rest.rsplit_once(')').expect(line);
                // An argument is `name:type`; only the types are compared.
                let types: String = arguments
                    .split(',')
                    .filter(|argument| !argument.is_empty())
                    .map(|argument| format!("{},", argument.split_once(':').expect(line).1))
                    .collect();
                (name.to_owned(), in_rust_names(&format!("({types}){result}")))
            })
            .collect();
        assert_eq!(in_c, signatures_in_rust(), "{language}");

        let callback = pieces(&header, "pubtypehypura_log_callback=", ";").next().unwrap();
        // Does not compile when Rust's callback is another one.
        let _ =
            |callback: Option<unsafe extern "C" fn(i32, *const c_char, *mut c_void)>| -> HypuraLogCallback { callback };
        assert_eq!(
            in_rust_names(callback).replace(",>", ">").replace(",)", ")"),
            packed("Option<unsafe extern \"C\" fn(level: i32, message: *const c_char, user_data: *mut c_void)>"),
        );
    }
}

/// What is exported is the ABI and nothing else: a host's own symbols must not be shadowed.
#[test]
#[cfg(target_os = "linux")]
fn the_shared_library_exports_the_functions_of_the_header() {
    let library = std::env::current_exe().unwrap().with_file_name("libhypura.so");
    let output = match std::process::Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output() {
        Ok(output) => output,
        Err(error) => return skip(&format!("nm: {error}; on Debian and Ubuntu: apt-get install binutils")),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let exported: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let expected: Vec<String> = signatures_in_rust().into_keys().collect();
    assert_eq!(exported, expected);
}

#[test]
fn the_library_tells_the_packages_version() {
    // SAFETY: the string is static.
    let version = unsafe { CStr::from_ptr(hypura_version()) };
    assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    assert_eq!(hypura_abi_version(), HYPURA_ABI_VERSION);
}

#[test]
fn outputs_are_written_and_blocks_used_up_only_on_success() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 101, 1);
        let host = Host::new(&model, &["HYPURA_RAM=64M"]);
        assert_eq!(host.begin(&[4, 5, 6], 1), 0);
        let mut block = HypuraBlock { expert: 77, data: null() };
        // SAFETY: NULL is checked.
        let status = unsafe { hypura_fetch_next(host.fetch, &mut block, 1, null_mut(), null_mut(), 0) };
        assert_eq!(status, HypuraStatus::InvalidArgument as i32);
        assert_eq!(block.expert, 77, "a block is written although the call failed");
        let mut delivered = Vec::new();
        loop {
            let (status, experts) = host.next(1);
            assert_eq!(status, 0);
            if experts.is_empty() {
                break;
            }
            delivered.extend(experts);
        }
        delivered.sort_unstable();
        assert_eq!(delivered, [4, 5, 6]);
    });
}

#[test]
fn nothing_is_early_while_delivered_blocks_are_left() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 101, 1);
        let host = Host::new(&model, &["HYPURA_RAM=64M"]);
        // In RAM, so that they are delivered together.
        assert_eq!(host.begin(&[4, 5, 6], 1), 0);
        while !host.next(8).1.is_empty() {}
        let early = || {
            let (mut block, mut count) = (HypuraBlock { expert: 77, data: null() }, 77);
            // SAFETY: the fetch is the host's, and there is room for one block.
            let status =
                unsafe { hypura_fetch_early(host.fetch, host.tensor, &mut block, 1, &mut count, null_mut(), 0) };
            assert_eq!(status, 0);
            count
        };
        assert_eq!(host.begin(&[4, 5, 6], 1), 0);
        assert_eq!(early(), 1);
        assert_eq!(host.next(1).1.len(), 1);
        assert_eq!(early(), 0, "two are left, and stay valid");
        assert_eq!(host.next(8).1.len(), 2);
        assert!(host.next(8).1.is_empty());
    });
}

#[test]
fn bytes_in_memory_are_those_of_the_file_or_refused() {
    let model = expert_model(TestDirectory::new(), 109, 1);
    let host = Host::new(&model, &["HYPURA_RAM=64M"]);
    let experts = 0..model.expert_count(host.tensor);
    let mut bytes: Vec<u8> = experts.flat_map(|expert| model.block(host.tensor, ExpertId(expert))).copied().collect();
    let bind = |bytes: &[u8], count| {
        let mut error = [0 as c_char; 512];
        // SAFETY: the model is open, there are at least `count` bytes, and the error has its size.
        let status = unsafe {
            hypura_model_bind_memory(host.model, host.tensor, bytes.as_ptr(), count, error.as_mut_ptr(), error.len())
        };
        // SAFETY: the text ends with a NUL.
        (status, unsafe { CStr::from_ptr(error.as_ptr()) }.to_str().unwrap().to_owned())
    };
    assert_eq!(bind(&bytes, bytes.len()), (0, String::new()));
    assert_eq!(bind(&bytes, bytes.len() - 1).0, HypuraStatus::Uncertain as i32);
    assert_eq!(bind(&bytes, 0).0, HypuraStatus::InvalidArgument as i32);
    *bytes.last_mut().unwrap() ^= 1;
    let (status, error) = bind(&bytes, bytes.len());
    assert_eq!(status, HypuraStatus::Uncertain as i32);
    assert!(error.contains("blk.0.ffn_up_exps.weight is not what is in"), "{error}");
    // SAFETY: NULL is checked.
    let status = unsafe { hypura_model_bind_memory(host.model, host.tensor, null(), 8, null_mut(), 0) };
    assert_eq!(status, HypuraStatus::InvalidArgument as i32);
    // SAFETY: the model is open, NULL is allowed.
    let is_loading = unsafe { (hypura_model_is_loading(host.model), hypura_model_is_loading(null())) };
    assert_eq!(is_loading, (false, false), "its files were named, not found");
}

#[test]
fn a_failed_verification_is_not_followed_by_the_blocks() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 103, 1);
        let host = Host::new(&model, &["HYPURA_RAM=64M", "HYPURA_VERIFY=1", "HYPURA_PREFETCH=off"]);
        assert_eq!(host.begin(&[1, 2], 1), 0);
        while !host.next(8).1.is_empty() {}
        overwrite(&model);
        // Both are in RAM: nothing is read that could notice the change before the verification does.
        assert_eq!(host.begin(&[1, 2], 1), 0);
        for _ in 0..3 {
            let (status, experts) = host.next(8);
            assert!(experts.is_empty() && status != 0, "status {status} with the blocks of experts {experts:?}");
        }
        assert_ne!(host.begin(&[1, 2], 1), 0);
    });
}

#[test]
fn ids_that_do_not_divide_among_the_tokens_are_refused() {
    within(300, || {
        let model = expert_model(TestDirectory::new(), 107, 1);
        let mut host = Host::new(&model, &["HYPURA_RAM=64M"]);
        assert_eq!(host.begin(&[1, 2, 3, 4, 5], 2), HypuraStatus::InvalidArgument as i32);
        assert_eq!(host.begin(&[1, 2, 3, 4, 5], 0), HypuraStatus::InvalidArgument as i32);
        assert_eq!(host.begin(&[1, 2, 3, 4], 2), 0);
        assert_eq!(host.begin(&[], 0), 0);
        let dense = expert_model(TestDirectory::new(), 107, 1);
        host.tensor = dense.gguf.find("output.weight").unwrap();
        assert_eq!(host.begin(&[1], 1), HypuraStatus::InvalidArgument as i32);
    });
}
