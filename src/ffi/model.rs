//! A model: its tensors, its plan, its statistics.

use std::ffi::{CString, c_char};
use std::mem::offset_of;
use std::sync::Arc;

use super::boundary::{guard, guard_infallible};
use super::pointers::{self, Growing, invalid};
use crate::config::Config;
use crate::discover::OpenFile;
use crate::error::{Error, ErrorCode, Result};
use crate::gguf::{Gguf, role_of};
use crate::hw::RemoteSpeed;
use crate::io::read_exact_to;
use crate::plan::{Mode, Place, usual_place};
use crate::stream::Session;

/// An opened model. Opaque.
pub struct HypuraModel {
    gguf: Arc<Gguf>,
    config: Config,
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

/// How a model runs: `mode` of hypura_plan. Append-only.
#[repr(i32)]
pub enum HypuraMode {
    /// Nothing is streamed.
    FullResident = 0,
    /// Experts are streamed.
    ExpertStreaming = 1,
    /// Weights that every token uses are streamed: those of feed-forward layers, shared experts and attention.
    DenseStreaming = 2,
    /// Only tables are streamed, of which a token uses some rows.
    TableStreaming = 3,
}

/// Where the host keeps a tensor that is not streamed: an element of `places` of hypura_model_plan(). Append-only.
#[repr(i32)]
pub enum HypuraPlace {
    /// On a device.
    Device = 0,
    /// In RAM; any other value than these means the same.
    Ram = 1,
    /// Nowhere, probably: it is in the file, but not loaded. It counts as no memory, and is streamed if it is bound after all.
    Spare = 2,
    /// On a device of another machine.
    Remote = 3,
}

/// What was decided for a model. Set `size` to sizeof(hypura_plan) before the call.
#[repr(C)]
pub struct HypuraPlan {
    /// Bytes of this struct as the host knows it.
    pub size: usize,
    /// A value of hypura_mode.
    pub mode: i32,
    /// How many tensors are streamed.
    pub streamed_tensor_count: u64,
    /// Their bytes.
    pub streamed_bytes: u64,
    /// The smallest budget for them that works, in bytes.
    pub minimum_bytes: u64,
    /// The largest budget that they have use for, in bytes. A host with a smaller `size` does not get it.
    pub maximum_bytes: u64,
}

impl HypuraModel {
    pub(super) fn new(gguf: Gguf, config: Config, loaders_files: Vec<OpenFile>) -> Box<Self> {
        let names =
            gguf.tensors().iter().map(|tensor| CString::new(tensor.name.as_str()).unwrap_or_default()).collect();
        Box::new(Self { gguf: Arc::new(gguf), config, names, loaders_files, session: None })
    }

    pub(super) fn gguf(&self) -> &Gguf {
        &self.gguf
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

// SAFETY: as above.
unsafe impl Growing for HypuraPlan {
    const NAME: &'static str = "hypura_plan";
    const SIZE_MIN: usize = offset_of!(Self, maximum_bytes);
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
    Ok(Config::from_variables(variables)?.with_cache_directory())
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

/// Decides what is streamed, once per model.
///
/// # Safety
/// @param model from hypura_model_open(), used by no other thread during the call
/// @param places for each tensor of the model a value of hypura_place: where the host would keep it; NULL: all in RAM, but for
///     layers that draft tokens (MTP), which are spare
/// @param tensor_count how many bytes `places` has: hypura_model_tensor_count()
/// @param plan receives the decision, its `size` is set before the call; NULL is allowed
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT; HYPURA_STATUS_VERSION when `size` was not set;
///     HYPURA_STATUS_BUDGET when HYPURA_RAM is below the working minimum; HYPURA_STATUS_CHANGED when a file is not what it was
///     when the model was opened; HYPURA_STATUS_OPEN, HYPURA_STATUS_IO, HYPURA_STATUS_RESOURCE
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_plan(
    model: *mut HypuraModel,
    places: *const u8,
    tensor_count: usize,
    plan: *mut HypuraPlan,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::exclusive(model, "model") }?;
        if model.session.is_some() {
            return Err(invalid("the model has been planned already"));
        }
        let count = model.gguf.tensors().len();
        // SAFETY: the contract of this function.
        let places = match places.is_null() {
            true => None,
            // SAFETY: the contract of this function.
            false => Some(unsafe { pointers::slice(places, tensor_count, "places") }?),
        };
        if places.is_some_and(|places| places.len() != count) {
            return Err(invalid(&format!("tensor_count is {tensor_count}, but the model has {count} tensors")));
        }
        // SAFETY: the contract of this function.
        let size = if plan.is_null() { 0 } else { unsafe { pointers::size_in_host(plan, "plan") }? };
        let usual = usual_place(&model.gguf);
        let place = |tensor: usize| places.map_or_else(|| usual(tensor), |places| place_of(places[tensor]));
        let session = Session::plan(&model.gguf, &model.config, place)?;
        if !plan.is_null() {
            // SAFETY: the contract of this function.
            unsafe { pointers::fill(plan, size, &summary(session.as_deref())) };
        }
        model.session = session;
        Ok(())
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// What a value of hypura_place means; hosts that know only the first two may say yes with any other number.
fn place_of(value: u8) -> Place {
    match i32::from(value) {
        value if value == HypuraPlace::Device as i32 => Place::Device,
        value if value == HypuraPlace::Spare as i32 => Place::Spare,
        value if value == HypuraPlace::Remote as i32 => Place::Remote,
        _ => Place::Ram,
    }
}

fn summary(session: Option<&Session>) -> HypuraPlan {
    let mut summary = HypuraPlan {
        size: size_of::<HypuraPlan>(),
        mode: HypuraMode::FullResident as i32,
        streamed_tensor_count: 0,
        streamed_bytes: 0,
        minimum_bytes: 0,
        maximum_bytes: 0,
    };
    if let Some(session) = session {
        let plan = session.plan_summary();
        summary.mode = match plan.mode {
            Mode::Resident => HypuraMode::FullResident,
            Mode::ExpertStreaming => HypuraMode::ExpertStreaming,
            Mode::DenseStreaming => HypuraMode::DenseStreaming,
            Mode::TableStreaming => HypuraMode::TableStreaming,
        } as i32;
        summary.streamed_tensor_count = plan.streamed.len() as u64;
        summary.streamed_bytes = plan.streamed_bytes;
        summary.minimum_bytes = session.minimum_bytes();
        summary.maximum_bytes = session.maximum_bytes();
    }
    summary
}

/// Whether a tensor is streamed, that is, whether the host must fetch it instead of reading it.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
/// @param tensor its index, below hypura_model_tensor_count()
/// @return false for NULL, and for a tensor that does not exist
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_streams(model: *const HypuraModel, tensor: usize) -> bool {
    // SAFETY: the contract of this function.
    let session = unsafe { model.as_ref() }.and_then(|model| model.session.as_ref());
    session.is_some_and(|session| session.streams(tensor))
}

/// Whether a streamed tensor is a table: its rows are copied by hypura_fetch_rows(), and nothing else of it is demanded.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
/// @param tensor its index, below hypura_model_tensor_count()
/// @return false for NULL, and for a tensor that does not exist or is not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_is_table(model: *const HypuraModel, tensor: usize) -> bool {
    // SAFETY: the contract of this function.
    let session = unsafe { model.as_ref() }.and_then(|model| model.session.as_ref());
    session.is_some_and(|session| session.is_table(tensor))
}

/// Advises how many tokens to compute at once: more than usual where memory allows it, because what is streamed is read once
/// for all of them.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
/// @param batch how many tokens are there to be computed, at most
/// @param micro_batch how many the host would compute at once
/// @return `micro_batch` or more, up to `batch`; `micro_batch` for NULL and for a model that is not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_micro_batch(
    model: *const HypuraModel,
    batch: usize,
    micro_batch: usize,
) -> usize {
    let body = || {
        // SAFETY: the contract of this function.
        let session = unsafe { model.as_ref() }.and_then(|model| model.session.as_ref());
        session.map_or(micro_batch, |session| session.micro_batch(batch as u64, micro_batch as u64) as usize)
    };
    guard_infallible(micro_batch, body)
}

/// Finds the next ggml type of this model whose speed of multiplication is unmeasured on this machine. Optional: a host that measures it, and
/// tells by hypura_model_set_speed(), makes the expected speed more exact.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
/// @param n_threads on how many threads the host multiplies
/// @param needed_bytes memory that measuring would take
/// @param ggml_type receives the number of a ggml type, if there is one
/// @return whether there is one that matters for this model; false once the model was demanded of, for NULL, for a model
///     that is not streamed, and when measuring would take too much memory
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_next_unmeasured(
    model: *const HypuraModel,
    n_threads: usize,
    needed_bytes: u64,
    ggml_type: *mut u32,
) -> bool {
    let body = || {
        // SAFETY: the contract of this function.
        let session = unsafe { model.as_ref() }.and_then(|model| model.session.as_ref());
        let Some(found) = session.and_then(|session| session.next_unmeasured(n_threads, needed_bytes)) else {
            return false;
        };
        // SAFETY: the contract of this function.
        unsafe { pointers::write(ggml_type, found, "ggml_type") }.is_ok()
    };
    guard_infallible(false, body)
}

/// Tells how fast the host multiplies a vector with weights of a type. It is kept for later runs on this machine.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
/// @param ggml_type the number of a ggml type
/// @param n_threads on how many threads it was measured
/// @param bytes_per_second bytes of weights per second; 0 for a type that the host cannot multiply with
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_set_speed(
    model: *const HypuraModel,
    ggml_type: u32,
    n_threads: usize,
    bytes_per_second: f64,
) {
    // SAFETY: the contract of this function.
    let session = unsafe { model.as_ref() }.and_then(|model| model.session.as_ref());
    guard_infallible((), || {
        if let Some(session) = session {
            session.set_speed(ggml_type, n_threads, bytes_per_second);
        }
    });
}

/// Tells how fast the other machine is that has tensors at HYPURA_PLACE_REMOTE, which makes the expected speed more exact. To be called before
/// the first demand.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
/// @param multiply_bytes_per_second how fast it multiplies a vector with weights in its memory, in bytes of them; 0 if that is not known
/// @param round_trip_seconds after how long its least answer is there; 0 if that is not known
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_set_remote_speed(
    model: *const HypuraModel,
    multiply_bytes_per_second: f64,
    round_trip_seconds: f64,
) {
    // SAFETY: the contract of this function.
    if let Some(session) = (unsafe { model.as_ref() }).and_then(|model| model.session.as_ref()) {
        let speed = RemoteSpeed { multiply_bytes_per_second, round_trip_seconds };
        guard_infallible((), || session.set_remote_speed(speed));
    }
}

/// Checks that the host and the library agree on where a streamed tensor lies: for hosts that read the header themselves,
/// called instead of reading the tensor.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param tensor its index, below hypura_model_tensor_count()
/// @param file index of the file that the host has it in
/// @param offset its first byte there
/// @param size_bytes its bytes
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_FORMAT when they do not agree; HYPURA_STATUS_INVALID_ARGUMENT when the tensor is
///     not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_bind(
    model: *const HypuraModel,
    tensor: usize,
    file: usize,
    offset: u64,
    size_bytes: u64,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        let found = model.tensor(tensor)?;
        model.check_streamed(tensor)?;
        if (found.file, found.offset, found.size_bytes) == (file, offset, size_bytes) {
            model.session()?.note_bound(tensor);
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::Format,
            format!(
                "{}: the host has it in file {file} at byte {offset} ({size_bytes} bytes), libhypura in file {} at byte \
                 {} ({} bytes)",
                found.name, found.file, found.offset, found.size_bytes
            ),
        ))
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Says that all streamed tensors that will be demanded have been bound, by hypura_model_bind() or hypura_model_bind_memory(): what
/// is in the file and was not bound takes no part, in memory, reads or predictions. Optional; before the first demand.
///
/// # Safety
/// @param model from hypura_model_open(), or NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_loaded(model: *const HypuraModel) {
    // SAFETY: the contract of this function.
    let session = unsafe { model.as_ref() }.and_then(|model| model.session.as_ref());
    guard_infallible((), || {
        if let Some(session) = session {
            session.note_loaded();
        }
    });
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

/// Gives what is expected of the model as JSON: the mode, what lives where in bytes and item by item, the memory for weights,
/// the tokens per second that are expected and what limits them, what earlier runs taught, what the machine offers and
/// what had to be assumed of it. `null` before the first demand, when the memory has not been divided yet.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param buffer receives the text, cut to fit and NUL-terminated; NULL to ask for its size only
/// @param buffer_size bytes of it
/// @param needed receives the bytes that the whole text needs, NUL included; NULL is allowed
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT when the model is not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_plan_json(
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
        unsafe { give_text(&model.session()?.plan_json(), buffer, buffer_size, needed) }
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Writes a text, cut to fit, and the bytes that all of it needs.
///
/// # Safety
/// `buffer` is NULL or points to `buffer_size` bytes; `needed` is NULL or points to a size_t.
unsafe fn give_text(text: &str, buffer: *mut c_char, buffer_size: usize, needed: *mut usize) -> Result<()> {
    // SAFETY: the contract of this function.
    unsafe { super::boundary::write_text(text, buffer, buffer_size) };
    if !needed.is_null() {
        // SAFETY: the contract of this function.
        unsafe { pointers::write(needed, text.len() + 1, "needed") }?;
    }
    Ok(())
}
