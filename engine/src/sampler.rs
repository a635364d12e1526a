//! Logits -> token, in the order that [`SamplingParams`] states: constraint, bias, penalties, bad words, minimum tokens,
//! temperature, top-k, top-p, min-p, typical-p, draw.
//!
//! A draw is a function of the request's seed and the position alone, so neither the batch nor a preemption changes it.
//! The vocabulary is never sorted for a greedy or top-k request: of what a top-k selects, at most 128 are.

use distribution::{weigh, weight};
use nucleus::{Candidate, keep_top_p, keep_typical, mass};
use passerelle_models::ops::MOST_BEST;
use passerelle_models::{Pulse, TokenId};

use crate::constraint::Allowed;
use crate::event::{RequestError, TokenEvent, TokenLogprobs};
use crate::logprobs::{answered_logprobs, checked_max, select_best, select_set, token_logprobs};
use crate::random::uniform;
use crate::request::SamplingParams;
use crate::sequence::{Sequence, TokenCounts};
use crate::step_logits::{Seen, SequenceRows};

mod distribution;
mod nucleus;
mod question;

pub(crate) use question::questions;

/// Holds the buffers that a draw needs, so that it allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    /// By token.
    weights: Vec<f64>,
    /// What the filters have left so far.
    candidates: Vec<Candidate>,
    /// What the candidates, and those too light to be one, weighed together before any mass was cut.
    mass: f64,
    selected: Vec<TokenId>,
    /// The row as the model gave it, where log-probabilities are wanted.
    original: Vec<f32>,
    /// The row once more, where several choices draw from it.
    again: Vec<f32>,
    /// Beats with every row: a step that reads many of them gets on.
    pulse: Pulse,
}

/// Everything a choice depends on beside the logits.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    /// Among the request's.
    pub(crate) index: u32,
    pub(crate) params: &'a SamplingParams,
    pub(crate) constraint: Option<Allowed<'a>>,
    pub(crate) counts: Option<&'a TokenCounts>,
    pub(crate) generated: &'a [TokenId],
    pub(crate) seed: u64,
}

/// What one sequence's step yields.
#[derive(Debug)]
pub(crate) struct SequenceOutput {
    pub(crate) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(crate) token: Option<TokenEvent>,
    /// One for each further choice that the sequence stands for.
    pub(crate) further_tokens: Vec<TokenEvent>,
}

impl<'a> Choice<'a> {
    fn of(sequence: &'a Sequence, index: u32) -> Self {
        Self {
            index,
            params: &sequence.sampling,
            constraint: sequence.allowed(),
            counts: sequence.counts(),
            generated: sequence.generated(),
            seed: sequence.seed_of(index),
        }
    }
}

impl Sampler {
    pub(crate) fn new(pulse: Pulse) -> Self {
        Self { pulse, ..Self::default() }
    }

    /// Reads the rows of a sequence: first those of prompt positions, then the one that chooses the next token.
    pub(crate) fn output(
        &mut self,
        sequence: &Sequence,
        mut rows: SequenceRows<'_>,
    ) -> Result<SequenceOutput, RequestError> {
        let positions = sequence.prompt_logprob_positions();
        let num_prompt_rows = positions.len();
        let num_top = sequence.sampling.prompt_logprobs.unwrap_or_default();
        let scored = |(row, position): (usize, usize)| {
            self.pulse.beat();
            match rows.seen(row)? {
                Seen::Whole(row) => token_logprobs(row, sequence.tokens()[position + 1], num_top).map(Some),
                Seen::Answer(answer) => answered_logprobs(&answer, answer.picked, num_top).map(Some),
            }
        };
        let prompt_logprobs = positions.enumerate().map(scored).collect::<Result<_, _>>()?;
        let mut output = SequenceOutput { prompt_logprobs, token: None, further_tokens: Vec::new() };
        if sequence.samples_next() {
            self.choose(sequence, &mut rows, num_prompt_rows, &mut output)?;
        }
        Ok(output)
    }

    /// The next token of each choice, by row `index`.
    fn choose(
        &mut self,
        sequence: &Sequence,
        rows: &mut SequenceRows<'_>,
        index: usize,
        output: &mut SequenceOutput,
    ) -> Result<(), RequestError> {
        let first = Choice::of(sequence, sequence.choices().start);
        let vocab_size = rows.vocab_size();
        let mut fetched;
        let row = match rows.seen(index)? {
            Seen::Whole(row) => row,
            Seen::Answer(answer) => {
                self.pulse.beat();
                output.token = self.settle(&answer, &first, vocab_size)?;
                if output.token.is_some() {
                    return Ok(());
                }
                fetched = rows.whole(index)?;
                &mut fetched
            }
        };
        for choice in sequence.choices().skip(1) {
            let mut again = std::mem::take(&mut self.again);
            again.clear();
            again.extend_from_slice(row);
            output.further_tokens.push(self.sample(&mut again, &Choice::of(sequence, choice))?);
            self.again = again;
        }
        output.token = Some(self.sample(row, &first)?);
        Ok(())
    }

    /// Chooses a token. `row` is used up.
    pub(crate) fn sample(&mut self, row: &mut [f32], choice: &Choice<'_>) -> Result<TokenEvent, RequestError> {
        self.pulse.beat();
        let mut max = checked_max(row)?;
        let Choice { params, .. } = choice;
        if params.logprobs.is_some() {
            self.original.clear();
            self.original.extend_from_slice(row);
        }
        if question::changes_row(choice) {
            adjust(row, choice);
            max = allowed_max(row)?;
        }
        let token = if params.temperature == 0.0 {
            first_equal(row, max)
        } else {
            self.draw(row, max, params, uniform(choice.seed, choice.generated.len() as u64))
        };
        let logprobs = params.logprobs.map(|num_top| token_logprobs(&self.original, token, num_top)).transpose()?;
        Ok(TokenEvent { choice: choice.index, token, logprobs })
    }

    /// The token at `point`, in [0, 1), of what temperature, top-k, top-p, min-p and typical-p leave.
    fn draw(&mut self, row: &[f32], max: f32, params: &SamplingParams, point: f64) -> TokenId {
        let inverse_temperature = 1.0 / f64::from(params.temperature);
        let top_k = question::top_k(params, row.len());
        if top_k.is_none() && params.top_p >= 1.0 && params.typical_p >= 1.0 {
            weigh(row, max, inverse_temperature, f64::from(params.min_p), &mut self.weights);
            return distribution::draw(&self.weights, point);
        }
        match top_k {
            Some(top_k) => self.find_best(row, max, inverse_temperature, top_k),
            None => self.find_likely(row, max, inverse_temperature, f64::from(params.top_p)),
        }
        self.draw_candidate(params, point)
    }

    /// The one at `point` of what top-p, min-p and typical-p leave of the candidates.
    fn draw_candidate(&mut self, params: &SamplingParams, point: f64) -> TokenId {
        if params.top_p < 1.0 {
            let wanted = f64::from(params.top_p) * self.mass;
            keep_top_p(&mut self.candidates, wanted);
        }
        // The most likely token weighs 1.
        let min_p = f64::from(params.min_p);
        self.candidates.retain(|candidate| candidate.weight >= min_p);
        if params.typical_p < 1.0 {
            keep_typical(&mut self.candidates, f64::from(params.typical_p));
        }
        nucleus::draw(&self.candidates, point)
    }

    /// The `top_k` most likely tokens become the candidates.
    fn find_best(&mut self, row: &[f32], max: f32, inverse_temperature: f64, top_k: usize) {
        // Up to here a device may have chosen, whose list stands in this order; beyond, sorting the most of a vocabulary
        // would cost more than the rest of the draw.
        match top_k {
            ..=MOST_BEST => select_best(row, top_k, &mut self.selected),
            _ => select_set(row, top_k, &mut self.selected),
        }
        let weight_of = |token: TokenId| weight(row[token as usize] - max, inverse_temperature);
        self.candidates.clear();
        self.candidates.extend(self.selected.iter().map(|&token| Candidate::new(token, weight_of(token))));
        self.mass = mass(&self.candidates);
    }

    /// Every token that could be among those that top-p keeps becomes a candidate.
    fn find_likely(&mut self, row: &[f32], max: f32, inverse_temperature: f64, top_p: f64) {
        weigh(row, max, inverse_temperature, 0.0, &mut self.weights);
        self.mass = distribution::total(&self.weights);
        // All lighter ones together weigh less than what top-p drops; the half is for rounding.
        let floor = 0.5 * (1.0 - top_p) * self.mass / row.len() as f64;
        let kept = (0..).zip(&self.weights).filter(|(_, weight)| **weight > floor);
        self.candidates.clear();
        self.candidates.extend(kept.map(|(token, &weight)| Candidate::new(token, weight)));
    }
}

/// Everything that depends on the request alone, in place. It makes no logit as large as infinity, which would look like the
/// model's fault.
fn adjust(row: &mut [f32], choice: &Choice<'_>) {
    let Choice { params, constraint, counts, generated, .. } = choice;
    if let Some(allowed) = constraint {
        allowed.apply(row, &params.stop_token_ids);
    }
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = row.get_mut(token as usize) {
            *logit = (*logit + bias).min(f32::MAX);
        }
    }
    for (token, count) in counts.iter().flat_map(|counts| counts.iter()) {
        // A prompt token may lie outside the head.
        if let Some(logit) = row.get_mut(token as usize) {
            penalise(logit, count, params);
        }
    }
    let completes = |(&last, before): (&TokenId, &[TokenId])| generated.ends_with(before).then_some(last);
    let bad = params.bad_words.iter().filter_map(|word| word.split_last().and_then(completes));
    bad.for_each(|token| forbid(row, token));
    if generated.len() < params.min_tokens as usize {
        params.stop_token_ids.iter().for_each(|&token| forbid(row, token));
    }
}

fn forbid(row: &mut [f32], token: TokenId) {
    if let Some(logit) = row.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

/// The largest logit of a row that was finite as the model gave it.
fn allowed_max(row: &[f32]) -> Result<f32, RequestError> {
    checked_max(row).map_err(|_| RequestError::NothingAllowed)
}

fn penalise(logit: &mut f32, count: u32, params: &SamplingParams) {
    let repetition = params.repetition_penalty;
    *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
    if count > 0 {
        *logit -= count as f32 * params.frequency_penalty + params.presence_penalty;
    }
    *logit = f32::min(*logit, f32::MAX);
}

fn first_equal(row: &[f32], max: f32) -> TokenId {
    let position = row.iter().position(|&logit| logit == max);
    position.expect("the maximum of a row is one of its finite logits") as TokenId
}

#[cfg(test)]
mod tests;
