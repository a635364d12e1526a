//! What a request must be for an engine to take it, whoever checks: its door, or one in another process.

use crate::error::SubmitError;
use crate::request::{Request, check_tokens};

/// The bounds of one engine that a request can be checked against without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestRules {
    /// Prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// Choices of one request.
    pub max_num_seqs: usize,
    /// Ids below this may stand in a prompt.
    pub input_vocab_size: usize,
    /// Ids below this may be biased.
    pub vocab_size: usize,
}

impl RequestRules {
    /// Errors with the first rule that the request breaks: lengths, choices, sampling parameters, tokens.
    pub fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let Self { max_model_len, max_num_seqs, input_vocab_size, vocab_size } = *self;
        let (prompt_tokens, max_tokens) = (request.prompt.len(), request.sampling.max_tokens as usize);
        if prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt_tokens.saturating_add(max_tokens) > max_model_len {
            return Err(SubmitError::TooLong { prompt_tokens, max_tokens, max_model_len });
        }
        let num_choices = request.num_choices.get();
        if num_choices as usize > max_num_seqs {
            return Err(SubmitError::TooManyChoices { num_choices, max_num_seqs });
        }
        if let Some(parameter) = request.sampling.out_of_range() {
            return Err(SubmitError::InvalidSampling { parameter });
        }
        check_tokens(request.prompt.iter(), input_vocab_size)?;
        check_tokens(request.sampling.logit_bias.iter().map(|(token, _)| token), vocab_size)
    }
}
