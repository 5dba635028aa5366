//! What will be needed next.

mod habits;
mod router;
mod trial;
mod trust;

pub use habits::{Foreseen, Habits, Recent, Store};
pub use router::{Choice, Router, read_routers};
pub use trial::Trial;
pub use trust::Trust;
