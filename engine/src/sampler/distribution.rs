//! The unnormalised distribution over a whole vocabulary, which is too long for anything but a few straight passes.
//!
//! The exponential is our own: a few multiplications that a compiler spreads over vector lanes, and, unlike a system's
//! library, the same bits on every machine.

use passerelle_models::TokenId;

/// Weights below `exp(NEGLIGIBLE)` count as nothing: all of a vocabulary's together are less than the last bit of a draw.
const NEGLIGIBLE: f64 = -50.0;

/// Weights that are added up before a draw looks at each.
const STRETCH: usize = 1024;

/// `exp(logit / temperature)`, relative to the most likely token's, which is exactly 1. `below_max` is at most 0.
#[inline]
pub(crate) fn weight(below_max: f32, inverse_temperature: f64) -> f64 {
    let exponent = f64::from(below_max) * inverse_temperature;
    let weight = exp(exponent.max(NEGLIGIBLE));
    if exponent < NEGLIGIBLE { 0.0 } else { weight }
}

/// The weights of a whole row, in place of what `weights` held. Those below `floor` count as nothing.
pub(crate) fn weigh(row: &[f32], max: f32, inverse_temperature: f64, floor: f64, weights: &mut Vec<f64>) {
    weights.clear();
    weights.extend(row.iter().map(|&logit| {
        let weight = weight(logit - max, inverse_temperature);
        if weight < floor { 0.0 } else { weight }
    }));
}

/// The sum, in an order that depends on the length alone.
pub(crate) fn total(weights: &[f64]) -> f64 {
    weights.chunks(STRETCH).map(sum).sum()
}

/// The token at `point`, in [0, 1), of the total weight, by id. At least one weight is above 0.
pub(crate) fn draw(weights: &[f64], point: f64) -> TokenId {
    let mut left = point * total(weights);
    for (index, stretch) in weights.chunks(STRETCH).enumerate() {
        let mass = sum(stretch);
        if left >= mass {
            left -= mass;
            continue;
        }
        let at = stretch.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may use the stretch up before its end.
        return (index * STRETCH + at.unwrap_or_else(|| last_possible(stretch))) as TokenId;
    }
    last_possible(weights) as TokenId
}

fn last_possible(weights: &[f64]) -> usize {
    let possible = weights.iter().rposition(|&weight| weight > 0.0);
    possible.expect("the most likely candidate is never dropped and weighs 1")
}

fn sum(weights: &[f64]) -> f64 {
    const LANES: usize = 8;
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, weight) in sums.iter_mut().zip(chunk) {
            *sum += weight;
        }
    }
    sums.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

/// For `x` in [`NEGLIGIBLE`, 0], to about 1e-11: `2^k` through the exponent's bits, times a Taylor polynomial of the rest.
#[inline]
fn exp(x: f64) -> f64 {
    use std::f64::consts::{LN_2, LOG2_E};
    /// Added to a number, rounds it to a whole one, which then stands in the lowest bits.
    const ROUND: f64 = (3_u64 << 51) as f64;
    const BIAS: u64 = 1023;
    let shifted = x * LOG2_E + ROUND;
    let r = x - (shifted - ROUND) * LN_2;
    let tail = 1.0 / 5040.0 + r * (1.0 / 40_320.0 + r * (1.0 / 362_880.0));
    let middle = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * tail));
    let polynomial = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * middle)));
    polynomial * f64::from_bits((shifted.to_bits() << 52).wrapping_add(BIAS << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_and_exact_for_the_most_likely_token() {
        assert_eq!(weight(0.0, 1.0), 1.0);
        for step in 0..=5000 {
            let x = -f64::from(step) / 100.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-10, "{x}");
        }
    }

    #[test]
    fn what_can_never_be_drawn_weighs_nothing() {
        assert_eq!(weight(-50.1, 1.0), 0.0);
        assert_eq!(weight(f32::NEG_INFINITY, 1.0), 0.0);
        assert!(weight(-49.9, 1.0) > 0.0);
        assert_eq!(weight(-1.0, 1e40), 0.0);
    }

    #[test]
    fn a_draw_finds_the_token_at_its_point_in_any_stretch() {
        let weights = vec![1.0; 5000];
        for id in [0, 1, 1023, 1024, 3000, 4999] {
            assert_eq!(draw(&weights, (f64::from(id) + 0.5) / 5000.0), id as TokenId);
        }
        let mut lonely = vec![0.0; 5000];
        lonely[2222] = 1.0;
        assert!([0.0, 0.5, 1.0 - f64::EPSILON / 2.0].iter().all(|&point| draw(&lonely, point) == 2222));
    }
}
