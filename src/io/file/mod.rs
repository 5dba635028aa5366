//! Files to read from: opened past the page cache where that works, and told apart from what replaced them.

mod align;
mod direct;
mod identity;

pub use align::{Alignment, Widened};
pub use direct::{DirectFile, drop_from_page_cache};
pub use identity::FileIdentity;
