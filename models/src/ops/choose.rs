//! What a step wants to know of rows of logits, where they are too long, or too far away, to be had whole.
//!
//! Of equal logits the token with the smaller id comes first. Weights are `exp((logit - largest) / temperature)`, so the most
//! likely token's is 1; those below `exp(-50)` or the floor count as nothing. Sums are f64. On a GPU a weight is f32: a draw
//! is that of the reference unless its point lies within 1e-6 of the border of two tokens, or a weight that close to the
//! floor.

use candle_core::{DType, Tensor};

use super::{Compute, Op};
use crate::{ModelError, TokenId};

/// The longest list of likely tokens that is told: half as many as the groups of lanes that a GPU's kernel bounds it by.
pub const MOST_BEST: usize = 128;

/// Below this exponent a weight counts as nothing.
const NEGLIGIBLE: f64 = -50.0;

/// What is asked of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowQuestion {
    /// How many of the most likely tokens: from 1 to [`MOST_BEST`]. A shorter vocabulary has fewer.
    pub best: usize,
    pub pick: Pick,
    pub detail: Detail,
}

/// Which token is picked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pick {
    /// The most likely.
    Best,
    /// The most likely; beside it, what all weights are together.
    BestOf(Weights),
    /// The one at `point`, in [0, 1), of all weights, by id.
    Drawn { weights: Weights, point: f64 },
    /// This one. Outside the vocabulary its logit is minus infinity.
    Given(TokenId),
}

/// How a draw sees a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Above 0.
    pub temperature: f32,
    /// What weighs less than this share of the most likely token counts as nothing. From 0 to 1.
    pub floor: f32,
}

/// Whether log-probabilities will be made of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    Token,
    Logprobs,
}

/// What was found. Where `largest` is not finite, nothing else means anything.
#[derive(Debug, Clone, PartialEq)]
pub struct RowAnswer<Best = Vec<(TokenId, f32)>> {
    /// NaN where any logit is.
    pub largest: f32,
    /// Tokens and their logits, the most likely first.
    pub best: Best,
    pub picked: PickedToken,
    /// Of all weights; 0 where a pick needs none.
    pub mass: f64,
    /// 0 unless asked for.
    pub sums: SoftmaxSums,
}

/// The same for whoever only looks.
pub type RowAnswerRef<'a> = RowAnswer<&'a [(TokenId, f32)]>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PickedToken {
    pub token: TokenId,
    pub logit: f32,
    /// 1 is the most likely. Only for log-probabilities.
    pub rank: u32,
}

/// Of a row at temperature 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SoftmaxSums {
    /// Of `exp(logit - largest)`.
    pub sum: f64,
    /// Of the same, each times its exponent.
    pub weighted: f64,
}

impl RowQuestion {
    /// The most likely token.
    pub const BEST: Self = Self { best: 1, pick: Pick::Best, detail: Detail::Token };

    /// How many of the likeliest tokens are asked for, if nothing else is.
    pub(crate) fn likeliest_alone(self) -> Option<usize> {
        let is_alone = self.pick == Pick::Best && self.detail == Detail::Token;
        Some(self.best).filter(|best| is_alone && (1..=MOST_BEST).contains(best))
    }
}

impl RowAnswer {
    pub fn as_ref(&self) -> RowAnswerRef<'_> {
        let Self { largest, ref best, picked, mass, sums } = *self;
        RowAnswer { largest, best, picked, mass, sums }
    }
}

impl<'a> RowAnswerRef<'a> {
    /// To a question for the likeliest tokens alone; `None` of no token.
    pub fn of_likeliest(best: &'a [(TokenId, f32)]) -> Option<Self> {
        let &(token, largest) = best.first()?;
        let picked = PickedToken { token, logit: largest, rank: 1 };
        Some(Self { largest, best, picked, mass: 0.0, sums: SoftmaxSums::default() })
    }
}

/// Answers about rows of `logits [num_rows, vocab_size]`, f32 or bf16, one for each question, which comes with its row.
/// Errors when a row is out of range, or a list of likely tokens longer than it may be or empty.
pub(crate) fn choose(
    compute: &Compute,
    logits: &Tensor,
    questions: &[(usize, RowQuestion)],
) -> Result<Vec<RowAnswer>, ModelError> {
    let _timer = compute.time(Op::Choose);
    let num_rows = logits.dim(0)?;
    for (row, question) in questions {
        if *row >= num_rows || !(1..=MOST_BEST).contains(&question.best) {
            return Err(ModelError::Input(format!("{} best tokens of row {row} of {num_rows}", question.best)));
        }
    }
    #[cfg(feature = "cuda")]
    if compute.kernels() == super::KernelSet::Cuda {
        return super::cuda::choose::choose(compute, logits, questions);
    }
    let answer = |(row, question): &(usize, RowQuestion)| {
        let row: Vec<f32> = logits.get(*row)?.to_dtype(DType::F32)?.to_vec1()?;
        Ok(reference(&row, question))
    };
    questions.iter().map(answer).collect()
}

fn reference(row: &[f32], question: &RowQuestion) -> RowAnswer {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut answer = RowAnswer {
        largest: if row.iter().any(|logit| logit.is_nan()) { f32::NAN } else { largest },
        best: Vec::new(),
        picked: PickedToken { token: 0, logit: largest, rank: 1 },
        mass: 0.0,
        sums: SoftmaxSums::default(),
    };
    if !answer.largest.is_finite() {
        return answer;
    }
    let mut tokens: Vec<TokenId> = (0..row.len() as TokenId).collect();
    let logit = |token: &TokenId| row.get(*token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    tokens.sort_by(|one, other| logit(other).partial_cmp(&logit(one)).expect("all are numbers").then(one.cmp(other)));
    answer.best = tokens.iter().take(question.best).map(|token| (*token, logit(token))).collect();
    let weights = |Weights { temperature, floor }: Weights| {
        let weight = move |logit: &f32| {
            let exponent = f64::from(logit - largest) / f64::from(temperature);
            Some(exponent.exp()).filter(|weight| exponent >= NEGLIGIBLE && *weight >= f64::from(floor)).unwrap_or(0.0)
        };
        row.iter().map(weight).collect::<Vec<f64>>()
    };
    let token = match question.pick {
        Pick::Best => tokens[0],
        Pick::BestOf(by) => {
            answer.mass = weights(by).iter().sum();
            tokens[0]
        }
        Pick::Drawn { weights: by, point } => {
            let weights = weights(by);
            answer.mass = weights.iter().sum();
            at_mass(&weights, point * answer.mass)
        }
        Pick::Given(token) => token,
    };
    let is_before = |other: &TokenId| logit(other) > logit(&token) || logit(other) == logit(&token) && *other < token;
    let rank = 1 + tokens.iter().filter(|other| is_before(other)).count() as u32;
    answer.picked = PickedToken { token, logit: logit(&token), rank };
    if question.detail == Detail::Logprobs {
        for below in row.iter().map(|logit| f64::from(logit - largest)) {
            let weight = below.exp();
            answer.sums.sum += weight;
            // Minus infinity times zero is no number.
            answer.sums.weighted += if weight > 0.0 { weight * below } else { 0.0 };
        }
    }
    answer
}

/// The first token whose weight `left` does not use up; where rounding has used up all, the last that weighs anything.
fn at_mass(weights: &[f64], mut left: f64) -> TokenId {
    let mut last = 0;
    for (token, weight) in weights.iter().enumerate() {
        if left < *weight {
            return token as TokenId;
        }
        if *weight > 0.0 {
            last = token;
        }
        left -= weight;
    }
    last as TokenId
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn ask(row: &[f32], question: RowQuestion) -> Result<RowAnswer, ModelError> {
        let logits = Tensor::from_slice(row, (1, row.len()), &Device::Cpu).unwrap();
        Ok(choose(&Compute::cpu(1), &logits, &[(0, question)])?.remove(0))
    }

    #[test]
    fn the_best_come_in_order_and_the_smaller_id_first_among_equals() {
        let answer = ask(&[1.0, -0.0, 7.0, 0.0, 7.0], RowQuestion { best: 4, ..RowQuestion::BEST }).unwrap();
        assert_eq!(answer.best.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 4, 0, 1]);
        assert_eq!(answer.picked, PickedToken { token: 2, logit: 7.0, rank: 1 });
    }

    #[test]
    fn a_draw_falls_on_each_token_by_its_weight_and_on_none_below_the_floor() {
        let row = [0.25_f32, 0.5, 0.05, 0.2].map(f32::ln);
        let drawn = |point, floor| {
            let pick = Pick::Drawn { weights: Weights { temperature: 1.0, floor }, point };
            ask(&row, RowQuestion { pick, ..RowQuestion::BEST }).unwrap().picked.token
        };
        assert_eq!(
            [0.0, 0.24, 0.26, 0.74, 0.76, 0.79, 0.81, 0.999].map(|point| drawn(point, 0.0)),
            [0, 0, 1, 1, 2, 2, 3, 3]
        );
        // Without the third token the others' share is 0.95.
        assert_eq!([0.26, 0.27, 0.78, 0.80].map(|point| drawn(point, 0.3)), [0, 1, 1, 3]);
    }

    #[test]
    fn a_given_token_is_ranked_and_one_outside_the_vocabulary_comes_last() {
        let given = |token| {
            let question = RowQuestion { pick: Pick::Given(token), detail: Detail::Logprobs, ..RowQuestion::BEST };
            ask(&[1.0, 3.0, 2.0, 3.0], question).unwrap()
        };
        assert_eq!(given(3).picked, PickedToken { token: 3, logit: 3.0, rank: 2 });
        assert_eq!(given(9).picked, PickedToken { token: 9, logit: f32::NEG_INFINITY, rank: 5 });
        let sums = given(0).sums;
        let expected = 2.0 + (-1.0_f64).exp() + (-2.0_f64).exp();
        assert!((sums.sum - expected).abs() < 1e-12 && sums.weighted < 0.0);
    }

    #[test]
    fn a_row_with_a_number_that_is_not_finite_is_told_from_a_masked_one() {
        let largest = |row: &[f32]| ask(row, RowQuestion::BEST).unwrap().largest;
        assert!(largest(&[f32::NAN, 0.0]).is_nan());
        assert_eq!(largest(&[f32::INFINITY, 0.0]), f32::INFINITY);
        assert_eq!(largest(&[f32::NEG_INFINITY; 2]), f32::NEG_INFINITY);
        assert_eq!(largest(&[f32::NEG_INFINITY, -1.0]), -1.0);
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        for best in [0, MOST_BEST + 1] {
            assert!(ask(&[0.0], RowQuestion { best, ..RowQuestion::BEST }).is_err());
        }
        let logits = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(choose(&Compute::cpu(1), &logits, &[(1, RowQuestion::BEST)]).is_err());
    }
}
