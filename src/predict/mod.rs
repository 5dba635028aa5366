//! What will be needed next.

mod order;

pub use order::Order;
