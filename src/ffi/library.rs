//! The library itself: versions, status codes, settings.

use std::ffi::c_char;

use super::boundary::{guard, guard_infallible};
use super::pointers;
use crate::config::{Config, ModeSetting};
use crate::gguf::GgmlType;
use crate::memory::make_room;

/// The version of this ABI. It changes when a function or struct changes its meaning; additions keep it.
pub const HYPURA_ABI_VERSION: u32 = 1;

/// The version of this header, as hypura_version() tells that of the library.
pub const HYPURA_VERSION_MAJOR: u32 = 0;
/// See HYPURA_VERSION_MAJOR.
pub const HYPURA_VERSION_MINOR: u32 = 1;
/// See HYPURA_VERSION_MAJOR.
pub const HYPURA_VERSION_PATCH: u32 = 0;

/// What functions return: `HYPURA_STATUS_OK` or the kind of failure. Append-only.
#[repr(i32)]
pub enum HypuraStatus {
    /// Success.
    Ok = 0,
    /// A NULL or out-of-range argument, or a call out of order: a bug in the host.
    InvalidArgument = 1,
    /// A HYPURA_* variable is malformed.
    Config = 2,
    /// A file does not exist or may not be opened.
    Open = 3,
    /// A file is not a GGUF that can be trusted.
    Format = 4,
    /// A file ends before the bytes that its header promises.
    Truncated = 5,
    /// The operating system reported an error while reading.
    Io = 6,
    /// A file was written to while it was in use.
    Changed = 7,
    /// The memory budget is below the working minimum; the message names the smallest that would do.
    Budget = 8,
    /// HYPURA_VERIFY=1 found wrong bytes in memory.
    Verify = 9,
    /// A panic inside the library: a bug in libhypura.
    Panic = 10,
    /// The host was built against another version of the ABI.
    Version = 11,
    /// The operating system refused memory or a thread.
    Resource = 12,
    /// It cannot be told for certain which bytes of which file the host means.
    Uncertain = 13,
}

/// The HYPURA variable: whether the library takes part.
#[repr(i32)]
pub enum HypuraSetting {
    /// Stream what does not fit.
    Auto = 0,
    /// Never.
    Off = 1,
    /// Always.
    Stream = 2,
}

/// The ABI version of the library that is loaded.
///
/// @return to be compared with HYPURA_ABI_VERSION, which the host was built with
#[unsafe(no_mangle)]
pub extern "C" fn hypura_abi_version() -> u32 {
    HYPURA_ABI_VERSION
}

/// The library's version.
///
/// @return a string such as "0.1.0"; static, never freed
#[unsafe(no_mangle)]
pub extern "C" fn hypura_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The name of a status, for logs.
///
/// @param status what a function of the library returned
/// @return such as "HYPURA_STATUS_BUDGET"; "HYPURA_STATUS_UNKNOWN" for a number that this library never returns; static, never
///     freed
#[unsafe(no_mangle)]
pub extern "C" fn hypura_status_name(status: i32) -> *const c_char {
    let name = match status {
        0 => c"HYPURA_STATUS_OK",
        1 => c"HYPURA_STATUS_INVALID_ARGUMENT",
        2 => c"HYPURA_STATUS_CONFIG",
        3 => c"HYPURA_STATUS_OPEN",
        4 => c"HYPURA_STATUS_FORMAT",
        5 => c"HYPURA_STATUS_TRUNCATED",
        6 => c"HYPURA_STATUS_IO",
        7 => c"HYPURA_STATUS_CHANGED",
        8 => c"HYPURA_STATUS_BUDGET",
        9 => c"HYPURA_STATUS_VERIFY",
        10 => c"HYPURA_STATUS_PANIC",
        11 => c"HYPURA_STATUS_VERSION",
        12 => c"HYPURA_STATUS_RESOURCE",
        13 => c"HYPURA_STATUS_UNCERTAIN",
        _ => c"HYPURA_STATUS_UNKNOWN",
    };
    name.as_ptr()
}

/// Checks the environment and tells its HYPURA setting.
///
/// # Safety
/// @param setting receives a value of hypura_setting
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_CONFIG when any HYPURA_* variable is malformed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_setting_from_environment(
    setting: *mut i32,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        let config = Config::from_environment()?;
        let value = match config.mode {
            ModeSetting::Auto => HypuraSetting::Auto,
            ModeSetting::Off => HypuraSetting::Off,
            ModeSetting::Stream => HypuraSetting::Stream,
        };
        // SAFETY: the contract of this function.
        unsafe { pointers::write(setting, value as i32, "setting") }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Tells how a ggml type is stored, for models that are opened from now on. A host whose ggml is newer than the library may have
/// types that it does not know: tensors of such a type are not streamed. Optional; to tell of a type that is known already changes
/// nothing.
///
/// # Safety
/// @param ggml_type its number in the host's ggml
/// @param name its name, up to 64 bytes
/// @param block_elements elements in a block, at least 1
/// @param block_bytes bytes of a block, at least 1
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT also when the number was defined with other sizes before
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_type_define(
    ggml_type: u32,
    name: *const c_char,
    block_elements: u64,
    block_bytes: u64,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let name = unsafe { pointers::text(name, "name") }?;
        GgmlType::define(ggml_type, name, block_elements, block_bytes)
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Announces that the host is about to take memory, for another context say. Streamed models of this process give up what
/// is needed for it, as far as they can, and take it back when it turns out to be free after all. Optional: they also
/// give way when memory runs short, but take a moment to see it.
///
/// @param bytes how much
#[unsafe(no_mangle)]
pub extern "C" fn hypura_make_room(bytes: u64) {
    guard_infallible((), || make_room(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn the_codes_of_the_header_are_those_of_the_library() {
        for (header, library) in [
            (HypuraStatus::InvalidArgument as i32, ErrorCode::InvalidArgument),
            (HypuraStatus::Config as i32, ErrorCode::Config),
            (HypuraStatus::Open as i32, ErrorCode::Open),
            (HypuraStatus::Format as i32, ErrorCode::Format),
            (HypuraStatus::Truncated as i32, ErrorCode::Truncated),
            (HypuraStatus::Io as i32, ErrorCode::Io),
            (HypuraStatus::Changed as i32, ErrorCode::Changed),
            (HypuraStatus::Budget as i32, ErrorCode::Budget),
            (HypuraStatus::Verify as i32, ErrorCode::Verify),
            (HypuraStatus::Panic as i32, ErrorCode::Panic),
            (HypuraStatus::Version as i32, ErrorCode::Version),
            (HypuraStatus::Resource as i32, ErrorCode::Resource),
            (HypuraStatus::Uncertain as i32, ErrorCode::Uncertain),
        ] {
            assert_eq!(header, library as i32);
        }
    }

    #[test]
    fn every_status_of_the_header_has_its_name_and_the_version_is_that_of_the_package() {
        let header = include_str!("../../include/hypura.h");
        let enumerators = header.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "));
        let statuses: Vec<_> = enumerators.filter(|(name, _)| name.starts_with("HYPURA_STATUS_")).collect();
        assert!(statuses.len() >= 14, "{statuses:?}");
        for (name, number) in &statuses {
            // SAFETY: the names are static and terminated.
            let found = unsafe { std::ffi::CStr::from_ptr(hypura_status_name(number.parse().unwrap())) };
            assert_eq!(found.to_str().unwrap(), *name);
        }
        for unknown in [-1, statuses.len() as i32, i32::MAX] {
            // SAFETY: as above.
            let found = unsafe { std::ffi::CStr::from_ptr(hypura_status_name(unknown)) };
            assert_eq!(found.to_str().unwrap(), "HYPURA_STATUS_UNKNOWN");
        }
        let version = format!("{HYPURA_VERSION_MAJOR}.{HYPURA_VERSION_MINOR}.{HYPURA_VERSION_PATCH}");
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
}
