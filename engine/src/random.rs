//! Chance as a function of its arguments: the same seed and position give the same draw, whatever else runs.

pub(crate) use passerelle_models::random::mix;

/// In [0, 1), 53 bits.
pub(crate) fn uniform(seed: u64, position: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
    (mix(mix(seed) ^ position) >> 11) as f64 * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_spread_evenly_over_positions_and_over_seeds() {
        for draw in [|i| uniform(7, i), |i| uniform(i, 7)] {
            let mut buckets = [0.0_f64; 16];
            (0..16_000).for_each(|i| buckets[(draw(i) * 16.0) as usize] += 1.0);
            let chi_square: f64 = buckets.iter().map(|count| (count - 1000.0).powi(2) / 1000.0).sum();
            // 15 degrees of freedom: 37.7 is exceeded once in a thousand tries, and these tries are fixed.
            assert!(chi_square < 37.7, "{chi_square}");
        }
    }
}
