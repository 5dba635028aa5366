//! Log callbacks, which are process-wide: alone in their process.

mod common;

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use common::host::{Host, overwrite};
use common::{TestDirectory, expert_model, within};
use hypura::ffi::*;

static MODEL_OF_CALLBACK: AtomicPtr<HypuraModel> = AtomicPtr::new(null_mut());
static CALLS_FROM_CALLBACK: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn ask_for_statistics(_level: i32, _message: *const c_char, _user_data: *mut c_void) {
    let model = MODEL_OF_CALLBACK.load(Ordering::Relaxed);
    if !model.is_null() {
        let mut needed = 0;
        // SAFETY: the model is freed only after the pointer is taken away again.
        unsafe { hypura_model_stats_json(model, null_mut(), 0, &mut needed, null_mut(), 0) };
        CALLS_FROM_CALLBACK.fetch_add(1, Ordering::Relaxed);
    }
}

/// A host that is told of an error wants to know more: a callback must not run under the library's own locks.
#[test]
fn a_log_callback_may_ask_for_statistics() {
    // SAFETY: the function is static and needs no pointer.
    unsafe { hypura_log_set(Some(ask_for_statistics), null_mut()) };
    within(300, || {
        let model = expert_model(TestDirectory::new(), 109, 1);
        let host = Host::new(&model, &["HYPURA_PREFETCH=off"]);
        // The first demand starts the machinery, whose own messages are not at stake here.
        assert_eq!(host.begin(&[0], 1), 0);
        while !host.next(8).1.is_empty() {}
        overwrite(&model);
        MODEL_OF_CALLBACK.store(host.model, Ordering::Relaxed);
        assert_eq!(host.begin(&[9], 1), 0);
        assert_ne!(host.next(8).0, 0);
        // The thread that met the error logs it, which may be after the demand has failed.
        while CALLS_FROM_CALLBACK.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        MODEL_OF_CALLBACK.store(null_mut(), Ordering::Relaxed);
    });
    // SAFETY: NULL turns it off.
    unsafe { hypura_log_set(None, null_mut()) };
}
