//! The C ABI. One noun of the header is one file; the casts of pointers live in `pointers`, the panic boundary in
//! `boundary`. No logic lives here: every function checks its arguments and calls the library.
//!
//! The contract that holds for all functions is written at the top of the header (`cbindgen.toml`).

mod boundary;
mod copy;
mod discover;
mod fetch;
mod library;
mod log;
mod model;
mod plan;
mod pointers;
mod speed;

pub use copy::*;
pub use discover::*;
pub use fetch::*;
pub use library::*;
pub use log::*;
pub use model::*;
pub use plan::*;
pub use speed::*;
