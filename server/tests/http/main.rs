//! A whole server in this process, spoken to over HTTP. One program, because each would link the whole server again.

#![expect(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

mod admin;
mod answers;
mod batches;
mod choices;
mod classes;
mod clocks;
mod common;
mod comparisons;
mod contract;
mod door;
mod doors;
mod encoders;
mod equality;
mod errors;
#[cfg(feature = "upstream")]
mod federation;
mod load;
mod pages;
mod refusals;
mod responses;
mod serving;
mod shadows;
mod side_by_side;
mod structured;
#[cfg(feature = "upstream")]
mod upstreams;
