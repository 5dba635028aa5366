//! How fast the host computes, which makes the expected speed of a model more exact.

use super::boundary::guard_infallible;
use super::model::HypuraModel;
use super::pointers;
use crate::hw::RemoteSpeed;

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
