//! Questions about rows of logits, and what must be equal of the answers.

use candle_core::{DType, Device, Tensor};

use super::numbers::Random;
use super::tables::{LOGITS, Landscape, LogitCase};
use super::trial::{Trial, placed};
use crate::ModelError;
use crate::ops::{self, Compute, Detail, MOST_BEST, Pick, RowAnswer, RowQuestion, Weights};

/// Of a draw's point, as a share of all weights, and of what a weight is beside the floor: so close to a border rounding
/// decides.
const BORDER: f64 = 1e-6;
/// Of logarithms of sums, and of entropies.
pub(crate) const SUMS: f32 = 1e-5;
/// Draws of each kind from each row.
const POINTS: u32 = 12;

pub(super) fn check(trial: &mut Trial) -> Result<(), ModelError> {
    for case in LOGITS {
        let LogitCase { float, rows, vocab_size, landscape } = case;
        let logits = case.logits()?;
        let questions = case.questions(&logits, POINTS)?;
        let at = format!("{float:?} [{rows}, {vocab_size}], {landscape:?}, {} questions", questions.len());
        let answers = |compute: &Compute| ops::choose(compute, &placed(compute, &logits, float)?, &questions);
        trial.compare("chosen tokens", at.clone(), 0.0, &|compute| Ok(tokens(&answers(compute)?)));
        trial.compare("sums of a softmax", at, SUMS, &|compute| Ok(sums(&answers(compute)?)));
    }
    Ok(())
}

impl LogitCase {
    /// What `float` can hold, as f32 on the CPU.
    pub(crate) fn logits(&self) -> Result<Tensor, ModelError> {
        let mut random = Random(self.vocab_size as u64);
        let mut values = random.values(self.rows * self.vocab_size);
        for (row, values) in values.chunks_mut(self.vocab_size).enumerate() {
            self.landscape.shape(row, values);
        }
        let logits = Tensor::from_vec(values, (self.rows, self.vocab_size), &Device::Cpu)?;
        Ok(logits.to_dtype(self.float.dtype())?.to_dtype(DType::F32)?)
    }

    /// About every row, with `points` draws of each kind. Those whose point lies on a border are left out.
    pub(crate) fn questions(&self, logits: &Tensor, points: u32) -> Result<Vec<(usize, RowQuestion)>, ModelError> {
        let mut questions = Vec::new();
        for row in 0..self.rows {
            let plain = RowQuestion::BEST;
            let detailed = RowQuestion { detail: Detail::Logprobs, ..plain };
            let weights = |temperature, floor| Weights { temperature, floor };
            let mut ask = |question| questions.push((row, question));
            [1, 20, MOST_BEST].into_iter().for_each(|best| ask(RowQuestion { best, ..plain }));
            ask(RowQuestion { best: MOST_BEST, pick: Pick::BestOf(weights(0.7, 0.0)), ..plain });
            for token in [self.vocab_size / 2, self.vocab_size, self.vocab_size + 9] {
                ask(RowQuestion { pick: Pick::Given(token as u32), ..detailed });
            }
            for index in 0..points {
                let point = (f64::from(index) + 0.123) / f64::from(points);
                for weights in [weights(1.0, 0.0), weights(0.3, 0.02), weights(1e-40, 0.0), weights(3.0, 1.0)] {
                    ask(RowQuestion { best: 5, pick: Pick::Drawn { weights, point }, ..detailed });
                }
            }
        }
        let compute = Compute::cpu(1);
        let mut kept = Vec::new();
        for (row, question) in questions {
            let picked =
                |question| Ok::<_, ModelError>(ops::choose(&compute, logits, &[(row, question)])?[0].picked.token);
            let is_on_border = match shaken(&question) {
                Some([one, other]) => picked(one)? != picked(other)?,
                None => false,
            };
            kept.extend((!is_on_border).then_some((row, question)));
        }
        Ok(kept)
    }
}

impl Landscape {
    /// Of values in `-1..1`.
    fn shape(self, row: usize, values: &mut [f32]) {
        match self {
            Self::Hills => values.iter_mut().for_each(|value| *value *= 6.0),
            Self::Mountain => {
                values.iter_mut().for_each(|value| *value *= 3.0);
                values.iter_mut().take(700).for_each(|value| *value += 9.0);
            }
            Self::Plain => values.iter_mut().for_each(|value| *value = if *value > -0.5 { 1.0 } else { 0.5 }),
            Self::Islands => {
                let sunk = values.iter_mut().enumerate().filter(|(token, _)| token % 50 != 7);
                sunk.for_each(|(_, value)| *value = f32::NEG_INFINITY);
            }
            Self::Broken => match row {
                0 => values[values.len() / 2] = f32::NAN,
                1 => values[values.len() - 1] = f32::INFINITY,
                _ => values.fill(f32::NEG_INFINITY),
            },
        }
    }
}

/// A draw with its point, and its floor, moved to both sides.
fn shaken(question: &RowQuestion) -> Option<[RowQuestion; 2]> {
    let Pick::Drawn { weights, point } = question.pick else { return None };
    Some([-BORDER, BORDER].map(|shift| {
        let floor = (f64::from(weights.floor) * (1.0 + shift)).min(1.0) as f32;
        let pick = Pick::Drawn { weights: Weights { floor, ..weights }, point: (point + shift).max(0.0) };
        RowQuestion { pick, ..*question }
    }))
}

/// What must be equal: tokens, their logits and ranks.
pub(crate) fn tokens(answers: &[RowAnswer]) -> Vec<f32> {
    let of_answer = |answer: &RowAnswer| {
        let mut values = vec![answer.largest];
        if answer.largest.is_finite() {
            values.extend(answer.best.iter().flat_map(|(token, logit)| [*token as f32, *logit]));
            values.extend([answer.picked.token as f32, answer.picked.logit]);
            // A rank is counted where log-probabilities are asked for.
            values.extend((answer.sums.sum > 0.0).then_some(answer.picked.rank as f32));
        }
        values
    };
    answers.iter().flat_map(of_answer).collect()
}

/// What must be close: logarithms of sums, and entropies.
pub(crate) fn sums(answers: &[RowAnswer]) -> Vec<f32> {
    let of_answer = |answer: &RowAnswer| {
        let sums = answer.sums;
        let is_asked = |sum: f64| answer.largest.is_finite() && sum > 0.0;
        let mass = is_asked(answer.mass).then(|| answer.mass.ln() as f32);
        let softmax = is_asked(sums.sum).then(|| [sums.sum.ln() as f32, (sums.weighted / sums.sum) as f32]);
        mass.into_iter().chain(softmax.into_iter().flatten())
    };
    answers.iter().flat_map(of_answer).collect()
}
