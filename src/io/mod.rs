//! Reading byte ranges of files into memory, at the drive's full speed.
//!
//! This layer knows files, offsets and destinations; it does not know what a tensor or a slot is. A [`Request`] names a
//! range and a place; an [`Engine`] carries requests out in the background and reports each to its [`Sink`] exactly
//! once. There are two engines with the same verbs: io_uring, and a pool of threads that call `preadv`. What they share
//! is the order of work (`engine/queue.rs`) and the handling of every outcome of a system call (`engine/part.rs`).
//!
//! Terms: a *request* is one contiguous range wanted by the caller; a *part* is what one system call reads of it (a
//! large request is cut into several parts, small adjacent ones are merged into one); a range is *widened* when it is
//! extended to the alignment that direct I/O demands; *depth* is how many parts are in flight at once.

mod engine;
mod file;
mod tune;

pub use engine::{Cancelled, Destination, Engine, EngineKind, Priority, Request, Sink, start, uring_available};
pub use file::{Alignment, Content, DirectFile, FileIdentity, Look, Widened, drop_from_page_cache, read_exact_to};
pub use tune::{Limit, ReadSpeed, Tuning, destination, destination_bytes_min, measure, tune};
