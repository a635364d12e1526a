//! Requests to token events: continuous batching over a paged KV cache. Sees token ids, never text.

pub mod clock;
pub mod event;
pub mod request;

pub use event::{Event, FinishReason, RequestError, TokenEvent, TokenLogprobs, Usage};
pub use request::{CacheSalt, Request, RequestId, SamplingParams, ShareKey};
