//! Files to read from: opened past the page cache where that works, and told apart from what replaced them.

mod changes;
mod content;
mod direct;
mod open;
mod page_cache;

pub use changes::{FileIdentity, Look};
pub use content::Content;
pub use direct::{DirectFile, drop_from_page_cache, read_exact_to};
pub use open::{Alignment, Widened};
pub(in crate::io) use page_cache::Cached;
