//! What will be needed next.

mod habits;
mod lookahead;
mod trial;
mod trust;

pub use habits::{Foreseen, Habits, Recent, Store};
pub use lookahead::{Lookahead, Sight, Successor, Visit};
pub use trial::Trial;
pub use trust::Trust;
