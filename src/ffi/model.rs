//! A model: its tensors, its statistics.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use super::boundary::{give_text, guard, guard_infallible};
use super::pointers::{self, Growing, invalid};
use crate::config::Config;
use crate::discover::OpenFile;
use crate::error::{Error, ErrorCode, Result};
use crate::gguf::{Gguf, role_of};
use crate::io::read_exact_to;
use crate::stream::Session;

/// An opened model. Opaque.
pub struct HypuraModel {
    pub(super) gguf: Arc<Gguf>,
    pub(super) config: Config,
    names: Vec<CString>,
    /// As the loader has them open that the model was found by; empty when the host named the files.
    pub(super) loaders_files: Vec<OpenFile>,
    pub(super) session: Option<Arc<Session>>,
}

/// What a tensor is. Set `size` to sizeof(hypura_tensor_info) before the call.
#[repr(C)]
pub struct HypuraTensorInfo {
    /// Bytes of this struct as the host knows it.
    pub size: usize,
    /// Its name; lives as long as the model.
    pub name: *const c_char,
    /// Elements per dimension, fastest first; 1 where there is no such dimension.
    pub shape: [u64; 4],
    /// The number of its ggml type: how its elements are encoded.
    pub ggml_type: u32,
    /// Index of its file among the model's.
    pub file: u32,
    /// Its first byte in that file.
    pub offset: u64,
    /// Its bytes, those of all experts together.
    pub size_bytes: u64,
    /// How many experts it holds, `shape[2]`; 0 for a tensor that holds none.
    pub expert_count: u64,
}

impl HypuraModel {
    pub(super) fn new(gguf: Gguf, config: Config, loaders_files: Vec<OpenFile>) -> Box<Self> {
        let names =
            gguf.tensors().iter().map(|tensor| CString::new(tensor.name.as_str()).unwrap_or_default()).collect();
        Box::new(Self { gguf: Arc::new(gguf), config, names, loaders_files, session: None })
    }

    pub(super) fn tensor(&self, index: usize) -> Result<&crate::gguf::TensorInfo> {
        self.gguf
            .tensors()
            .get(index)
            .ok_or_else(|| invalid(&format!("there is no tensor {index}: the model has {}", self.gguf.tensors().len())))
    }

    pub(super) fn check_streamed(&self, tensor: usize) -> Result<()> {
        if self.session()?.streams(tensor) {
            return Ok(());
        }
        Err(invalid(&format!("{} is not streamed", self.tensor(tensor)?.name)))
    }

    pub(super) fn session(&self) -> Result<&Arc<Session>> {
        self.session
            .as_ref()
            .ok_or_else(|| invalid("the model is not streamed: hypura_model_plan decided so or was not called"))
    }
}

// SAFETY: it is `repr(C)` and begins with its size.
unsafe impl Growing for HypuraTensorInfo {
    const NAME: &'static str = "hypura_tensor_info";
    const SIZE_MIN: usize = size_of::<Self>();
}

/// Opens a GGUF. Reads the headers only.
///
/// # Safety
/// @param paths one path, of which the first file of a split finds the others, or all files of a split in order
/// @param path_count how many
/// @param settings NULL for the process's environment; or a NULL-terminated array of "HYPURA_RAM=6G" and the like, used
///     instead of it
/// @param out receives the model, which the host frees with hypura_model_free()
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK, HYPURA_STATUS_INVALID_ARGUMENT, HYPURA_STATUS_OPEN, HYPURA_STATUS_FORMAT,
///     HYPURA_STATUS_TRUNCATED or HYPURA_STATUS_CONFIG
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_open(
    paths: *const *const c_char,
    path_count: usize,
    settings: *const *const c_char,
    out: *mut *mut HypuraModel,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let paths = unsafe { pointers::slice(paths, path_count, "paths") }?;
        let paths = paths
            .iter()
            // SAFETY: the contract of this function.
            .map(|&path| unsafe { pointers::path(path, "a path") })
            .collect::<Result<Vec<_>>>()?;
        if paths.is_empty() {
            return Err(invalid("path_count is 0"));
        }
        // SAFETY: the contract of this function.
        let config = unsafe { config_from(settings) }?;
        let model = HypuraModel::new(Gguf::open(&paths)?, config, Vec::new());
        // SAFETY: the contract of this function.
        unsafe { pointers::give(out, model, "out") }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// # Safety
/// `settings` is NULL or a NULL-terminated array of strings.
pub(super) unsafe fn config_from(settings: *const *const c_char) -> Result<Config> {
    if settings.is_null() {
        return Config::from_environment();
    }
    let mut variables = Vec::new();
    for index in 0.. {
        // SAFETY: the array goes on until its NULL, and no entry before `index` was it.
        let entry = unsafe { *settings.add(index) };
        if entry.is_null() {
            break;
        }
        // SAFETY: an entry of the array is a string.
        let entry = unsafe { pointers::text(entry, "a setting") }?;
        let (name, value) = entry.split_once('=').ok_or_else(|| {
            Error::new(ErrorCode::Config, format!("the setting {entry} is not of the form NAME=value"))
        })?;
        variables.push((name.to_owned(), value.to_owned()));
    }
    Ok(Config::from_variables(variables)?.with_store())
}

/// Frees a model. Its fetches keep what they need and may be freed later.
///
/// # Safety
/// @param model from hypura_model_open(), not used any more and freed once; NULL is allowed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_free(model: *mut HypuraModel) {
    if !model.is_null() {
        // SAFETY: the contract of this function.
        let model = unsafe { Box::from_raw(model) };
        guard_infallible((), || drop(model));
    }
}

/// Counts the model's tensors, in all its files.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
/// @return how many; 0 for NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_tensor_count(model: *const HypuraModel) -> usize {
    // SAFETY: the contract of this function.
    unsafe { model.as_ref() }.map_or(0, |model| model.gguf.tensors().len())
}

/// Describes a tensor.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param tensor its index, below hypura_model_tensor_count()
/// @param info receives the description; its `size` is set before the call
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT; HYPURA_STATUS_VERSION when `size` was not set
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_tensor_info(
    model: *const HypuraModel,
    tensor: usize,
    info: *mut HypuraTensorInfo,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        // SAFETY: the contract of this function.
        let size = unsafe { pointers::size_in_host(info, "info") }?;
        let found = model.tensor(tensor)?;
        let described = HypuraTensorInfo {
            size,
            name: model.names[tensor].as_ptr(),
            shape: found.shape,
            ggml_type: found.ggml_type.id(),
            file: found.file as u32,
            offset: found.offset,
            size_bytes: found.size_bytes,
            expert_count: if role_of(found).has_experts() { found.shape[2] } else { 0 },
        };
        // SAFETY: the contract of this function.
        unsafe { pointers::fill(info, size, &described) };
        Ok(())
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Finds a tensor by name.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param name such as "blk.0.ffn_up_exps.weight"
/// @param tensor receives its index
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT when there is none
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_find_tensor(
    model: *const HypuraModel,
    name: *const c_char,
    tensor: *mut usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        // SAFETY: the contract of this function.
        let name = unsafe { pointers::text(name, "name") }?;
        let found = model.gguf.find(name).ok_or_else(|| invalid(&format!("the model has no tensor {name}")))?;
        // SAFETY: the contract of this function.
        unsafe { pointers::write(tensor, found, "tensor") }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Tells that the host goes by another number than the file has under a key, as llama.cpp's --override-kv makes it do. Before
/// hypura_model_plan(); keys that nothing goes by are ignored.
///
/// # Safety
/// @param model from hypura_model_open(), used by no other thread during the call
/// @param key such as "qwen3moe.expert_used_count"
/// @param value the number
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT also when the model has been planned already
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_override(
    model: *mut HypuraModel,
    key: *const c_char,
    value: u64,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::exclusive(model, "model") }?;
        // SAFETY: the contract of this function.
        let key = unsafe { pointers::text(key, "key") }?;
        if model.session.is_some() {
            return Err(invalid("the model has been planned already"));
        }
        Arc::make_mut(&mut model.gguf).override_key(key, value);
        Ok(())
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Copies a part of a tensor, streamed or not, from its file: for weights that are not streamed, and for hosts that save or
/// inspect weights.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param tensor its index, below hypura_model_tensor_count()
/// @param offset first byte of the part, from the tensor's start
/// @param size_bytes its bytes
/// @param destination receives them; need not be initialised
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT when the part is not inside the tensor; HYPURA_STATUS_OPEN,
///     HYPURA_STATUS_IO, HYPURA_STATUS_CHANGED
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_read(
    model: *const HypuraModel,
    tensor: usize,
    offset: u64,
    size_bytes: usize,
    destination: *mut u8,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        let found = model.tensor(tensor)?;
        let inside = offset.checked_add(size_bytes as u64).is_some_and(|end| end <= found.size_bytes);
        if !inside || destination.is_null() {
            return Err(invalid(&format!("{} has no bytes {offset}+{size_bytes}, or destination is NULL", found.name)));
        }
        let file = &model.gguf.files()[found.file];
        let opened = file.reopen()?;
        // SAFETY: the host vouches for that much room, initialised or not.
        unsafe { read_exact_to(&opened, destination, size_bytes, found.offset + offset) }
            .map_err(|error| Error::new(ErrorCode::Io, format!("cannot read {}: {error}", file.path.display())))
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Gives the statistics as JSON, with the keys that HYPURA_STATS has.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param buffer receives the text, cut to fit and NUL-terminated; NULL to ask for its size only
/// @param buffer_size bytes of it
/// @param needed receives the bytes that the whole text needs, NUL included; NULL is allowed
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT when the model is not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_stats_json(
    model: *const HypuraModel,
    buffer: *mut c_char,
    buffer_size: usize,
    needed: *mut usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        // SAFETY: the contract of this function.
        unsafe { give_text(&model.session()?.stats_json(), buffer, buffer_size, needed) }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}
