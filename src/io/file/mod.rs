//! Files to read from: opened past the page cache where that works, and told apart from what replaced them.

mod align;
mod content;
mod direct;
mod identity;
mod page_cache;

pub use align::{Alignment, Widened};
pub use content::Content;
pub use direct::{DirectFile, Look, drop_from_page_cache, read_exact_to};
pub use identity::FileIdentity;
pub(in crate::io) use page_cache::Cached;
