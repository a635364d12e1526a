//! Requests to token events: continuous batching over a paged KV cache; texts' tokens to vectors; and two models compared on
//! one text. Sees token ids, never text.
//!
//! [`Engine`] owns one thread and one model; [`EngineHandle`] is its door: a [`Request`] goes in, an [`EventStream`]
//! comes out, and every queue between them is bounded. Inside, [`StepLoop`] repeats one step: take commands,
//! wait for the turn, schedule, run, drain aborts, update, publish, conclude.

pub mod clock;
pub mod event;
pub mod request;
pub mod testing;

mod admission;
mod batch;
mod block_chains;
mod block_pool;
mod calibration;
mod catch_up;
mod compare;
mod config;
mod constraint;
mod cost;
mod counted;
mod doorbell;
mod encode;
mod engine;
mod error;
mod event_feed;
mod event_stream;
mod fault;
#[cfg(test)]
mod fixtures;
mod kv_cache_manager;
mod lane;
mod logprobs;
mod meter;
mod model_runner;
mod overrun;
mod owned_thread;
mod pace;
mod policy;
mod prefix;
mod prefix_index;
mod random;
mod reply;
mod rules;
mod running;
mod sampler;
mod scheduler;
mod sequence;
mod shared_model;
mod stats;
mod step;
mod step_logits;
mod survival;
mod tail_index;
mod trust;
mod turns;

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
