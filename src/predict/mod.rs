//! What will be needed next.

mod confidence;
mod lookahead;
mod trial;
mod usage_profile;

pub use confidence::Confidence;
pub use lookahead::{Lookahead, Sight, Successor, Visit};
pub use trial::Trial;
pub use usage_profile::{Predicted, ProfileFile, Recent, UsageProfile};
