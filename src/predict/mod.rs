//! What will be needed next.

mod order;
mod router;
mod trial;

pub use order::Order;
pub use router::{Choice, Router, read_routers};
pub use trial::Trial;
