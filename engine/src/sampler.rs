//! Logits -> token, in the order that [`SamplingParams`] states: bias, penalties, minimum tokens, temperature, top-k,
//! top-p, min-p, draw.
//!
//! A draw is a function of the request's seed and the position alone, so neither the batch nor a preemption changes it.
//! The vocabulary is never sorted for a greedy or top-k request.

use passerelle_models::TokenId;

use crate::event::{RequestError, TokenEvent, TokenLogprobs};
use crate::logprobs::{checked_max, select_best, token_logprobs};
use crate::model_runner::SequenceRows;
use crate::random::uniform;
use crate::request::SamplingParams;
use crate::sequence::{Sequence, TokenCounts};
use crate::weights::{self, weigh, weight};

/// Holds the buffers that a draw needs, so that it allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    /// By token.
    weights: Vec<f64>,
    /// What top-k or top-p keeps.
    candidates: Vec<Candidate>,
    selected: Vec<TokenId>,
    /// The row as the model gave it, where log-probabilities are wanted.
    original: Vec<f32>,
}

/// Everything a choice depends on beside the logits.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) params: &'a SamplingParams,
    pub(crate) counts: Option<&'a TokenCounts>,
    pub(crate) num_generated: usize,
    pub(crate) seed: u64,
}

/// What one sequence's step yields.
#[derive(Debug)]
pub(crate) struct SequenceOutput {
    pub(crate) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(crate) token: Option<TokenEvent>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: TokenId,
    /// Relative to the most likely token's, which is 1.
    weight: f64,
}

impl Sampler {
    /// Reads the rows of a sequence: first those of prompt positions, then the one that chooses the next token.
    pub(crate) fn output(
        &mut self,
        sequence: &Sequence,
        mut rows: SequenceRows<'_>,
    ) -> Result<SequenceOutput, RequestError> {
        let positions = sequence.prompt_logprob_positions();
        let num_prompt_rows = positions.len();
        let num_top = sequence.sampling.prompt_logprobs.unwrap_or_default();
        let prompt_logprobs = positions
            .enumerate()
            .map(|(row, position)| token_logprobs(rows.row(row), sequence.tokens()[position + 1], num_top).map(Some))
            .collect::<Result<_, _>>()?;
        let token = if sequence.samples_next() {
            let choice = Choice {
                params: &sequence.sampling,
                counts: sequence.counts(),
                num_generated: sequence.num_generated(),
                seed: sequence.seed,
            };
            Some(self.sample(rows.row_mut(num_prompt_rows), &choice)?)
        } else {
            None
        };
        Ok(SequenceOutput { prompt_logprobs, token })
    }

    /// Chooses a token. `row` is used up.
    pub(crate) fn sample(&mut self, row: &mut [f32], choice: &Choice<'_>) -> Result<TokenEvent, RequestError> {
        checked_max(row)?;
        let Choice { params, .. } = choice;
        if params.logprobs.is_some() {
            self.original.clear();
            self.original.extend_from_slice(row);
        }
        adjust(row, choice);
        let max = checked_max(row)?;
        let token = if params.temperature == 0.0 {
            first_equal(row, max)
        } else {
            self.draw(row, max, params, uniform(choice.seed, choice.num_generated as u64))
        };
        let logprobs = params.logprobs.map(|num_top| token_logprobs(&self.original, token, num_top)).transpose()?;
        Ok(TokenEvent { token, logprobs })
    }

    /// The token at `point`, in [0, 1), of what temperature, top-k, top-p and min-p leave.
    fn draw(&mut self, row: &[f32], max: f32, params: &SamplingParams, point: f64) -> TokenId {
        let inverse_temperature = 1.0 / f64::from(params.temperature);
        // The most likely token weighs 1.
        let min_p = f64::from(params.min_p);
        self.candidates.clear();
        match params.top_k.map(|k| k as usize).filter(|&k| k < row.len()) {
            Some(top_k) => {
                select_best(row, top_k, &mut self.selected);
                self.candidates.extend(
                    self.selected.iter().map(|&token| Candidate {
                        token,
                        weight: weight(row[token as usize] - max, inverse_temperature),
                    }),
                );
                if params.top_p < 1.0 {
                    let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
                    keep_top_p(&mut self.candidates, f64::from(params.top_p) * total);
                }
            }
            None if params.top_p >= 1.0 => {
                weigh(row, max, (inverse_temperature, min_p), &mut self.weights);
                return weights::draw(&self.weights, point);
            }
            None => {
                weigh(row, max, (inverse_temperature, 0.0), &mut self.weights);
                let total = weights::total(&self.weights);
                // All lighter ones together weigh less than what top-p drops; the half is for rounding.
                let floor = 0.5 * (1.0 - f64::from(params.top_p)) * total / row.len() as f64;
                let kept = (0..).zip(&self.weights).filter(|(_, weight)| **weight > floor);
                self.candidates.extend(kept.map(|(token, &weight)| Candidate { token, weight }));
                keep_top_p(&mut self.candidates, f64::from(params.top_p) * total);
            }
        }
        self.candidates.retain(|candidate| candidate.weight >= min_p);
        draw(&self.candidates, point)
    }
}

/// Bias, penalties and the minimum length, in place.
fn adjust(row: &mut [f32], choice: &Choice<'_>) {
    let Choice { params, counts, num_generated, .. } = choice;
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = row.get_mut(token as usize) {
            *logit += bias;
        }
    }
    for (token, count) in counts.iter().flat_map(|counts| counts.iter()) {
        // A prompt token may lie outside the head.
        if let Some(logit) = row.get_mut(token as usize) {
            penalise(logit, count, params);
        }
    }
    if *num_generated < params.min_tokens as usize {
        for &token in &params.stop_token_ids {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn penalise(logit: &mut f32, count: u32, params: &SamplingParams) {
    let repetition = params.repetition_penalty;
    *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
    if count > 0 {
        *logit -= count as f32 * params.frequency_penalty + params.presence_penalty;
    }
}

fn first_equal(row: &[f32], max: f32) -> TokenId {
    let position = row.iter().position(|&logit| logit == max);
    position.expect("the maximum of a row is one of its finite logits") as TokenId
}

/// Keeps the fewest most likely candidates whose weights together reach `wanted`.
fn keep_top_p(candidates: &mut Vec<Candidate>, wanted: f64) {
    /// Sorted at first; most distributions need no more. Each further stretch is four times as long.
    const FIRST_STRETCH: usize = 64;
    let heaviest_first = |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token));
    let (mut sorted, mut stretch, mut mass) = (0, FIRST_STRETCH, 0.0);
    while sorted < candidates.len() {
        let end = candidates.len().min(sorted + stretch);
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, heaviest_first);
        }
        candidates[sorted..end].sort_unstable_by(heaviest_first);
        for index in sorted..end {
            mass += candidates[index].weight;
            if mass >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        (sorted, stretch) = (end, 4 * stretch);
    }
}

/// The candidate at `point`, in [0, 1), of the total weight.
fn draw(candidates: &[Candidate], point: f64) -> TokenId {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let mut left = point * total;
    for candidate in candidates {
        left -= candidate.weight;
        if left < 0.0 {
            return candidate.token;
        }
    }
    // Rounding used the total up before the end: the last candidate that can be.
    let possible = candidates.iter().rev().find(|candidate| candidate.weight > 0.0);
    possible.expect("the most likely candidate is never dropped and weighs 1").token
}

#[cfg(test)]
mod tests;
