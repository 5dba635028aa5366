//! The `HYPURA*` environment variables.
//!
//! They are the same for every host. A value that cannot be understood and a name that is not known are errors, because
//! a setting that is silently ignored costs more time than one that is refused.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorCode, Result};
use crate::persist::Store;

/// When to stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeSetting {
    /// Stream when the model does not fit.
    #[default]
    Auto,
    /// Never stream.
    Off,
    /// Stream even when the model would fit.
    Stream,
}

/// Which I/O engine to read with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoSetting {
    /// Whichever works best here.
    #[default]
    Auto,
    /// io_uring only.
    Uring,
    /// The thread pool only.
    Threads,
}

/// Whether to read past the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectSetting {
    /// Whichever is measured to be faster, but for what the page cache holds already.
    #[default]
    Auto,
    /// The same, and what the page cache holds is read from the drive as well.
    Cold,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Whether to read ahead of need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefetchSetting {
    /// While it pays.
    #[default]
    Auto,
    /// Always, also where it costs more than it gains.
    On,
    /// Never.
    Off,
}

/// How much of a GPU's memory to use for weights that would have to be streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VramSetting {
    /// What is free, but for a margin.
    #[default]
    Auto,
    /// None.
    Off,
    /// So many bytes on each GPU.
    Bytes(u64),
}

/// How much of a model to stream, when it is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorsSetting {
    /// As few kinds of tensors as let the rest fit.
    #[default]
    Auto,
    /// Every tensor that can be.
    All,
}

/// Where what is learned of machines and models is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheSetting {
    /// In the user's cache directory.
    #[default]
    User,
    /// Nowhere.
    Off,
    /// In this directory.
    Directory(PathBuf),
}

/// How much to log; a level includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// What is likely to disappoint.
    Warn,
    /// What was decided.
    #[default]
    Info,
    /// Why it was decided.
    Debug,
    /// Every step.
    Trace,
}

/// All settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `HYPURA`: when to stream.
    pub mode: ModeSetting,
    /// `HYPURA_RAM`: bytes of host memory that may be held for weights; `None` leaves it to the machine's limits.
    pub ram_bytes: Option<u64>,
    /// `HYPURA_VRAM`: how much of a GPU's memory experts may take that would have to be streamed.
    pub vram: VramSetting,
    /// `HYPURA_IO`: which I/O engine to use.
    pub io: IoSetting,
    /// `HYPURA_DIRECT`: whether to read past the page cache.
    pub direct: DirectSetting,
    /// `HYPURA_PREFETCH`: whether to read ahead of need.
    pub prefetch: PrefetchSetting,
    /// `HYPURA_TENSORS`: how much of a model to stream.
    pub tensors: TensorsSetting,
    /// `HYPURA_STATS`: where to write statistics as JSON.
    pub stats: Option<PathBuf>,
    /// `HYPURA_TRACE`: where to record routing for replay.
    pub trace: Option<PathBuf>,
    /// `HYPURA_TIMELINE`: where to record when what was read and computed.
    pub timeline: Option<PathBuf>,
    /// `HYPURA_VERIFY`: whether to compare every acquired range with the file.
    pub verify: bool,
    /// `HYPURA_LOG`: how much to log.
    pub log: LogLevel,
    /// `HYPURA_CACHE`: where facts are kept between runs.
    pub cache: CacheSetting,
    /// What keeps them there. In lists of settings it is nowhere until [`Config::with_store`].
    pub store: Store,
}

/// The variables that are settings.
const KNOWN: [&str; 13] = [
    "HYPURA",
    "HYPURA_RAM",
    "HYPURA_VRAM",
    "HYPURA_IO",
    "HYPURA_DIRECT",
    "HYPURA_PREFETCH",
    "HYPURA_TENSORS",
    "HYPURA_STATS",
    "HYPURA_TRACE",
    "HYPURA_TIMELINE",
    "HYPURA_VERIFY",
    "HYPURA_LOG",
    "HYPURA_CACHE",
];

/// Names that look like settings but belong to the build (`HYPURA_DIR`) and to tests.
const BUILD_DIRECTORY: &str = "HYPURA_DIR";
const TEST_PREFIX: &str = "HYPURA_TEST_";

impl Config {
    /// The settings of this process's environment.
    ///
    /// # Errors
    ///
    /// `Config`, with a message that names the variable and what it may be.
    pub fn from_environment() -> Result<Config> {
        let mut variables = Vec::new();
        // Not `vars`, which panics when any variable of the process, ours or not, is not Unicode.
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| is_ours(name)) else { continue };
            let Some(value) = value.to_str() else {
                return Err(refused(format!("{name}={} is not Unicode text", value.to_string_lossy())));
            };
            variables.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self::from_variables(variables)?.with_store())
    }

    /// The settings in a list of names and values, in which names of other programs are ignored and an empty value
    /// counts as unset.
    ///
    /// # Errors
    ///
    /// As [`Config::from_environment`].
    pub fn from_variables<I: IntoIterator<Item = (String, String)>>(variables: I) -> Result<Config> {
        let mut config = Config::default();
        for (name, value) in variables {
            if value.is_empty() || !is_ours(&name) {
                continue;
            }
            let (name, value) = (name.as_str(), value.as_str());
            match name {
                "HYPURA" => config.mode = choice(name, value, &MODES)?,
                "HYPURA_RAM" => config.ram_bytes = Some(size(name, value)?),
                "HYPURA_VRAM" => config.vram = vram(name, value)?,
                "HYPURA_IO" => config.io = choice(name, value, &ENGINES)?,
                "HYPURA_DIRECT" => config.direct = choice(name, value, &DIRECT)?,
                "HYPURA_PREFETCH" => config.prefetch = choice(name, value, &PREFETCH)?,
                "HYPURA_TENSORS" => config.tensors = choice(name, value, &TENSORS)?,
                "HYPURA_STATS" => config.stats = Some(output_file(name, value)?),
                "HYPURA_TRACE" => config.trace = Some(output_file(name, value)?),
                "HYPURA_TIMELINE" => config.timeline = Some(output_file(name, value)?),
                "HYPURA_VERIFY" => config.verify = choice(name, value, &SWITCH)?,
                "HYPURA_CACHE" => config.cache = cache(name, value)?,
                "HYPURA_LOG" => config.log = choice(name, value, &LEVELS)?,
                unknown => return Err(refused(unknown_message(unknown))),
            }
        }
        Ok(config)
    }

    /// With the store that the setting names.
    pub fn with_store(self) -> Self {
        let store = match &self.cache {
            CacheSetting::User => Store::of_user(),
            CacheSetting::Off => Store::NOWHERE,
            CacheSetting::Directory(directory) => Store::at(directory),
        };
        Self { store, ..self }
    }

    /// The names that look like settings but are not, in their order: what [`Config::from_variables`] would refuse.
    pub fn unknown_variables<'a, I: IntoIterator<Item = &'a str>>(names: I) -> Vec<&'a str> {
        names.into_iter().filter(|name| is_ours(name) && !KNOWN.contains(name)).collect()
    }
}

const MODES: [(&str, ModeSetting); 3] =
    [("auto", ModeSetting::Auto), ("off", ModeSetting::Off), ("stream", ModeSetting::Stream)];
const ENGINES: [(&str, IoSetting); 3] =
    [("auto", IoSetting::Auto), ("uring", IoSetting::Uring), ("threads", IoSetting::Threads)];
const DIRECT: [(&str, DirectSetting); 4] = [
    ("auto", DirectSetting::Auto),
    ("cold", DirectSetting::Cold),
    ("on", DirectSetting::On),
    ("off", DirectSetting::Off),
];
const PREFETCH: [(&str, PrefetchSetting); 3] =
    [("auto", PrefetchSetting::Auto), ("on", PrefetchSetting::On), ("off", PrefetchSetting::Off)];
const TENSORS: [(&str, TensorsSetting); 2] = [("auto", TensorsSetting::Auto), ("all", TensorsSetting::All)];
const SWITCH: [(&str, bool); 2] = [("0", false), ("1", true)];
const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

fn cache(name: &str, value: &str) -> Result<CacheSetting> {
    let path = PathBuf::from(value);
    match value.trim() {
        off if off.eq_ignore_ascii_case("off") => Ok(CacheSetting::Off),
        _ if path.is_absolute() => Ok(CacheSetting::Directory(path)),
        _ => Err(refused(format!("{name}={value} is neither off nor an absolute path of a directory"))),
    }
}

fn is_ours(name: &str) -> bool {
    let looks_ours = name == "HYPURA" || name.starts_with("HYPURA_");
    looks_ours && name != BUILD_DIRECTORY && !name.starts_with(TEST_PREFIX)
}

fn refused(message: String) -> Error {
    Error::new(ErrorCode::Config, message)
}

fn choice<T: Copy>(name: &str, value: &str, allowed: &[(&str, T)]) -> Result<T> {
    if let Some((_, setting)) = allowed.iter().find(|(text, _)| text.eq_ignore_ascii_case(value.trim())) {
        return Ok(*setting);
    }
    let texts: Vec<&str> = allowed.iter().map(|(text, _)| *text).collect();
    Err(refused(format!("{name}={value} is not a setting; write one of {}", texts.join(", "))))
}

fn size(name: &str, value: &str) -> Result<u64> {
    match parse_size(value) {
        Ok(bytes) => Ok(bytes),
        Err(SizeProblem::Malformed) => {
            Err(refused(format!("{name}={value} is not a size; write a number with K, M, G or T, such as 6G")))
        }
        Err(SizeProblem::TooLarge) => {
            Err(refused(format!("{name}={value} is more memory than can be addressed; write a size such as 6G")))
        }
    }
}

fn vram(name: &str, value: &str) -> Result<VramSetting> {
    match value.trim().to_ascii_lowercase().as_str() {
        "auto" => Ok(VramSetting::Auto),
        "off" => Ok(VramSetting::Off),
        text => match parse_size(text) {
            Ok(bytes) => Ok(VramSetting::Bytes(bytes)),
            Err(SizeProblem::TooLarge) => size(name, value).map(VramSetting::Bytes),
            Err(SizeProblem::Malformed) => {
                Err(refused(format!("{name}={value} is not a setting; write auto, off, or a size such as 6G")))
            }
        },
    }
}

#[derive(Debug, PartialEq, Eq)]
enum SizeProblem {
    Malformed,
    TooLarge,
}

/// Bytes from `123456`, `800M`, `1.5GiB`: units are powers of 1024, in any case; a fraction is rounded down.
fn parse_size(text: &str) -> std::result::Result<u64, SizeProblem> {
    let text = text.trim().to_ascii_lowercase();
    let number_length = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_length);
    let unit_bytes: u128 = match unit.trim_start() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(SizeProblem::Malformed),
    };
    let (whole, fraction) = match number.split_once('.') {
        // A fraction of a byte is a mistake, most likely a forgotten unit.
        Some((_, fraction)) if unit_bytes == 1 || fraction.is_empty() => return Err(SizeProblem::Malformed),
        Some(parts) => parts,
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') {
        return Err(SizeProblem::Malformed);
    }
    // Only digits are left, so the one way for the number to be refused is its size.
    let whole: u64 = whole.parse().map_err(|_| SizeProblem::TooLarge)?;
    // Digits beyond these are less than a byte of any unit.
    let fraction = &fraction[..fraction.len().min(15)];
    let scale = 10_u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| SizeProblem::Malformed)? };
    let bytes = u128::from(whole) * unit_bytes + fraction * unit_bytes / scale;
    u64::try_from(bytes).map_err(|_| SizeProblem::TooLarge)
}

/// Checks now what would otherwise fail at exit, when the figures are lost.
fn output_file(name: &str, value: &str) -> Result<PathBuf> {
    let path = PathBuf::from(value);
    if path.is_dir() || value.ends_with(std::path::is_separator) {
        return Err(refused(format!("{name}={value} is a directory; write the name of a file")));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(refused(format!("{name}={value} cannot be written: {} is not a directory", parent.display())));
    }
    // The statistics replace their file: a link must keep pointing to it, and a device must never be replaced.
    match path.canonicalize() {
        Ok(existing) if existing.is_file() => Ok(existing),
        Ok(_) => Err(refused(format!("{name}={value} is not a regular file; write the name of a file"))),
        Err(_) => Ok(path),
    }
}

fn unknown_message(name: &str) -> String {
    /// Mistakes that a typing error makes; further apart the suggestion would be noise.
    const DISTANCE_MAX: usize = 3;
    let closest = KNOWN.iter().map(|known| (edit_distance(name, known), *known)).min();
    match closest {
        Some((distance, known)) if distance <= DISTANCE_MAX => {
            format!("{name} is not a variable of this version; did you mean {known}?")
        }
        _ => format!("{name} is not a variable of this version; known are {}", KNOWN.join(", ")),
    }
}

/// Insertions, deletions and replacements of one character that turn one text into the other.
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // `row[j]` is the distance from what is consumed of `from` to the first `j` characters of `to`.
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for character in from.chars() {
        let mut diagonal = row[0];
        row[0] += 1;
        for (index, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(character != *other);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests;
