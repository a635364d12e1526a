//! Requests to token events: continuous batching over a paged KV cache; texts' tokens to vectors; and two models compared on
//! one text. Sees token ids, never text.
//!
//! [`Engine`] owns one thread and one model; [`EngineHandle`] is its door: a [`Request`] goes in, an [`EventStream`]
//! comes out, and every queue between them is bounded. Inside, [`StepLoop`] repeats one step: take commands,
//! wait for the turn, schedule, run, drain aborts, update, publish, conclude.

// What others say and hear.
pub mod clock;
mod config;
mod constraint;
mod error;
pub mod event;
mod event_stream;
pub mod request;
mod stats;
pub mod testing;

// The thread and its step.
mod catch_up;
mod doorbell;
mod engine;
mod model_runner;
mod owned_thread;
mod running;
mod step;
mod step_logits;
mod survival;
mod turns;

// Who runs, when, and at what price.
mod admission;
mod batch;
mod calibration;
mod cost;
mod counted;
mod fault;
mod meter;
mod overrun;
mod pace;
mod policy;
mod rules;
mod scheduler;
mod sequence;
mod trust;

// Blocks of keys and values, and which of them are found again.
mod block_chains;
mod block_pool;
mod kv_cache_manager;
mod prefix;
mod prefix_index;
mod tail_index;

// From logits to tokens.
mod logprobs;
mod random;
mod sampler;

// Models that only read texts, and two models on one text.
mod compare;
mod encode;
mod lane;
mod reply;
mod shared_model;

// Engines elsewhere.
mod event_feed;

// For tests.
#[cfg(test)]
mod fixtures;

pub use compare::{
    ComparedPosition, ComparisonConfig, ComparisonHandle, ComparisonLane, ComparisonParts, ComparisonReply,
    ComparisonRequest,
};
pub use config::{AddedLatency, ConfigError, EngineConfig};
pub use constraint::{Allowed, AnswerEnd, Constraint, ConstraintError};
pub use cost::CostModel;
pub use counted::Counted;
pub use encode::{EncodeReply, EncodeRequest, EncoderConfig, EncoderEngine, EncoderHandle, EncoderParts, EncoderStats};
pub use engine::{Engine, EngineHandle, EngineParts};
pub use error::{EngineError, SubmitError};
pub use event::{Event, FinishReason, Heard, RequestError, TokenEvent, TokenLogprobs, Usage};
pub use event_feed::{EncodeFeed, EventFeed, FeedError};
pub use event_stream::{AbortHandle, EventStream};
pub use fault::{Fault, FaultCounts};
pub use reply::Reply;
pub use request::{CacheSalt, Class, Request, RequestId, SamplingParams, ShareKey, ShareWeight};
pub use rules::RequestRules;
pub use shared_model::SharedModel;
pub use stats::{EngineStats, NullObserver, StepObserver, StepReport};
pub use step::StepLoop;
pub use turns::{StepTurns, Turn};
