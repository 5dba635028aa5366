//! What settings mean, and which are refused.

use super::*;
use crate::common::TestDirectory;

fn config(pairs: &[(&str, &str)]) -> Result<Config> {
    Config::from_variables(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

#[track_caller]
fn assert_refused(name: &str, value: &str, words: &[&str]) {
    let error = config(&[(name, value)]).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Config);
    for word in words {
        assert!(error.message().contains(word), "'{word}' is missing in: {error}");
    }
}

#[test]
fn nothing_set_and_empty_values_are_the_defaults() {
    assert_eq!(config(&[]).unwrap(), Config::default());
    assert_eq!(config(&[("HYPURA", ""), ("HYPURA_RAM", ""), ("HYPURA_ODD", "")]).unwrap(), Config::default());
    assert_eq!(config(&[("PATH", "/bin"), ("HYPURAMA", "x"), ("hypura_ram", "x")]).unwrap(), Config::default());
    assert_eq!(Config::default().log, LogLevel::Info);
}

#[test]
fn what_is_learned_is_kept_where_the_user_says() {
    let of = |value| config(&[("HYPURA_CACHE", value)]).map(|config| config.with_store().store);
    assert_eq!(of("Off").unwrap(), Store::NOWHERE);
    assert_eq!(of("/a/b").unwrap(), Store::at("/a/b"));
    assert_eq!(of("").unwrap(), Store::of_user());
    assert!(of("cache").unwrap_err().message().contains("absolute path"));
}

#[test]
fn everything_set() {
    let directory = TestDirectory::new();
    let stats = directory.path().join("stats.json");
    let config = config(&[
        ("HYPURA", "stream"),
        ("HYPURA_RAM", "6G"),
        ("HYPURA_VRAM", "4G"),
        ("HYPURA_IO", "Threads"),
        ("HYPURA_DIRECT", "on"),
        ("HYPURA_PREFETCH", "off"),
        ("HYPURA_STATS", stats.to_str().unwrap()),
        ("HYPURA_TRACE", "trace.bin"),
        ("HYPURA_TIMELINE", "timeline.csv"),
        ("HYPURA_TENSORS", "all"),
        ("HYPURA_VERIFY", "1"),
        ("HYPURA_LOG", "DEBUG"),
        ("HYPURA_CACHE", "/somewhere/cache"),
    ]);
    let expected = Config {
        mode: ModeSetting::Stream,
        ram_bytes: Some(6 << 30),
        vram: VramSetting::Bytes(4 << 30),
        io: IoSetting::Threads,
        direct: DirectSetting::On,
        prefetch: PrefetchSetting::Off,
        stats: Some(stats),
        tensors: TensorsSetting::All,
        trace: Some(PathBuf::from("trace.bin")),
        timeline: Some(PathBuf::from("timeline.csv")),
        verify: true,
        log: LogLevel::Debug,
        cache: CacheSetting::Directory(PathBuf::from("/somewhere/cache")),
        store: Store::NOWHERE,
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("123456", 123_456),
        ("17b", 17),
        ("800M", 800 << 20),
        ("6g", 6 << 30),
        ("6 GB", 6 << 30),
        ("1.5GiB", 3 << 29),
        ("0.1k", 102),
        ("2tib", 2 << 40),
        ("1.00000000000000000000000000001T", 1 << 40),
        ("16777215T", 16_777_215 << 40),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in
        ["6X", "G", "-1G", "+1G", "1.5", "1.G", ".5G", "1.2.3G", ".", "1e9", "0x10", "6iB", "6GG", "6,5G", "NaN"]
    {
        assert_eq!(parse_size(text), Err(SizeProblem::Malformed), "{text}");
    }
    for text in ["18446744073709551616", "16777216T", "99999999999999999999999999999999999999999K"] {
        assert_eq!(parse_size(text), Err(SizeProblem::TooLarge), "{text}");
    }
}

#[test]
fn messages_say_what_to_write() {
    let error = config(&[("HYPURA_RAM", "6X")]).unwrap_err();
    let expected = "HYPURA_RAM=6X is not a size; write a number with K, M, G or T, such as 6G";
    assert_eq!(error.message(), expected);
    assert_refused("HYPURA_RAM", "99999999T", &["HYPURA_RAM=99999999T", "more memory"]);
    assert_refused("HYPURA_VRAM", "on", &["HYPURA_VRAM=on", "auto, off, or a size"]);
    assert_refused("HYPURA_VRAM", "99999999T", &["more memory"]);
    assert_refused("HYPURA", "on", &["HYPURA=on", "auto, off, stream"]);
    assert_refused("HYPURA_IO", "aio", &["auto, uring, threads"]);
    assert_refused("HYPURA_DIRECT", "1", &["auto, cold, on, off"]);
    assert_refused("HYPURA_PREFETCH", "yes", &["auto, on, off"]);
    assert_refused("HYPURA_VERIFY", "yes", &["0, 1"]);
    assert_refused("HYPURA_LOG", "all", &["error, warn, info, debug, trace"]);
}

#[test]
fn unknown_names_are_refused_with_the_closest_known_one() {
    assert_refused("HYPURA_RMA", "6G", &["HYPURA_RMA", "did you mean HYPURA_RAM?"]);
    assert_refused("HYPURA_PREFECH", "off", &["did you mean HYPURA_PREFETCH?"]);
    assert_refused("HYPURA_DIRECTORY", "off", &["did you mean HYPURA_DIRECT?"]);
    assert_refused("HYPURA_SOMETHING", "1", &["known are HYPURA, HYPURA_RAM"]);
    assert!(config(&[("HYPURA_TEST_MODEL", "x"), ("HYPURA_DIR", "/opt")]).is_ok());

    let names = ["HOME", "HYPURA_RAM", "HYPURA_ODD", "HYPURA_TEST_X", "HYPURA_DIR"];
    assert_eq!(Config::unknown_variables(names), ["HYPURA_ODD"]);
}

#[test]
fn output_files_are_checked_before_the_run() {
    let directory = TestDirectory::new();
    let path = directory.path().to_str().unwrap();
    for name in ["HYPURA_STATS", "HYPURA_TRACE", "HYPURA_TIMELINE"] {
        assert_refused(name, path, &[name, "is a directory"]);
        assert_refused(name, "none/", &[name, "is a directory"]);
        assert_refused(name, "/dev/null", &[name, "not a regular file"]);
        assert_refused(name, &format!("{path}/none/stats.json"), &[name, "none is not a directory"]);
    }
}

#[test]
fn distances() {
    for (from, to, distance) in [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3)] {
        assert_eq!(edit_distance(from, to), distance, "{from} {to}");
    }
}
