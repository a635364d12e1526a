//! The messages of `worker.proto`, and what they mean here. Whatever comes in is checked: what makes no sense is
//! [`Malformed`], never a panic.

mod events;
mod figures;
#[rustfmt::skip]
#[expect(clippy::allow_attributes, unreachable_pub, reason = "written by the program in server/wire")]
mod generated;
mod hello;
mod request;
#[cfg(test)]
mod tests;

pub(super) use events::{Violation, feed_events};
pub(super) use figures::nanoseconds;
pub(super) use generated::*;
pub(super) use request::{CallId, Ordered};

/// Both ends speak the same, or not with each other.
pub(super) const PROTOCOL: u32 = 2;

/// Names the field that no honest peer writes so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` makes no sense")]
pub struct Malformed(pub &'static str);
