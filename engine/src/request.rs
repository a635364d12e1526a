//! What goes into the engine.

use std::num::NonZeroU32;

use passerelle_models::TokenId;

use crate::constraint::Constraint;
use crate::error::SubmitError;

/// Names a request in logs and events. Made by the server, never taken from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Who shares the engine with whom. Opaque: the gateway derives it from the account, the engine only compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShareKey(pub u64);

/// Prefix blocks are shared only between requests of one salt, so that one account cannot time another's prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheSalt(pub [u8; 32]);

/// How large a share is beside others': 2 gets twice what 1 gets while both want more than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareWeight(pub NonZeroU32);

/// How urgent a request is. Whoever stands further up goes first and is preempted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Class {
    /// Somebody is waiting for it.
    Interactive,
    #[default]
    Standard,
    /// Uses what the others leave.
    Batch,
}

/// A checked generation request. [`Request::new`] fills in what most callers leave alone.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: RequestId,
    /// At least one token, each below the model's input vocabulary.
    pub prompt: Vec<TokenId>,
    pub sampling: SamplingParams,
    pub share_key: ShareKey,
    pub share_weight: ShareWeight,
    pub class: Class,
    pub cache_salt: CacheSalt,
    /// Answers to the one prompt, which is computed and counted once. Choice 0 draws with the request's seed, each further
    /// one with a seed of its own. At most as many as sequences may run at once.
    pub num_choices: NonZeroU32,
    /// Tokens that each choice may generate until [`crate::EventStream::grant`] adds to them; a choice that has used them
    /// up is parked. `None`: all of `max_tokens`.
    pub granted_tokens: Option<u32>,
    /// What the answer's tokens must look like together. It ends the answer once nothing can follow, whatever
    /// `min_tokens` says, and keeps stop tokens from ending it before it is whole, unless it allows them as text: then they
    /// were asked for, and end it.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// How the next token is chosen and when generation ends.
///
/// Order of operations on a row of logits: constraint, bias, penalties, bad words, minimum tokens, temperature, top-k,
/// top-p, min-p, typical-p, draw.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Tokens to generate at most. 0 runs the prompt only (for its log-probabilities).
    pub max_tokens: u32,
    /// Stop and end-of-sequence tokens are not sampled before this many were generated.
    pub min_tokens: u32,
    /// 0 is greedy: the highest logit, the lowest id among equals.
    pub temperature: f32,
    /// `None` keeps the whole vocabulary.
    pub top_k: Option<u32>,
    /// In (0, 1]; 1 keeps everything.
    pub top_p: f32,
    /// In [0, 1]; tokens less likely than `min_p` times the most likely are dropped.
    pub min_p: f32,
    /// In (0, 1]; keeps the tokens whose surprise is closest to the distribution's entropy and that together reach this
    /// mass (arXiv 2202.00666); 1 keeps everything.
    pub typical_p: f32,
    /// OpenAI's penalties over generated tokens, in [-2, 2].
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// CTRL's multiplicative penalty over prompt and generated tokens (arXiv 1909.05858), above 0; 1 is neutral.
    pub repetition_penalty: f32,
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Sequences that are not generated: where all but the last token of one stand, the last is not sampled.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Same seed, same tokens, whatever the batch. `None` lets the engine draw one.
    pub seed: Option<u64>,
    /// Ends generation with [`crate::FinishReason::Stop`]; the token is reported and counted. Includes the model's
    /// end-of-sequence ids unless the caller asked to ignore them.
    pub stop_token_ids: Vec<TokenId>,
    /// `Some(n)`: report the chosen token's log-probability and the `n` most likely tokens at each generated position.
    pub logprobs: Option<u8>,
    /// The same for every prompt position but the first. Switches prefix reuse off for this request.
    pub prompt_logprobs: Option<u8>,
}

/// Errors with the first token that the vocabulary does not have.
pub(crate) fn check_tokens<'a>(
    mut tokens: impl Iterator<Item = &'a TokenId>,
    vocab_size: usize,
) -> Result<(), SubmitError> {
    match tokens.find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(SubmitError::InvalidToken { token, vocab_size }),
        None => Ok(()),
    }
}

impl Class {
    /// The best first.
    pub(crate) const ALL: [Self; 3] = [Self::Interactive, Self::Standard, Self::Batch];

    /// One step up.
    pub(crate) fn raised(self) -> Self {
        match self {
            Self::Interactive | Self::Standard => Self::Interactive,
            Self::Batch => Self::Standard,
        }
    }
}

impl Default for ShareWeight {
    fn default() -> Self {
        Self(NonZeroU32::MIN)
    }
}

impl Request {
    /// One choice, fully granted, for share key 0 under a salt of zeros. Whoever serves several accounts sets both, as in
    /// `Request { share_key, cache_salt, ..Request::new(id, prompt, sampling) }`.
    pub fn new(id: RequestId, prompt: Vec<TokenId>, sampling: SamplingParams) -> Self {
        Self {
            id,
            prompt,
            sampling,
            share_key: ShareKey(0),
            share_weight: ShareWeight::default(),
            class: Class::default(),
            cache_salt: CacheSalt([0; 32]),
            num_choices: NonZeroU32::MIN,
            granted_tokens: None,
            constraint: None,
        }
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            seed: None,
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// The likeliest token each time, with its log-probability, until one of `stop_token_ids`.
    pub fn greedy(max_tokens: u32, stop_token_ids: Vec<TokenId>) -> Self {
        Self { max_tokens, temperature: 0.0, stop_token_ids, logprobs: Some(0), ..Self::default() }
    }

    /// Generates nothing: how likely is each token of the prompt?
    pub fn scores() -> Self {
        Self { max_tokens: 0, temperature: 0.0, prompt_logprobs: Some(0), ..Self::default() }
    }

    /// The first field outside its range. The engine relies on these: a draw needs a finite, ordered distribution.
    pub(crate) fn out_of_range(&self) -> Option<&'static str> {
        const OPENAI_PENALTIES: std::ops::RangeInclusive<f32> = -2.0..=2.0;
        let in_range = [
            ("temperature", self.temperature.is_finite() && self.temperature >= 0.0),
            ("top_k", self.top_k != Some(0)),
            ("top_p", self.top_p > 0.0 && self.top_p <= 1.0),
            ("min_p", (0.0..=1.0).contains(&self.min_p)),
            ("typical_p", self.typical_p > 0.0 && self.typical_p <= 1.0),
            ("frequency_penalty", OPENAI_PENALTIES.contains(&self.frequency_penalty)),
            ("presence_penalty", OPENAI_PENALTIES.contains(&self.presence_penalty)),
            ("repetition_penalty", self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0),
            // Minus infinity forbids a token.
            ("logit_bias", self.logit_bias.iter().all(|(_, bias)| *bias < f32::INFINITY)),
            ("bad_words", self.bad_words.iter().all(|word| !word.is_empty())),
        ];
        in_range.iter().find(|(_, is_in_range)| !is_in_range).map(|(name, _)| *name)
    }
}
