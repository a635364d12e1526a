//! The door to the lane's thread.

use std::sync::Arc;
use std::time::Duration;

use passerelle_models::CausalLm;

use super::run::CompareLoop;
use super::{ComparedPosition, ComparisonReply, ComparisonRequest};
use crate::clock::Clock;
use crate::config::ConfigError;
use crate::error::{EngineError, SubmitError};
use crate::lane::{LaneBounds, LaneDoor, lane};
use crate::owned_thread::OwnedThread;
use crate::request::check_tokens;
use crate::shared_model::SharedModel;
use crate::stats::StepObserver;
use crate::turns::StepTurns;

/// Every bound of the lane. All counts must be at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparisonConfig {
    /// The longest text. One comparison holds the keys and values of this many tokens, at most, of each of its two models.
    pub max_text_tokens: usize,
    /// Tokens of a chunk, because each costs a whole row of logits of both models in memory.
    pub max_chunk_tokens: usize,
    /// What a chunk is to take of one model's turn: chunks get shorter until they do.
    pub max_added_latency: Duration,
    /// Texts that wait for their comparison.
    pub max_waiting_texts: usize,
    /// Their tokens.
    pub max_waiting_tokens: usize,
}

/// What makes a [`ComparisonLane`].
pub struct ComparisonParts {
    pub config: ComparisonConfig,
    /// Shared with the engines that compute on the same cores or device.
    pub turns: StepTurns,
    pub clock: Arc<dyn Clock>,
    /// Hears each model's part of a chunk as a step.
    pub observer: Arc<dyn StepObserver>,
}

/// Owns the thread. Dropping it shuts the lane down and joins the thread.
#[derive(Debug)]
pub struct ComparisonLane {
    handle: ComparisonHandle,
    thread: OwnedThread,
}

/// The door. Cheap to clone; outliving the lane is harmless.
#[derive(Debug, Clone)]
pub struct ComparisonHandle {
    door: Arc<Door>,
}

#[derive(Debug)]
struct Door {
    config: ComparisonConfig,
    lane: LaneDoor<ComparisonRequest, Vec<Option<ComparedPosition>>>,
}

impl Default for ComparisonConfig {
    fn default() -> Self {
        Self {
            max_text_tokens: 4096,
            max_chunk_tokens: 64,
            max_added_latency: Duration::from_millis(250),
            max_waiting_texts: 256,
            max_waiting_tokens: 262_144,
        }
    }
}

impl ComparisonConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("max_text_tokens", self.max_text_tokens),
            ("max_chunk_tokens", self.max_chunk_tokens),
            ("max_waiting_texts", self.max_waiting_texts),
            ("max_waiting_tokens", self.max_waiting_tokens),
        ];
        ConfigError::refuse_zero(&bounds)
    }

    fn lane(&self) -> LaneBounds {
        LaneBounds {
            max_waiting: self.max_waiting_texts,
            max_waiting_tokens: self.max_waiting_tokens,
            max_running: 1,
            quantum: self.max_text_tokens,
        }
    }
}

impl ComparisonLane {
    /// Starts the thread. Errors when a bound is impossible or there is no thread.
    pub fn spawn(parts: ComparisonParts) -> Result<Self, EngineError> {
        let config = parts.config.clone();
        config.validate()?;
        let (door, inbox) = lane(config.lane());
        let compare_loop = CompareLoop::new(parts, inbox);
        let thread = OwnedThread::spawn("comparisons".to_owned(), move || compare_loop.run_until_stopped())?;
        Ok(Self { handle: ComparisonHandle { door: Arc::new(Door { config, lane: door }) }, thread })
    }

    /// A door to this lane.
    pub fn handle(&self) -> ComparisonHandle {
        self.handle.clone()
    }
}

impl Drop for ComparisonLane {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.thread.join();
    }
}

impl ComparisonHandle {
    pub fn config(&self) -> &ComparisonConfig {
        &self.door.config
    }

    /// Queues a text and returns its answer to be; never blocks. Errors at once when the queue is full, or when the two
    /// models could never be compared on the text.
    pub fn submit(&self, request: ComparisonRequest) -> Result<ComparisonReply, SubmitError> {
        self.door.check(&request)?;
        self.door.lane.submit(request)
    }

    /// Tokens of the longest text that two models can be compared on. Errors when they can be compared on none.
    pub fn longest_text(&self, first: &SharedModel, second: &SharedModel) -> Result<usize, SubmitError> {
        self.door.longest_text(first.get(), second.get())
    }

    /// Nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.door.lane.is_idle()
    }

    /// Admits nothing more; what waits and runs fails with [`crate::RequestError::ShuttingDown`], then the thread ends.
    pub fn shutdown(&self) {
        self.door.lane.shut_down();
    }
}

impl std::fmt::Debug for ComparisonParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComparisonParts").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Door {
    fn check(&self, request: &ComparisonRequest) -> Result<(), SubmitError> {
        let ComparisonRequest { tokens, first, second, .. } = request;
        let (first, second) = (first.get(), second.get());
        let max_model_len = self.longest_text(first, second)?;
        let prompt_tokens = tokens.len();
        if prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt_tokens > max_model_len {
            return Err(SubmitError::TooLong { prompt_tokens, max_tokens: 0, max_model_len });
        }
        check_tokens(tokens.iter(), first.input_vocab_size())
    }

    fn longest_text(&self, first: &dyn CausalLm, second: &dyn CausalLm) -> Result<usize, SubmitError> {
        let sizes = |model: &dyn CausalLm| [model.vocab_size(), model.input_vocab_size()];
        let mut sizes = sizes(first).into_iter().zip(sizes(second));
        match sizes.find(|(first, second)| first != second) {
            Some((first, second)) => Err(SubmitError::DifferentVocabularies { first, second }),
            None => Ok(self.config.max_text_tokens.min(first.max_position()).min(second.max_position())),
        }
    }
}
