//! The door to an encoder's thread.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use passerelle_models::{Encoder, Pulse};

use super::run::{EncodeLoop, LoopParts};
use super::{EncodeReply, EncodeRequest};
use crate::clock::Clock;
use crate::config::{ConfigError, EngineConfig};
use crate::error::{EngineError, SubmitError};
use crate::lane::{LaneBounds, LaneDoor, lane};
use crate::owned_thread::OwnedThread;
use crate::request::check_tokens;
use crate::stats::StepObserver;
use crate::turns::StepTurns;

/// Every bound of one encoder's lane. All of them must be at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderConfig {
    /// Tokens that one batch runs, over all texts. A longer text runs alone.
    pub max_batch_tokens: usize,
    /// Texts of one batch.
    pub max_batch_texts: usize,
    /// The longest text.
    pub max_text_tokens: usize,
    /// Texts that wait for their batch.
    pub max_waiting_texts: usize,
    /// Their tokens.
    pub max_waiting_tokens: usize,
}

/// Owns the thread. Dropping it shuts the lane down and joins the thread.
#[derive(Debug)]
pub struct EncoderEngine {
    handle: EncoderHandle,
    thread: OwnedThread,
}

/// The door. Cheap to clone; outliving the lane is harmless.
#[derive(Debug, Clone)]
pub struct EncoderHandle {
    door: Arc<Door>,
}

/// What makes an [`EncoderEngine`].
pub struct EncoderParts {
    /// Names the thread, and the lane in logs.
    pub name: String,
    /// Moves to the lane's thread.
    pub model: Box<dyn Encoder>,
    pub config: EncoderConfig,
    /// Shared by the engines that compute on the same cores or device.
    pub turns: StepTurns,
    pub clock: Arc<dyn Clock>,
    /// Hears every batch as a step.
    pub observer: Arc<dyn StepObserver>,
}

/// A snapshot. Totals only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncoderStats {
    /// Texts of the batch that runs.
    pub running: usize,
    /// Texts that wait for their batch.
    pub waiting: usize,
    /// Tokens of those.
    pub waiting_tokens: usize,
    /// Tokens of texts that ran.
    pub prompt_tokens_total: u64,
    /// Texts that ran.
    pub texts_total: u64,
    /// Texts that ended in an error.
    pub failures_total: u64,
    /// Batches that ran and in which not every text failed.
    pub steps_total: u64,
    /// Three texts failed within the minute that ends here, on the engine's clock. May lie in the past.
    pub distrusted_until: Option<Duration>,
}

#[derive(Debug)]
struct Door {
    name: String,
    config: EncoderConfig,
    vocab_size: usize,
    lane: LaneDoor<EncodeRequest, Vec<f32>>,
    /// The model's.
    pulse: Pulse,
    stats: SharedStats,
}

/// Of the loop and its handles. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedStats(Arc<Mutex<EncoderStats>>);

impl Default for EncoderConfig {
    fn default() -> Self {
        let engine = EngineConfig::default();
        Self {
            max_batch_tokens: engine.max_num_batched_tokens,
            max_batch_texts: engine.max_num_seqs,
            max_text_tokens: engine.max_model_len,
            max_waiting_texts: engine.max_waiting_requests,
            max_waiting_tokens: engine.max_waiting_tokens,
        }
    }
}

impl EncoderConfig {
    /// Errors name the first bound that cannot be.
    pub fn validate(&self, max_position: usize) -> Result<(), ConfigError> {
        let bounds = [
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_batch_texts", self.max_batch_texts),
            ("max_text_tokens", self.max_text_tokens),
            ("max_waiting_texts", self.max_waiting_texts),
            ("max_waiting_tokens", self.max_waiting_tokens),
        ];
        ConfigError::refuse_zero(&bounds)?;
        if self.max_text_tokens > max_position {
            return Err(ConfigError::BeyondPositions { max_model_len: self.max_text_tokens, max_position });
        }
        Ok(())
    }

    fn lane(&self) -> LaneBounds {
        LaneBounds {
            max_waiting: self.max_waiting_texts,
            max_waiting_tokens: self.max_waiting_tokens,
            max_running: self.max_batch_texts,
            // A share may be a batch ahead of the others.
            quantum: self.max_batch_tokens,
        }
    }
}

impl EncoderEngine {
    /// Starts the thread. Errors when a bound is impossible or there is no thread.
    pub fn spawn(parts: EncoderParts) -> Result<Self, EngineError> {
        let EncoderParts { name, model, config, turns, clock, observer } = parts;
        config.validate(model.max_tokens())?;
        let (door, inbox) = lane(config.lane());
        let stats = SharedStats::default();
        let door = Door {
            name: name.clone(),
            vocab_size: model.vocab_size(),
            config: config.clone(),
            lane: door,
            pulse: model.pulse(),
            stats: stats.clone(),
        };
        let encode_loop = EncodeLoop::new(LoopParts { model, config, turns, clock, observer, inbox, stats });
        let thread = OwnedThread::spawn(format!("encoder {name}"), move || encode_loop.run_until_stopped())?;
        Ok(Self { handle: EncoderHandle { door: Arc::new(door) }, thread })
    }

    /// A door to this lane.
    pub fn handle(&self) -> EncoderHandle {
        self.handle.clone()
    }
}

impl Drop for EncoderEngine {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.thread.join();
    }
}

impl EncoderHandle {
    pub fn name(&self) -> &str {
        &self.door.name
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.door.config
    }

    /// Queues a text and returns its answer to be; never blocks. Errors at once when the queue is full, or when the text
    /// could never be read.
    pub fn submit(&self, request: EncodeRequest) -> Result<EncodeReply, SubmitError> {
        self.door.check(&request)?;
        self.door.lane.submit(request)
    }

    /// The lane's own account of itself, as of the end of its last batch. Queue figures are current.
    pub fn stats(&self) -> EncoderStats {
        let occupancy = self.door.lane.occupancy();
        let mut stats = *self.door.stats.lock();
        stats.waiting = occupancy.waiting_requests;
        stats.waiting_tokens = occupancy.waiting_tokens;
        stats
    }

    /// See [`crate::EngineHandle::progress`].
    pub fn progress(&self) -> u64 {
        self.door.stats.lock().steps_total.wrapping_add(self.door.pulse.count())
    }

    /// The thread has panicked, or the model fails every batch. Nothing will ever run again.
    pub fn is_dead(&self) -> bool {
        self.door.lane.is_dead()
    }

    /// Nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.door.lane.is_idle()
    }

    /// Admits nothing more; what waits fails with [`crate::RequestError::ShuttingDown`], then the thread ends.
    pub fn shutdown(&self) {
        self.door.lane.shut_down();
    }
}

impl std::fmt::Debug for EncoderParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderParts").field("name", &self.name).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Door {
    fn check(&self, request: &EncodeRequest) -> Result<(), SubmitError> {
        let prompt_tokens = request.tokens.len();
        if prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let max_model_len = self.config.max_text_tokens;
        if prompt_tokens > max_model_len || request.second_text.is_some_and(|second| second > prompt_tokens) {
            return Err(SubmitError::TooLong { prompt_tokens, max_tokens: 0, max_model_len });
        }
        check_tokens(request.tokens.iter(), self.vocab_size)
    }
}

impl SharedStats {
    pub(super) fn lock(&self) -> MutexGuard<'_, EncoderStats> {
        self.0.lock().expect("no code panics while it holds the statistics")
    }
}
