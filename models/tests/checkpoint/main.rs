//! Checkpoints as files: what is accepted, how it is described, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod corpus;
mod gguf;
mod hostile;
mod loading;
mod tiny;
