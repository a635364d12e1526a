//! HTTP: the only room that knows axum, JSON and status codes.

mod delta;
mod errors;
mod fields;
mod ids;
mod sse;
mod wire;
