//! Where Rust's errors and panics become status codes and text.

use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::pointers;
use crate::error::{Error, ErrorCode, Result};

/// Runs the body of an ABI function. An error's message goes to `error`, cut to fit and NUL-terminated.
///
/// # Safety
/// `error` must be NULL or valid for writes of `error_size` bytes.
pub(super) unsafe fn guard(error: *mut c_char, error_size: usize, body: impl FnOnce() -> Result<()>) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown reason");
        Err(Error::new(ErrorCode::Panic, format!("libhypura panicked, please report this: {reason}")))
    });
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            // SAFETY: the caller vouches for the buffer.
            unsafe { write_text(failure.message(), error, error_size) };
            failure.code() as i32
        }
    }
}

/// As [`guard`], for functions that cannot fail: a panic is swallowed.
pub(super) fn guard_infallible<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// Copies text into a C buffer, cut at a character boundary and NUL-terminated.
///
/// # Safety
/// `buffer` must be NULL or valid for writes of `size` bytes.
pub(super) unsafe fn write_text(text: &str, buffer: *mut c_char, size: usize) {
    if buffer.is_null() || size == 0 {
        return;
    }
    let length = (0..=text.len().min(size - 1)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    // SAFETY: `length < size`, so the copy and the NUL stay within the buffer that the caller vouches for; a fresh buffer
    // of the host's cannot overlap our text.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, length);
    }
    // SAFETY: as above.
    unsafe { buffer.add(length).write(0) };
}

/// Writes a text, cut to fit, and the bytes that all of it needs.
///
/// # Safety
/// `buffer` is NULL or points to `buffer_size` bytes; `needed` is NULL or points to a size_t.
pub(super) unsafe fn give_text(text: &str, buffer: *mut c_char, buffer_size: usize, needed: *mut usize) -> Result<()> {
    // SAFETY: the contract of this function.
    unsafe { write_text(text, buffer, buffer_size) };
    if !needed.is_null() {
        // SAFETY: the contract of this function.
        unsafe { pointers::write(needed, text.len() + 1, "needed") }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn a_panic_becomes_a_code_and_a_message() {
        let mut text = [1 as c_char; 64];
        // SAFETY: the buffer is 64 bytes.
        let code = unsafe { guard(text.as_mut_ptr(), text.len(), || panic!("on purpose")) };
        assert_eq!(code, ErrorCode::Panic as i32);
        // SAFETY: `guard` terminated the text.
        assert!(unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap().ends_with("on purpose"));
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let fail = || Err(Error::new(ErrorCode::Io, "né"));
        let mut text = [1 as c_char; 3];
        // SAFETY: the buffer is 3 bytes.
        unsafe { guard(text.as_mut_ptr(), text.len(), fail) };
        // SAFETY: `guard` terminated the text.
        assert_eq!(unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap(), "n");
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { guard(std::ptr::null_mut(), 0, fail) }, ErrorCode::Io as i32);
    }
}
