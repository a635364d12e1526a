//! What comes out of the engine.

use passerelle_models::{ModelError, TokenId};

use crate::constraint::ConstraintError;
use crate::fault::Fault;

/// What a request hears from the engine, in this order: `PromptLogprobs` (only if asked for), `Token`s, and for each
/// choice one `Finished` after its last token. A request fails as a whole: `Failed` is the last that any choice hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One entry per prompt token; the first has no predecessor and is `None`.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// One generated token.
    Token(TokenEvent),
    Finished {
        /// Below the request's `num_choices`.
        choice: u32,
        reason: FinishReason,
        /// Of all choices together, as of now.
        usage: Usage,
    },
    Failed {
        error: RequestError,
        usage: Usage,
    },
}

/// All that a request of one choice has heard, put together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Heard {
    /// One entry per prompt token, if they were asked for.
    pub prompt: Vec<Option<TokenLogprobs>>,
    pub tokens: Vec<TokenId>,
    /// Of the tokens, if they were asked for.
    pub logprobs: Vec<f32>,
    /// `None`: more may follow.
    pub end: Option<FinishReason>,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// Which of the request's choices it belongs to.
    pub choice: u32,
    pub token: TokenId,
    pub logprobs: Option<TokenLogprobs>,
}

/// Log-probabilities at one position, of the model's own distribution (before temperature and filters).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    pub token: TokenId,
    pub logprob: f32,
    /// 1 is the most likely token.
    pub rank: u32,
    /// Of the whole distribution at this position, in nats.
    pub entropy: f32,
    /// The most likely tokens, best first. The chosen token's entry, if present, is the very same float.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a choice is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop or end-of-sequence token was generated, or nothing can follow what the constraint asked for.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// The caller aborted, or went away.
    Aborted,
}

/// What a request has really used so far, all its choices together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Prompt tokens whose K/V came from the prefix cache.
    pub cached_tokens: u32,
    pub generated_tokens: u32,
    /// Its share of the time of the steps that it took part in, in nanoseconds. The shares of a step add up to the step.
    pub measured_ns: u64,
}

impl Heard {
    /// Errors with what ended the request.
    pub fn take(&mut self, event: Event) -> Result<(), RequestError> {
        match event {
            Event::PromptLogprobs(entries) => self.prompt = entries,
            Event::Token(token) => {
                self.tokens.push(token.token);
                self.logprobs.extend(token.logprobs.map(|entry| entry.logprob));
            }
            Event::Finished { reason, .. } => self.end = Some(reason),
            Event::Failed { error, .. } => return Err(error),
        }
        Ok(())
    }
}

/// Why a request failed. It fails alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A row of logits held NaN or infinity.
    #[error("the model produced a number that is not finite")]
    NotFinite,
    /// What the request forbids leaves no token to choose.
    #[error("what this request forbids leaves no token to choose")]
    NothingAllowed,
    /// The request's own grammar.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The model returned an error, also when it ran this request alone.
    #[error("the step that ran this request failed: {0}")]
    Step(String),
    /// The same, but that it panicked.
    #[error("the step that ran this request panicked; the log says where")]
    Panic,
    /// The same, for want of memory.
    #[error("the step that ran this request found no memory: {0}")]
    Memory(String),
    /// The same, as what computes failed.
    #[error("the device failed the step that ran this request: {0}")]
    Device(String),
    /// The engine was shut down before the request was complete.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The process that ran it is gone. Asked again, it may well succeed.
    #[error("the worker that ran this request is gone")]
    WorkerLost,
}

impl RequestError {
    /// What failed it, if that is nothing that it asked for. A server that ends has still done what it did.
    pub fn fault(&self) -> Option<Fault> {
        Some(match self {
            Self::NotFinite => Fault::NotFinite,
            Self::Step(_) => Fault::Model,
            Self::Panic => Fault::Panic,
            Self::Memory(_) => Fault::Memory,
            Self::Device(_) => Fault::Device,
            Self::WorkerLost => Fault::Worker,
            Self::Constraint(ConstraintError::Lost) => Fault::Grammar,
            Self::NothingAllowed | Self::Constraint(ConstraintError::TooComplex) | Self::ShuttingDown => return None,
        })
    }

    /// Whether there is a [`RequestError::fault`].
    pub fn is_engine_fault(&self) -> bool {
        self.fault().is_some()
    }
}

impl From<ModelError> for RequestError {
    fn from(error: ModelError) -> Self {
        let detail = error.to_string();
        match error {
            ModelError::Device(_) if error.is_out_of_memory() => Self::Memory(detail),
            ModelError::Device(_) => Self::Device(detail),
            ModelError::Checkpoint { .. } | ModelError::Input(_) | ModelError::Io { .. } => Self::Step(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_model_says_whether_memory_the_device_or_the_step_was_at_fault() {
        let fault = |error: ModelError| RequestError::from(error).fault();
        let no_memory = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let lost = "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")";
        assert_eq!(fault(ModelError::device(no_memory)), Some(Fault::Memory));
        assert_eq!(fault(ModelError::device(lost)), Some(Fault::Device));
        assert_eq!(fault(ModelError::Input("no blocks".to_owned())), Some(Fault::Model));
    }
}
