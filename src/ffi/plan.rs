//! What is decided for a model: which tensors are streamed. Before that the host says where it keeps the others, afterwards which it loads.

use std::ffi::c_char;
use std::mem::offset_of;

use super::boundary::{give_text, guard, guard_infallible};
use super::model::HypuraModel;
use super::pointers::{self, Growing, invalid};
use crate::error::{Error, ErrorCode};
use crate::plan::{Mode, Place, usual_place};
use crate::stream::Session;

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

// SAFETY: it is `repr(C)` and begins with its size.
unsafe impl Growing for HypuraPlan {
    const NAME: &'static str = "hypura_plan";
    const SIZE_MIN: usize = offset_of!(Self, maximum_bytes);
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
