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
        _ if count > isize::MAX as usize / size_of::<T>().max(1) => {
            Err(invalid(&format!("{name} is larger than memory")))
        }
        // SAFETY: the caller vouches for `count` values, which together are no larger than an allocation can be.
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

/// Hands an object over to the host.
///
/// # Safety
/// As for [`write`].
pub(super) unsafe fn give<T>(out: *mut *mut T, object: Box<T>, name: &str) -> Result<()> {
    if out.is_null() {
        return Err(invalid(&format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and the caller vouches for the rest.
    unsafe { out.write(Box::into_raw(object)) };
    Ok(())
}

/// A struct of the header that may grow: its first field is `size`, which the host sets to the bytes that it knows.
///
/// # Safety
/// The type is `repr(C)`, and its first field is a `usize`.
pub(super) unsafe trait Growing {
    /// The name in the header.
    const NAME: &'static str;
    /// Its bytes in the first version of the ABI that has it.
    const SIZE_MIN: usize;
}

/// No struct will ever have more bytes; more are a `size` that was not set.
const SIZE_MAX: usize = 4096;

/// The `size` that the host has set in a struct whose other fields may not be initialised.
///
/// # Safety
/// `pointer` is NULL or points to a struct of the host's whose `size` is set.
pub(super) unsafe fn size_in_host<T: Growing>(pointer: *const T, name: &str) -> Result<usize> {
    if pointer.is_null() {
        return Err(invalid(&format!("{name} is NULL")));
    }
    // SAFETY: not NULL, and by `Growing` a size comes first, which the caller says is set.
    let size = unsafe { pointer.cast::<usize>().read() };
    if (T::SIZE_MIN..=SIZE_MAX).contains(&size) {
        return Ok(size);
    }
    Err(Error::new(
        ErrorCode::Version,
        format!(
            "{} has {size} bytes in the host and at least {} in libhypura: set its size to sizeof before the call",
            T::NAME,
            T::SIZE_MIN
        ),
    ))
}

/// Fills a struct of `size` bytes, as [`size_in_host`] told them, with as much of `value` as it has room for. Its `size` stays; what the
/// host knows and this library does not becomes zero.
///
/// # Safety
/// `pointer` is valid for writing `size` bytes.
pub(super) unsafe fn fill<T: Growing>(pointer: *mut T, size: usize, value: &T) {
    let (from, to, head) = ((&raw const *value).cast::<u8>(), pointer.cast::<u8>(), size_of::<usize>());
    let known = size.min(size_of::<T>());
    // SAFETY: both are valid for `known` bytes, of which `head` are the size, and a struct of the host's cannot overlap ours.
    unsafe { std::ptr::copy_nonoverlapping(from.add(head), to.add(head), known - head) };
    // SAFETY: `known <= size`, for which the caller vouches.
    unsafe { to.add(known).write_bytes(0, size - known) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    struct Grown {
        size: usize,
        old: u32,
        new: u64,
    }

    // SAFETY: it is `repr(C)` and begins with a size.
    unsafe impl Growing for Grown {
        const NAME: &'static str = "grown";
        const SIZE_MIN: usize = 16;
    }

    /// What a host of `size` bytes gets, in memory that is full of `0xaa` but for the size.
    fn filled(size: usize) -> Result<[u64; 5]> {
        let mut host = [0xaaaa_aaaa_aaaa_aaaa_u64; 5];
        host[0] = size as u64;
        let place = host.as_mut_ptr().cast::<Grown>();
        // SAFETY: the size is set.
        let size = unsafe { size_in_host(place, "out") }?;
        // SAFETY: the sizes in this test are no larger than the array.
        unsafe { fill(place, size, &Grown { size: 1, old: 7, new: 9 }) };
        Ok(host)
    }

    #[test]
    fn a_host_gets_what_it_was_compiled_with_and_no_byte_more() {
        let untouched = 0xaaaa_aaaa_aaaa_aaaa;
        let older = filled(16).unwrap();
        assert_eq!((older[0], older[1] as u32, &older[2..]), (16, 7, &[untouched; 3][..]));
        let same = filled(24).unwrap();
        assert_eq!((same[0], same[1] as u32, &same[2..]), (24, 7, &[9, untouched, untouched][..]));
        let newer = filled(32).unwrap();
        assert_eq!((newer[0], newer[1] as u32, &newer[2..]), (32, 7, &[9, 0, untouched][..]));
    }

    #[test]
    fn a_size_that_was_not_set_is_refused() {
        for size in [0, 8, 15, 4097, usize::MAX] {
            let error = filled(size).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Version);
            assert!(error.message().contains(&format!("{size} bytes in the host and at least 16")), "{error}");
        }
        // SAFETY: NULL is allowed.
        let error = unsafe { size_in_host::<Grown>(std::ptr::null(), "out") }.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
    }

    #[test]
    fn a_slice_larger_than_memory_is_refused() {
        let one = 1_u32;
        // SAFETY: it is refused before it is looked at.
        let refused = unsafe { slice(&raw const one, usize::MAX / 4, "ids") };
        assert_eq!(refused.unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
