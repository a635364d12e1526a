//! A prompt and its answer, as something that two models are asked about, and what both make of it.

use passerelle_engine::{Heard, TokenLogprobs};
use passerelle_models::TokenId;

use super::asking::Said;
use crate::api::lease::Lease;
use crate::api::state::{AppState, ServedModel};
use crate::evaluation::divergence::AnswerPair;
use crate::evaluation::{Answer, Continuation, Outcome, Scored, TokenScore, TokenScores};
use crate::metrics::ShadowFigures;
use crate::text::{Detokenizer, SkipSpecialTokens, TextModel};
use crate::units::saturating_u32;

#[derive(Debug)]
pub(super) struct Item {
    pub(super) prompt: Vec<TokenId>,
    /// Without what ended it.
    answer: Vec<TokenId>,
    /// Of each model's greedy answer.
    pub(super) max_tokens: u32,
}

/// What one model made of it, with texts.
#[derive(Debug)]
pub(super) struct Spelt {
    /// The answer that was given, under this model.
    answer: Continuation,
    /// Of the answer as much as a greedy one may be.
    wanted: String,
    greedy: Answer,
}

/// What is told of it without its texts.
#[derive(Debug)]
pub(super) struct Figures {
    tokens: usize,
    bytes: u64,
    /// Of the answer, under the model that gave it and under the candidate.
    bits: [f64; 2],
    /// The token at which the two greedy answers part; `None` if they are equal.
    parts_at: Option<usize>,
}

impl Item {
    /// `None`: the two models cannot be compared on it. The first time for a model, this takes time that grows with its
    /// vocabulary.
    pub(super) fn of(
        prompt: Vec<TokenId>,
        mut answer: Vec<TokenId>,
        models: &[Lease; 2],
        max_tokens: u32,
    ) -> Option<Self> {
        let [served, candidate] = models;
        // What was cut at its length is compared up to there; what ended by itself, with how it ended.
        let as_long = saturating_u32(answer.len());
        while answer.last().is_some_and(|token| served.eos_token_ids.contains(token)) {
            answer.pop();
        }
        let longest = served.max_model_len.min(candidate.max_model_len);
        let known = served.input_vocab_size.min(candidate.input_vocab_size);
        let fits = prompt.len() + answer.len() <= longest;
        let all_known = prompt.iter().chain(&answer).all(|token| (*token as usize) < known);
        let room = saturating_u32(longest.saturating_sub(prompt.len()));
        let is_suited = !answer.is_empty() && fits && all_known && are_alike(served, candidate);
        is_suited.then(|| Self { prompt, answer, max_tokens: max_tokens.min(as_long).min(room) })
    }

    pub(super) fn text(&self) -> Vec<TokenId> {
        [&self.prompt[..], &self.answer].concat()
    }

    /// What one model made of it, spelt with its own tokenizer.
    pub(super) fn spelt(&self, text: &TextModel, said: &Said) -> Spelt {
        let spell = |ids| Detokenizer::after(&text.tokenizer, SkipSpecialTokens::No, &self.prompt).spell(ids);
        let texts = spell(&self.answer);
        let wanted = texts.iter().take(self.max_tokens as usize).map(String::as_str).collect();
        let bytes = texts.iter().map(|text| text.len() as u64).sum();
        let mut tokens = TokenScores::default();
        let entries = said.scores.iter().skip(self.prompt.len());
        for ((id, text), entry) in self.answer.iter().copied().zip(texts).zip(entries) {
            tokens.push(id, text, entry.as_ref().map(score_of));
        }
        let Heard { tokens: greedy, logprobs, .. } = &said.greedy;
        let greedy = Answer::new(greedy, spell(greedy), logprobs);
        Spelt { answer: Continuation { bytes, tokens }, wanted, greedy }
    }
}

impl Spelt {
    /// As an item that is a prompt with a reference.
    pub(super) fn scored(self, id: &str) -> Scored {
        let outcome = Outcome::Prompt { reference: self.answer, wanted: self.wanted, answer: self.greedy };
        Scored { id: id.to_owned(), outcome }
    }
}

/// Two checkpoints that generate and that know the same tokens.
fn are_alike(served: &ServedModel, candidate: &ServedModel) -> bool {
    let generate = [served, candidate].iter().all(|model| model.encoder.is_none());
    let (one, other) = (&served.text.tokenizer, &candidate.text.tokenizer);
    generate && served.digest != candidate.digest && one.has_vocabulary_of(other)
}

fn score_of(entry: &TokenLogprobs) -> TokenScore {
    TokenScore { logprob: entry.logprob, rank: entry.rank, entropy: entry.entropy }
}

impl Figures {
    /// Of the model that gave the answer, and of the candidate.
    pub(super) fn of([served, candidate]: &[Spelt; 2]) -> Self {
        let parts_at = AnswerPair::new("", "", &served.greedy, &candidate.greedy).map(|pair| pair.position);
        let (tokens, bytes) = (served.answer.tokens.ids.len(), served.answer.bytes);
        Self { tokens, bytes, bits: [served.answer.bits(), candidate.answer.bits()], parts_at }
    }

    pub(super) fn tell(&self, state: &AppState, alias: &str) {
        let Self { tokens, bytes, bits: [served_bits, candidate_bits], parts_at } = *self;
        let per_byte = |bits: f64| bits / bytes.max(1) as f64;
        state.metrics().shadow_compared(
            alias,
            ShadowFigures {
                served: per_byte(served_bits),
                candidate: per_byte(candidate_bits),
                greedy_answers_are_equal: parts_at.is_none(),
            },
        );
        tracing::info!(
            alias,
            tokens,
            bytes,
            served_bits,
            candidate_bits,
            parts_at,
            "a candidate was compared on an answer"
        );
    }
}
