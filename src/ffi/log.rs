//! Log messages, from `tracing` to the host's callback.

use std::ffi::{CString, c_char, c_void};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::RwLock;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::boundary::guard_infallible;
use crate::config::{Config, LogLevel};

/// How much a message matters: the first argument of a log callback. Append-only.
#[repr(i32)]
pub enum HypuraLogLevel {
    /// Something failed.
    Error = 0,
    /// Something is not as it should be, and was coped with.
    Warn = 1,
    /// What a user wants to know once.
    Info = 2,
    /// For finding faults.
    Debug = 3,
    /// Everything.
    Trace = 4,
}

/// Receives log messages. Called from any thread, also from several at once, and during calls of the host. Of the library it may call
/// hypura_model_stats_json() and hypura_model_plan_json(), of a model that is not being planned or freed, and nothing else.
///
/// @param level a value of hypura_log_level
/// @param message a line without newline, valid during the call
/// @param user_data what hypura_log_set() was given
pub type HypuraLogCallback = Option<unsafe extern "C" fn(level: i32, message: *const c_char, user_data: *mut c_void)>;

struct Receiver {
    callback: unsafe extern "C" fn(i32, *const c_char, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the header demands of the host that callback and pointer may be used from any thread, several at once.
unsafe impl Send for Receiver {}
// SAFETY: as above.
unsafe impl Sync for Receiver {}

static RECEIVER: RwLock<Option<Receiver>> = RwLock::new(None);
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

/// Sets who receives the library's log messages, process-wide; HYPURA_LOG chooses which (default info).
///
/// # Safety
/// @param callback called for each message until another call replaces it; NULL turns logging off
/// @param user_data handed to the callback; valid as long, and usable from any thread
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hypura_log_set(callback: HypuraLogCallback, user_data: *mut c_void) {
    guard_infallible((), || {
        // A malformed variable is reported when a model is opened; until then the default level serves.
        let level = Config::from_environment().map(|config| config.log).unwrap_or(LogLevel::Info);
        LEVEL.store(level as u8, Ordering::Relaxed);
        *RECEIVER.write() = callback.map(|callback| Receiver { callback, user_data });
        // Fails when a Rust host has a subscriber of its own: then messages go there.
        let _ = tracing::subscriber::set_global_default(Forwarder);
        // The level may have changed, and call sites remember whether they are enabled.
        tracing::callsite::rebuild_interest_cache();
    });
}

/// Hands events to the receiver. Spans are not used by this library.
struct Forwarder;

fn number_of(level: &Level) -> u8 {
    match *level {
        Level::ERROR => HypuraLogLevel::Error as u8,
        Level::WARN => HypuraLogLevel::Warn as u8,
        Level::INFO => HypuraLogLevel::Info as u8,
        Level::DEBUG => HypuraLogLevel::Debug as u8,
        Level::TRACE => HypuraLogLevel::Trace as u8,
    }
}

impl Subscriber for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number_of(metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = MessageText(String::new());
        event.record(&mut text);
        let Ok(message) = CString::new(text.0) else { return };
        if let Some(receiver) = &*RECEIVER.read() {
            let level = i32::from(number_of(event.metadata().level()));
            // SAFETY: the host promised (`hypura_log_set`) that both stay valid until they are replaced, which takes the
            // write lock that this read lock excludes.
            unsafe { (receiver.callback)(level, message.as_ptr(), receiver.user_data) };
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Collects an event's message.
struct MessageText(String);

impl Visit for MessageText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}
