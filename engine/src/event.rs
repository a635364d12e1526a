//! What comes out of the engine.

use passerelle_models::TokenId;

use crate::constraint::ConstraintError;

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
    /// The model panicked or returned an error, also when it ran this request alone.
    #[error("the step that ran this request failed: {0}")]
    Step(String),
    /// The engine was shut down before the request was complete.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The process that ran it is gone. Asked again, it may well succeed.
    #[error("the worker that ran this request is gone")]
    WorkerLost,
}

impl RequestError {
    /// Whether the request failed by something that it did not ask for. A server that ends has still done what it did.
    pub fn is_engine_fault(&self) -> bool {
        match self {
            Self::NotFinite | Self::Step(_) | Self::WorkerLost | Self::Constraint(ConstraintError::Lost) => true,
            Self::NothingAllowed | Self::Constraint(_) | Self::ShuttingDown => false,
        }
    }
}
