//! What is the server's own, whichever API is asked: who may ask, the live page, metrics; and `/v1`, which is passed
//! on.

pub mod auth;
pub mod counts;
pub mod dimensions;
pub mod health;
pub mod live;
pub mod media;
pub mod metrics;
pub mod openai;
pub mod request;
