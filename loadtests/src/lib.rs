//! A load generator and a judge for OpenAI-compatible servers.
//!
//! ```text
//! scenario (TOML) -> plan (what is sent, and when) -> run (records) -> figures -> report, comparison or verdict
//! ```
//!
//! It knows no room of the server that it measures: everything goes over HTTP, so that any peer is measured the same way.

pub mod arrivals;
pub mod balancer;
pub mod ballast;
pub mod clock;
pub mod compare;
pub mod correctness;
pub mod dataset;
pub mod figures;
pub mod files;
pub mod generate;
pub mod http;
pub mod lengths;
pub mod metrics_page;
pub mod mock;
pub mod plan;
pub mod process;
pub mod progress;
pub mod prompts;
pub mod record;
pub mod reliability;
pub mod report;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod schema;
pub mod self_check;
pub mod servers;
pub mod session;
pub mod sse;
pub mod sweep;
pub mod tokens;
pub mod trace;
pub mod verdict;
