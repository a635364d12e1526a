//! Choices that need no whole row: what is asked of a row where it lies, and the token that follows from the answer. It is the
//! token that [`Sampler::sample`] takes of the row.

use passerelle_models::ops::{Detail, MOST_BEST, Pick, PickedToken, RowAnswerRef, RowQuestion, Weights};

use super::distribution::weight;
use super::nucleus::{Candidate, mass};
use super::{Choice, Sampler};
use crate::event::{RequestError, TokenEvent};
use crate::logprobs::{answered_logprobs, checked_max};
use crate::random::uniform;
use crate::request::SamplingParams;
use crate::sequence::Sequence;

/// What is asked of each of a sequence's rows, in the order of its sampled tokens. `None`: the whole row is needed.
pub(crate) fn questions(sequence: &Sequence, vocab_size: usize) -> impl Iterator<Item = Option<RowQuestion>> {
    let num_top = sequence.sampling.prompt_logprobs.map_or(0, usize::from);
    let scored = sequence.prompt_logprob_positions().map(move |position| {
        let pick = Pick::Given(sequence.tokens()[position + 1]);
        let question = RowQuestion { best: num_top.max(1), pick, detail: Detail::Logprobs };
        (question.best <= MOST_BEST).then_some(question)
    });
    let choices = sequence.choices();
    let chosen = sequence.samples_next().then(|| {
        // Several choices of one prompt draw from one row.
        let only = Some(choices.start).filter(|_| choices.len() == 1);
        only.and_then(|index| question(&Choice::of(sequence, index), vocab_size))
    });
    scored.chain(chosen)
}

/// `None` where the choice changes the row, or needs more of it than can be asked for.
fn question(choice: &Choice<'_>, vocab_size: usize) -> Option<RowQuestion> {
    let Choice { params, generated, seed, .. } = choice;
    if changes_row(choice) {
        return None;
    }
    let weights = |floor| Weights { temperature: params.temperature, floor };
    let (best, pick) = match top_k(params, vocab_size) {
        _ if params.temperature == 0.0 => (1, Pick::Best),
        Some(top_k) => (top_k, Pick::Best),
        None if params.typical_p < 1.0 => return None,
        None if params.top_p < 1.0 => (MOST_BEST, Pick::BestOf(weights(0.0))),
        None => {
            let point = uniform(*seed, generated.len() as u64);
            (1, Pick::Drawn { weights: weights(params.min_p), point })
        }
    };
    let best = best.max(params.logprobs.map_or(0, usize::from));
    let detail = if params.logprobs.is_some() { Detail::Logprobs } else { Detail::Token };
    (best <= MOST_BEST).then_some(RowQuestion { best, pick, detail })
}

/// Whether the request forbids tokens, or makes some likelier or less likely than the model does.
pub(super) fn changes_row(choice: &Choice<'_>) -> bool {
    let Choice { params, constraint, counts, generated, .. } = choice;
    let waits_for_length = generated.len() < params.min_tokens as usize && !params.stop_token_ids.is_empty();
    let forbids = constraint.is_some() || waits_for_length || !params.bad_words.is_empty();
    forbids || counts.is_some() || !params.logit_bias.is_empty()
}

/// As many as are fewer than all.
pub(super) fn top_k(params: &SamplingParams, vocab_size: usize) -> Option<usize> {
    params.top_k.map(|k| k as usize).filter(|&k| k < vocab_size)
}

impl Sampler {
    /// The token that follows from the answer to [`question`]; `None` where top-p keeps more tokens than the answer names.
    pub(super) fn settle(
        &mut self,
        answer: &RowAnswerRef<'_>,
        choice: &Choice<'_>,
        vocab_size: usize,
    ) -> Result<Option<TokenEvent>, RequestError> {
        checked_max(&[answer.largest])?;
        let Choice { params, .. } = choice;
        let top_k = top_k(params, vocab_size);
        let picks_itself = params.temperature == 0.0 || top_k.is_none() && params.top_p >= 1.0;
        let picked = match picks_itself {
            true => Some(answer.picked),
            false => self.draw_of_best(answer, top_k, params, uniform(choice.seed, choice.generated.len() as u64)),
        };
        let Some(picked) = picked else { return Ok(None) };
        let logprobs = params.logprobs.map(|num_top| answered_logprobs(answer, picked, num_top)).transpose()?;
        Ok(Some(TokenEvent { choice: choice.index, token: picked.token, logprobs }))
    }

    /// As [`Sampler::draw`], of the answer's most likely tokens.
    fn draw_of_best(
        &mut self,
        answer: &RowAnswerRef<'_>,
        top_k: Option<usize>,
        params: &SamplingParams,
        point: f64,
    ) -> Option<PickedToken> {
        let inverse_temperature = 1.0 / f64::from(params.temperature);
        let best = &answer.best[..answer.best.len().min(top_k.unwrap_or(MOST_BEST))];
        let weighed =
            |&(token, logit): &(u32, f32)| Candidate::new(token, weight(logit - answer.largest, inverse_temperature));
        self.candidates.clear();
        self.candidates.extend(best.iter().map(weighed));
        self.mass = mass(&self.candidates);
        if top_k.is_none() {
            let named = std::mem::replace(&mut self.mass, answer.mass);
            if named < f64::from(params.top_p) * self.mass {
                return None;
            }
        }
        let token = self.draw_candidate(params, point);
        let index = best.iter().position(|(of_best, _)| *of_best == token)?;
        Some(PickedToken { token, logit: best[index].1, rank: 1 + index as u32 })
    }
}

#[cfg(test)]
mod tests {
    use passerelle_models::{DistantLogits, LogitRows};

    use super::*;
    use crate::constraint::{Allowed, AnswerEnd};
    use crate::random::mix;

    const VOCAB: usize = 1500;

    fn choice(params: &SamplingParams, seed: u64) -> Choice<'_> {
        Choice { index: 0, params, constraint: None, counts: None, generated: &[], seed }
    }

    fn row(seed: u64) -> Vec<f32> {
        (0..VOCAB as u64).map(|token| (mix(mix(seed) ^ token) % 997) as f32 / 60.0).collect()
    }

    /// What can be asked of a row, in every combination.
    fn asked() -> Vec<SamplingParams> {
        let plain = SamplingParams::default();
        let mut all = Vec::new();
        for temperature in [0.0, 0.3, 1.0] {
            for top_k in [None, Some(1), Some(20), Some(128)] {
                for (top_p, min_p) in [(1.0, 0.0), (0.6, 0.0), (1.0, 0.1), (0.9, 0.05)] {
                    for logprobs in [None, Some(0), Some(7)] {
                        all.push(SamplingParams { temperature, top_k, top_p, min_p, logprobs, ..plain.clone() });
                    }
                }
            }
        }
        all.push(SamplingParams { top_k: Some(30), typical_p: 0.4, ..plain });
        all
    }

    #[test]
    fn what_follows_from_an_answer_is_what_the_row_would_give() {
        let mut sampler = Sampler::default();
        let mut settled = 0;
        for (seed, params) in (0..).zip(asked()) {
            let (row, choice) = (row(seed), choice(&params, seed));
            let logits = DistantLogits::pretend(LogitRows::new(VOCAB, row.clone())).unwrap();
            let answer = logits.ask(&[(0, question(&choice, VOCAB).unwrap())]).unwrap().remove(0);
            let want = sampler.sample(&mut row.clone(), &choice).unwrap();
            let Some(got) = sampler.settle(&answer.as_ref(), &choice, VOCAB).unwrap() else {
                assert!(params.top_p < 1.0 && params.top_k.is_none());
                continue;
            };
            settled += 1;
            assert_eq!(got.token, want.token, "{params:?}");
            assert_eq!(got.logprobs.is_some(), want.logprobs.is_some(), "{params:?}");
            let (Some(got), Some(want)) = (got.logprobs, want.logprobs) else { continue };
            assert_eq!((got.rank, got.top.len()), (want.rank, want.top.len()), "{params:?}");
            assert!((got.logprob - want.logprob).abs() < 1e-5 && (got.entropy - want.entropy).abs() < 1e-5);
            for (got, want) in got.top.iter().zip(&want.top) {
                assert!(got.0 == want.0 && (got.1 - want.1).abs() < 1e-5);
            }
        }
        assert!(settled > 140, "{settled}");
    }

    #[test]
    fn a_nucleus_that_the_likely_tokens_do_not_cover_needs_the_row() {
        let params = SamplingParams { top_p: 0.99, ..SamplingParams::default() };
        let choice = choice(&params, 3);
        let logits = DistantLogits::pretend(LogitRows::new(VOCAB, vec![0.5; VOCAB])).unwrap();
        let answer = logits.ask(&[(0, question(&choice, VOCAB).unwrap())]).unwrap().remove(0);
        assert_eq!(Sampler::default().settle(&answer.as_ref(), &choice, VOCAB), Ok(None));
    }

    #[test]
    fn what_changes_the_row_or_sees_too_much_of_it_needs_the_row() {
        let plain = SamplingParams::default();
        let whole = [
            SamplingParams { logit_bias: vec![(1, 1.0)], ..plain.clone() },
            SamplingParams { bad_words: vec![vec![1]], ..plain.clone() },
            SamplingParams { min_tokens: 1, stop_token_ids: vec![1], ..plain.clone() },
            SamplingParams { typical_p: 0.5, ..plain.clone() },
            SamplingParams { top_k: Some(MOST_BEST as u32 + 1), ..plain.clone() },
            SamplingParams { logprobs: Some(MOST_BEST as u8 + 1), ..plain.clone() },
        ];
        assert!(whole.iter().all(|params| question(&choice(params, 0), VOCAB).is_none()));
        let allowed = Some(Allowed { tokens: &[1], end: AnswerEnd::NotHere });
        assert_eq!(question(&Choice { constraint: allowed, ..choice(&plain, 0) }, VOCAB), None);
        let counts = Default::default();
        assert_eq!(question(&Choice { counts: Some(&counts), ..choice(&plain, 0) }, VOCAB), None);
        let waited = SamplingParams { min_tokens: 1, stop_token_ids: vec![1], ..plain };
        assert!(question(&Choice { generated: &[4], ..choice(&waited, 0) }, VOCAB).is_some());
    }

    #[test]
    fn a_number_that_is_not_finite_fails_as_in_the_row() {
        let params = SamplingParams::default();
        let choice = choice(&params, 0);
        for broken in [f32::NAN, f32::INFINITY] {
            let logits = DistantLogits::pretend(LogitRows::new(3, vec![0.0, broken, 1.0])).unwrap();
            let answer = logits.ask(&[(0, question(&choice, 3).unwrap())]).unwrap().remove(0);
            assert_eq!(Sampler::default().settle(&answer.as_ref(), &choice, 3), Err(RequestError::NotFinite));
        }
    }
}
