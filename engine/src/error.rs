//! Why an engine does not start, and why it refuses a request.

use passerelle_models::{ModelError, TokenId};

use crate::config::ConfigError;
use crate::event::RequestError;

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A bound is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model could not make its KV cache.
    #[error("cannot make the KV cache")]
    Model(#[from] ModelError),
    /// The model fails steps that any request could bring.
    #[error("the model fails its first steps: {0}")]
    Calibration(#[source] RequestError),
    /// The operating system gave no thread.
    #[error("cannot start the engine's thread")]
    Thread(#[from] std::io::Error),
}

/// Why a request was refused. Nothing was queued and nothing is owed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is at one of its bounds; try again later.
    #[error("{waiting_requests} requests with {waiting_tokens} prompt tokens are waiting already")]
    Full {
        /// Requests that wait for their first step.
        waiting_requests: usize,
        /// Their prompt tokens.
        waiting_tokens: usize,
    },
    /// Prompt and answer exceed the context.
    #[error("{prompt_tokens} prompt tokens and {max_tokens} to generate exceed the context of {max_model_len}")]
    TooLong {
        /// Length of the prompt.
        prompt_tokens: usize,
        /// As asked for.
        max_tokens: usize,
        /// The engine's bound.
        max_model_len: usize,
    },
    /// Even alone, the sequence would not fit the KV cache.
    #[error("the sequence needs {needed_blocks} KV blocks and there are {total_blocks}")]
    NeverFits {
        /// Blocks of the sequence at its longest.
        needed_blocks: usize,
        /// Blocks of the cache.
        total_blocks: usize,
    },
    /// More choices than sequences that may run at once.
    #[error("{num_choices} choices are more than the {max_num_seqs} sequences that run at once")]
    TooManyChoices {
        /// As asked for.
        num_choices: u32,
        /// The engine's bound.
        max_num_seqs: usize,
    },
    /// The prompt has no token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt token or a biased token is outside the model's vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    InvalidToken {
        /// The first offender.
        token: TokenId,
        /// Ids below this are valid.
        vocab_size: usize,
    },
    /// Two models that do not choose among the same tokens.
    #[error("the models have different vocabularies, of {first} and {second} tokens")]
    DifferentVocabularies {
        /// Tokens that the first one's head chooses among.
        first: usize,
        second: usize,
    },
    /// A sampling parameter is outside the range its documentation states.
    #[error("{parameter} is out of range")]
    InvalidSampling {
        /// The field's name in [`crate::SamplingParams`].
        parameter: &'static str,
    },
    /// The engine drains or has shut down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine's thread ended by a panic, or its model fails every step.
    #[error("the engine has stopped")]
    Dead,
}
