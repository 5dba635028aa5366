//! From raw pointers to references, NULL checked.

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::error::{Error, ErrorCode, Result};

/// The error for a NULL or senseless argument.
pub(super) fn invalid(what: &str) -> Error {
    Error::new(ErrorCode::InvalidArgument, what.to_owned())
}

/// A shared reference.
///
/// # Safety
/// `pointer` must be NULL or point to a valid `T` that is not mutated for `'a`.
pub(super) unsafe fn shared<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: the caller vouches for it.
    unsafe { pointer.as_ref() }.ok_or_else(|| invalid(&format!("{name} is NULL")))
}

/// An exclusive reference.
///
/// # Safety
/// `pointer` must be NULL or point to a valid `T` that nobody else uses for `'a`.
pub(super) unsafe fn exclusive<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    // SAFETY: the caller vouches for it.
    unsafe { pointer.as_mut() }.ok_or_else(|| invalid(&format!("{name} is NULL")))
}

/// A slice; NULL is the empty slice when `count` is 0.
///
/// # Safety
/// `pointer` must be NULL or point to `count` valid values that are not mutated for `'a`.
pub(super) unsafe fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    match (pointer.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(invalid(&format!("{name} is NULL"))),
        // SAFETY: the caller vouches for `count` values.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(pointer, count) }),
    }
}

/// A string in UTF-8.
///
/// # Safety
/// `pointer` must be NULL or point to a NUL-terminated string that is not mutated for `'a`.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(invalid(&format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| invalid(&format!("{name} is not UTF-8")))
}

/// A path: any bytes that the file system allows.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn path(pointer: *const c_char, name: &str) -> Result<PathBuf> {
    if pointer.is_null() {
        return Err(invalid(&format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    Ok(PathBuf::from(OsStr::from_bytes(bytes)))
}

/// Writes an output.
///
/// # Safety
/// `pointer` must be NULL or valid for writing a `T`.
pub(super) unsafe fn write<T>(pointer: *mut T, value: T, name: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(invalid(&format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    unsafe { pointer.write(value) };
    Ok(())
}
