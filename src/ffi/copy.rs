//! Copies: experts that the host keeps in memory of its own, a GPU's.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::boundary::{guard, guard_infallible};
use super::model::HypuraModel;
use super::pointers;
use crate::hw::GpuSpeed;
use crate::index::ExpertId;
use crate::memory::HostMemory;

/// Gives out memory for slots: `size_bytes` of it, writable, aligned to pages; NULL when there is none. Called from any thread; it
/// must not call the library.
pub type HypuraAllocate = Option<unsafe extern "C" fn(size_bytes: usize, user_data: *mut c_void) -> *mut c_void>;

/// Takes memory back that was given out. Called from any thread, at the latest in hypura_model_free().
pub type HypuraRelease = Option<unsafe extern "C" fn(memory: *mut c_void, user_data: *mut c_void)>;

#[derive(Debug)]
struct Callbacks {
    allocate: unsafe extern "C" fn(usize, *mut c_void) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the header demands of the host that the callbacks may be called from any thread, several at once.
unsafe impl Send for Callbacks {}
// SAFETY: as above.
unsafe impl Sync for Callbacks {}

impl HostMemory for Callbacks {
    fn allocate(&self, size_bytes: usize) -> Option<*mut c_void> {
        // SAFETY: the callback and its argument are the host's, which vouches for them.
        let memory = unsafe { (self.allocate)(size_bytes, self.user_data) };
        (!memory.is_null()).then_some(memory)
    }

    fn free(&self, memory: *mut c_void) {
        // SAFETY: as above; the memory came from `allocate` and is given back once.
        unsafe { (self.release)(memory, self.user_data) };
    }
}

/// Has a streamed model keep its weights in memory that the host gives out, such as pages that a GPU's driver reaches directly. To be
/// called before the first demand. Where the host has none left, the library takes its own.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param allocate,release give out memory and take it back, for as long as the model lives
/// @param user_data handed to both
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT, also when the model has such memory or has been demanded from
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_model_use_memory(
    model: *const HypuraModel,
    allocate: HypuraAllocate,
    release: HypuraRelease,
    user_data: *mut c_void,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let model = unsafe { pointers::shared(model, "model") }?;
        let (Some(allocate), Some(release)) = (allocate, release) else {
            return Err(pointers::invalid("allocate or release is NULL"));
        };
        model.session()?.use_memory(Arc::new(Callbacks { allocate, release, user_data }))
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// Tells how fast the GPU is that copies are made for, which makes the expected speed more exact. To be called before the first demand.
///
/// # Safety
/// @param model from hypura_model_open(); NULL is allowed
/// @param multiply_bytes_per_second how fast it multiplies a vector with weights in its memory, in bytes of them; 0 if that is not known
/// @param upload_bytes_per_second how fast weights get there from the memory of hypura_model_use_memory(); 0 if that is not known
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_set_speed(
    model: *const HypuraModel,
    multiply_bytes_per_second: f64,
    upload_bytes_per_second: f64,
) {
    // SAFETY: the contract of this function.
    if let Some(session) = (unsafe { model.as_ref() }).and_then(|model| model.session.as_ref()) {
        let speed = GpuSpeed { multiply_bytes_per_second, upload_bytes_per_second };
        guard_infallible((), || session.set_gpu_speed(speed));
    }
}

/// How much of a GPU's memory copies of experts may take: HYPURA_VRAM, or what is free but for a margin.
///
/// # Safety
/// @param model from hypura_model_open(); NULL is allowed
/// @param free_bytes,total_bytes of the GPU's memory
/// @return bytes; 0 for a model that is not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_budget(model: *const HypuraModel, free_bytes: u64, total_bytes: u64) -> u64 {
    // SAFETY: the contract of this function.
    let Some(session) = (unsafe { model.as_ref() }).and_then(|model| model.session.as_ref()) else { return 0 };
    guard_infallible(0, || session.vram_budget(free_bytes, total_bytes))
}

/// The same while copies hold some of it: HYPURA_VRAM gives way when others have taken half of the margin, and copies may take more when
/// much more is free.
///
/// # Safety
/// @param model from hypura_model_open(); NULL is allowed
/// @param held_bytes what copies hold of the GPU's memory
/// @param free_bytes,total_bytes of the GPU's memory
/// @return how much they are to hold from now on, `held_bytes` if that need not change; 0 for a model that is not streamed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_budget_now(
    model: *const HypuraModel,
    held_bytes: u64,
    free_bytes: u64,
    total_bytes: u64,
) -> u64 {
    // SAFETY: the contract of this function.
    let Some(session) = (unsafe { model.as_ref() }).and_then(|model| model.session.as_ref()) else { return 0 };
    guard_infallible(0, || session.vram_budget_now(held_bytes, free_bytes, total_bytes))
}

/// Notes that the host has taken memory of a GPU for copies, or, with a negative number, has given some back. For the statistics.
///
/// # Safety
/// @param model from hypura_model_open(); NULL is allowed
/// @param bytes the change
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_note_memory(model: *const HypuraModel, bytes: i64) {
    // SAFETY: the contract of this function.
    if let Some(session) = (unsafe { model.as_ref() }).and_then(|model| model.session.as_ref()) {
        guard_infallible((), || session.add_vram(bytes));
    }
}

/// The host has made a copy of an expert that was delivered. The library then gives up its own bytes of it first, and does not foresee
/// it.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param tensor its index
/// @param expert which one
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_add(
    model: *const HypuraModel,
    tensor: usize,
    expert: usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        unsafe { pointers::shared(model, "model") }?.session()?.add_copy(tensor, ExpertId(expert))
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// How much an expert deserves a copy: of experts of one model at one time, those with the larger numbers are likely to be used sooner.
///
/// # Safety
/// @param model from hypura_model_open(); NULL is allowed
/// @param tensor its index
/// @param expert which one
/// @return a number above 0; 0 for what is not a streamed expert
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_worth(model: *const HypuraModel, tensor: usize, expert: usize) -> f64 {
    // SAFETY: the contract of this function.
    let Some(session) = (unsafe { model.as_ref() }).and_then(|model| model.session.as_ref()) else { return 0.0 };
    guard_infallible(0.0, || session.score(tensor, ExpertId(expert)).unwrap_or(0.0))
}

/// The host drops a copy. If the library has not got the expert and thinks it worth keeping, it tells where the host is to put the bytes
/// first; the host then calls hypura_copy_rescued(), before it waits for any demand.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param tensor its index
/// @param expert which one
/// @param rescue receives where the bytes go, or NULL when they need not be kept; NULL when the host has no bytes to give
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_remove(
    model: *const HypuraModel,
    tensor: usize,
    expert: usize,
    rescue: *mut *mut c_void,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        let session = unsafe { pointers::shared(model, "model") }?.session()?;
        let to = session.remove_copy(tensor, ExpertId(expert), !rescue.is_null())?;
        // SAFETY: the contract of this function.
        if let Some(rescue) = unsafe { rescue.as_mut() } {
            *rescue = to.map_or(std::ptr::null_mut(), |to| to.cast());
        }
        Ok(())
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}

/// All bytes of an expert are where hypura_copy_remove() said.
///
/// # Safety
/// @param model from hypura_model_open()
/// @param tensor its index
/// @param expert which one
/// @param error,error_size where the reason goes
/// @return HYPURA_STATUS_OK; HYPURA_STATUS_INVALID_ARGUMENT
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_copy_rescued(
    model: *const HypuraModel,
    tensor: usize,
    expert: usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let body = || {
        // SAFETY: the contract of this function.
        unsafe { pointers::shared(model, "model") }?.session()?.rescued(tensor, ExpertId(expert))
    };
    // SAFETY: the contract of this function.
    unsafe { guard(error, error_size, body) }
}
