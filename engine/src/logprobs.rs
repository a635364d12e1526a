//! Log-probabilities of the model's own distribution: log-softmax of the row as it left the model.

use std::cmp::Ordering;

use passerelle_models::TokenId;
use passerelle_models::ops::{PickedToken, RowAnswerRef};

use crate::event::{RequestError, TokenLogprobs};

/// Larger logits first, the lower id among equals.
pub(crate) fn best_first(row: &[f32], a: TokenId, b: TokenId) -> Ordering {
    let (left, right) = (row[a as usize], row[b as usize]);
    right.partial_cmp(&left).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

/// The largest logit. Errors unless every logit is a number below infinity and at least one is above minus infinity,
/// which marks a token that cannot be.
pub(crate) fn checked_max(row: &[f32]) -> Result<f32, RequestError> {
    /// Side by side, so that none waits for the one before.
    const LANES: usize = 32;
    let (chunks, rest) = row.as_chunks::<LANES>();
    // `f32::max` passes over NaN, so NaN is looked for beside it.
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut has_nan = [false; LANES];
    for chunk in chunks {
        for (lane, &logit) in chunk.iter().enumerate() {
            largest[lane] = largest[lane].max(logit);
            has_nan[lane] |= logit.is_nan();
        }
    }
    let max = largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let has_nan = has_nan.contains(&true) || rest.iter().any(|logit| logit.is_nan());
    if has_nan || !max.is_finite() { Err(RequestError::NotFinite) } else { Ok(max) }
}

/// `KL(p || q)` in nats, of the distributions of two rows of one vocabulary; their log-softmaxes and the sum are taken
/// in f64. Infinite where `q` rules out what `p` does not. Errors as [`checked_max`].
pub(crate) fn kl_divergence(p: &[f32], q: &[f32]) -> Result<f64, RequestError> {
    let (log_sum_p, log_sum_q) = (log_sum(p)?, log_sum(q)?);
    let of_token = |(&p, &q): (&f32, &f32)| {
        let (log_p, log_q) = (f64::from(p) - log_sum_p, f64::from(q) - log_sum_q);
        let weight = log_p.exp();
        // A token that cannot be adds nothing, where zero times infinity would be no number.
        if weight > 0.0 { weight * (log_p - log_q) } else { 0.0 }
    };
    // Rounding leaves equal rows a hair below zero.
    Ok(p.iter().zip(q).map(of_token).sum::<f64>().max(0.0))
}

/// What is taken from each logit to make it a log-probability.
fn log_sum(row: &[f32]) -> Result<f64, RequestError> {
    let max = checked_max(row)?;
    Ok(f64::from(max) + row.iter().map(|&logit| f64::from(logit - max).exp()).sum::<f64>().ln())
}

/// How likely `token` was, and which `num_top` tokens were the most likely.
pub(crate) fn token_logprobs(row: &[f32], token: TokenId, num_top: u8) -> Result<TokenLogprobs, RequestError> {
    let max = checked_max(row)?;
    let (mut sum, mut weighted) = (0.0_f64, 0.0_f64);
    for &logit in row {
        let below_max = f64::from(logit - max);
        let weight = below_max.exp();
        sum += weight;
        // A token that cannot be adds nothing, where minus infinity times zero would be no number.
        weighted += if weight > 0.0 { weight * below_max } else { 0.0 };
    }
    let softmax = Softmax::new(max, sum, weighted);
    let mut top = Vec::new();
    select_best(row, usize::from(num_top), &mut top);
    // An input vocabulary may be larger than the head: such a prompt token cannot be generated.
    let logit = row.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let better = |(id, &other): (usize, &f32)| other > logit || (other == logit && id < token as usize);
    Ok(TokenLogprobs {
        token,
        logprob: softmax.logprob(logit),
        rank: 1 + row.iter().enumerate().filter(|&entry| better(entry)).count() as u32,
        entropy: softmax.entropy,
        top: top.into_iter().map(|id| (id, softmax.logprob(row[id as usize]))).collect(),
    })
}

/// As [`token_logprobs`], of a row that was asked for log-probabilities and `num_top` of its most likely tokens.
pub(crate) fn answered_logprobs(
    answer: &RowAnswerRef<'_>,
    picked: PickedToken,
    num_top: u8,
) -> Result<TokenLogprobs, RequestError> {
    let softmax = Softmax::new(checked_max(&[answer.largest])?, answer.sums.sum, answer.sums.weighted);
    let top = answer.best.iter().take(usize::from(num_top));
    Ok(TokenLogprobs {
        token: picked.token,
        logprob: softmax.logprob(picked.logit),
        rank: picked.rank,
        entropy: softmax.entropy,
        top: top.map(|&(id, logit)| (id, softmax.logprob(logit))).collect(),
    })
}

/// What makes log-probabilities of a row's logits.
struct Softmax {
    log_sum: f64,
    entropy: f32,
}

impl Softmax {
    /// `sum` of `exp(logit - max)`, and `weighted` of the same, each times its exponent.
    fn new(max: f32, sum: f64, weighted: f64) -> Self {
        Self { log_sum: f64::from(max) + sum.ln(), entropy: (sum.ln() - weighted / sum) as f32 }
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_sum) as f32
    }
}

/// The `count` best ids, best first, without sorting the row.
pub(crate) fn select_best(row: &[f32], count: usize, best: &mut Vec<TokenId>) {
    /// Up to here, one pass that inserts into a short sorted list beats a selection over a list of all ids.
    const SHORT_LIST: usize = 64;
    best.clear();
    if count == 0 {
        return;
    }
    let ids = 0..row.len() as TokenId;
    if count > SHORT_LIST {
        best.extend(ids);
        if count < best.len() {
            best.select_nth_unstable_by(count, |&a, &b| best_first(row, a, b));
            best.truncate(count);
        }
        best.sort_unstable_by(|&a, &b| best_first(row, a, b));
        return;
    }
    for id in ids {
        // Ids ascend, so an equal logit never displaces an earlier one.
        if best.len() == count && best.last().is_some_and(|&worst| row[id as usize] <= row[worst as usize]) {
            continue;
        }
        let at = best.partition_point(|&other| row[other as usize] >= row[id as usize]);
        best.truncate(count - 1);
        best.insert(at.min(best.len()), id);
    }
}

/// The ids that [`select_best`] gives, ascending, for as many of them as nobody should sort.
pub(crate) fn select_set(row: &[f32], count: usize, set: &mut Vec<TokenId>) {
    let ids = 0..row.len() as TokenId;
    set.clear();
    if count == 0 {
        return;
    }
    set.extend(ids.clone());
    if count < row.len() {
        let (_, &mut worst, _) = set.select_nth_unstable_by(count - 1, |&a, &b| best_first(row, a, b));
        set.clear();
        set.extend(ids.filter(|&id| best_first(row, id, worst).is_le()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_entry_is_the_very_float_of_the_distribution() {
        let row = [1.0, 3.0, 2.0, 3.0];
        let logprobs = token_logprobs(&row, 3, 3).unwrap();
        assert_eq!(logprobs.rank, 2);
        assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(logprobs.top[1].1.to_bits(), logprobs.logprob.to_bits());
        let sum: f64 = (0..4).map(|id| f64::from(token_logprobs(&row, id, 0).unwrap().logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn entropy_is_of_the_whole_distribution() {
        let entropy = |row: &[f32]| token_logprobs(row, 0, 0).unwrap().entropy;
        assert!((entropy(&[3.0; 8]) - 8_f32.ln()).abs() < 1e-6);
        assert_eq!(entropy(&[0.0, f32::NEG_INFINITY]), 0.0);
        let half = -(0.25_f32 * 0.25_f32.ln() + 0.75 * 0.75_f32.ln());
        assert!((entropy(&[0.25_f32.ln(), 0.75_f32.ln()]) - half).abs() < 1e-6);
    }

    #[test]
    fn divergence_is_that_of_the_definition_and_infinite_where_the_second_cannot_follow() {
        let ln = |p: [f32; 3]| p.map(f32::ln);
        let kl = kl_divergence(&ln([0.5, 0.25, 0.25]), &ln([0.25, 0.25, 0.5])).unwrap();
        assert!((kl - 0.25 * 2_f64.ln()).abs() < 1e-7, "{kl}");
        // Neither the height of a row nor a token that the first rules out counts.
        assert_eq!(kl_divergence(&[1.0, 3.0], &[11.0, 13.0]), Ok(0.0));
        assert_eq!(kl_divergence(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), Ok(0.0));
        assert_eq!(kl_divergence(&[0.0, 0.0], &[0.0, f32::NEG_INFINITY]), Ok(f64::INFINITY));
        assert_eq!(kl_divergence(&[0.0, 0.0], &[0.0, f32::NAN]), Err(RequestError::NotFinite));
    }

    #[test]
    fn a_token_outside_the_head_is_impossible_and_last() {
        let logprobs = token_logprobs(&[0.0, 1.0], 9, 1).unwrap();
        assert_eq!((logprobs.logprob, logprobs.rank), (f32::NEG_INFINITY, 3));
    }

    #[test]
    fn numbers_that_are_not_finite_are_errors_and_masked_tokens_are_not() {
        for row in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [f32::NEG_INFINITY, f32::NEG_INFINITY]] {
            assert_eq!(checked_max(&row), Err(RequestError::NotFinite));
        }
        assert_eq!(checked_max(&[f32::NEG_INFINITY, -1.0]), Ok(-1.0));
    }

    #[test]
    fn the_largest_logit_and_one_that_is_no_number_are_seen_wherever_they_stand() {
        for at in 0..70 {
            let with = |logit| {
                let mut row = vec![-1.0; 70];
                row[at] = logit;
                checked_max(&row)
            };
            assert_eq!((with(2.0), with(f32::NAN)), (Ok(2.0), Err(RequestError::NotFinite)), "{at}");
        }
    }

    #[test]
    fn selection_agrees_with_a_sort_for_short_and_long_lists() {
        let row: Vec<f32> = (0..500_u64).map(|i| (crate::random::mix(i) % 97) as f32).collect();
        let mut sorted: Vec<TokenId> = (0..500).collect();
        sorted.sort_by(|&a, &b| best_first(&row, a, b));
        let (mut best, mut set) = (Vec::new(), Vec::new());
        for count in [0, 1, 2, 20, 64, 65, 400, 499, 500, 900] {
            select_best(&row, count, &mut best);
            assert_eq!(best, sorted[..count.min(500)], "{count}");
            select_set(&row, count, &mut set);
            best.sort_unstable();
            assert_eq!(set, best, "{count}");
        }
    }
}
