//! Random numbers for choices that must be spread, not secret.

use std::sync::atomic::{AtomicU64, Ordering};

/// SplitMix64 (Steele, Lea and Flood 2014): an atomic addition and a mix, so that no lock is needed.
#[derive(Debug)]
pub(super) struct Chance(AtomicU64);

impl Chance {
    /// `seed` decides every number that follows.
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub(super) fn draw(&self) -> u64 {
        const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        mix(self.0.fetch_add(GOLDEN_GAMMA, Ordering::Relaxed))
    }

    /// At least 0, below 1.
    pub(super) fn draw_unit(&self) -> f64 {
        /// 2^53, the numbers that a float tells apart below 1.
        const STEPS: f64 = 9_007_199_254_740_992.0;
        (self.draw() >> 11) as f64 / STEPS
    }
}

/// Spreads close values far apart.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
