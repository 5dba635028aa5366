//! A model that the host is loading and does not tell about.

use std::ffi::c_char;

use super::boundary::{guard, guard_infallible};
use super::model::{HypuraModel, config_from};
use super::pointers::{self, invalid};
use crate::discover::{Source, Wanted, agree, find};

/// Finds and opens the model that this process is loading, for hosts that are not told its files: the one GGUF among the files
/// that are open for reading which has a tensor of this name, ggml type and size.
///
/// # Safety
/// @param name the tensor's
/// @param ggml_type the number of its type in ggml
/// @param size_bytes its bytes
/// @param settings as for hypura_model_open()
/// @param out receives the model, to be freed with hypura_model_free(); NULL when no GGUF is open
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_UNCERTAIN when none of the GGUFs that are open has such a tensor, or more than one
///     has; HYPURA_STATUS_CONFIG
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_discover(
    name: *const c_char,
    ggml_type: u32,
    size_bytes: u64,
    settings: *const *const c_char,
    out: *mut *mut HypuraModel,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let name = unsafe { pointers::text(name, "name") }?;
        // SAFETY: the contract of this function.
        let config = unsafe { config_from(settings) }?;
        let found = find(Wanted { name, ggml_type, size_bytes })?;
        let model = found.map(|found| HypuraModel::new(found.gguf, config, found.files));
        // SAFETY: the contract of this function.
        unsafe { pointers::write(out, model.map_or(std::ptr::null_mut(), Box::into_raw), "out") }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Whether the files of a model that was discovered are still open as they were then. When they are not, whatever is being loaded
/// by now must be discovered anew.
///
/// # Safety
/// @param model from hypura_model_discover() or hypura_model_open(); NULL is allowed
/// @return false also for NULL, and for a model whose files the host named
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_is_loading(model: *const HypuraModel) -> bool {
    // SAFETY: the contract of this function.
    let files = unsafe { model.as_ref() }.map_or(&[][..], |model| &model.loaders_files);
    guard_infallible(false, || !files.is_empty() && files.iter().all(|file| file.is_open()))
}

/// Takes note of a streamed tensor that the host has in memory and does not know the place of: makes sure that these are its
/// bytes in the file, because they are a mapping of that place or because they are equal. The file's pages in the mapping and in
/// the page cache are given back to the system; the host gives back what is its own.
///
/// # Safety
/// @param model from hypura_model_discover() or hypura_model_open()
/// @param tensor its index, below hypura_model_tensor_count()
/// @param data the bytes, which nobody writes to during the call
/// @param size_bytes how many
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_UNCERTAIN when the bytes differ; HYPURA_STATUS_INVALID_ARGUMENT when the tensor is
///     not streamed; HYPURA_STATUS_OPEN, HYPURA_STATUS_IO or HYPURA_STATUS_CHANGED when the file cannot be compared with
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_bind_memory(
    model: *const HypuraModel,
    tensor: usize,
    data: *const u8,
    size_bytes: usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        let found = model.tensor(tensor)?;
        model.check_streamed(tensor)?;
        if size_bytes == 0 {
            return Err(invalid("size_bytes is 0"));
        }
        // SAFETY: the contract of this function.
        let bytes = unsafe { pointers::slice(data, size_bytes, "data") }?;
        if agree(&model.gguf.files()[found.file], found, bytes)? == Source::Mapped {
            model.session()?.note_mapped_host();
        }
        model.session()?.note_bound(tensor);
        Ok(())
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}
