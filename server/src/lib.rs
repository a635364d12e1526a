//! Bytes to tokens to bytes; who may run what, and where.

pub mod api;
pub mod batches;
pub mod config;
mod durable;
pub mod evaluation;
pub mod gateway;
mod hex;
pub mod hub;
pub mod metrics;
pub mod placement;
mod silence;
mod spelling;
pub mod text;
pub mod trust;
pub mod units;
#[cfg(feature = "upstream")]
pub mod upstream;
pub mod workers;
