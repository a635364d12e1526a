//! How long loads take, from how long they took.

use std::time::Duration;

/// Taken for granted until a load was measured, in bytes a second: what a slow disk gives.
const FIRST_GUESS: f64 = 200e6;
/// What a load takes besides reading, where nothing else is known, in seconds.
const USUAL_REST: f64 = 0.1;
/// A new measurement counts for this part of the estimate.
const NEW_PART: f64 = 0.5;

/// A load takes so long for each byte, and something besides however small it is: a small one that took long says nothing of
/// a large one.
#[derive(Debug)]
pub(super) struct LoadRate {
    seconds_per_byte: f64,
    /// In seconds.
    rest: f64,
    is_measured: bool,
}

impl LoadRate {
    pub(super) fn new() -> Self {
        Self { seconds_per_byte: FIRST_GUESS.recip(), rest: 0.0, is_measured: false }
    }

    /// What it took longer than expected is put down to bytes and rest as a Kalman filter does where each is as uncertain as
    /// it is large: by their squares.
    pub(super) fn measure(&mut self, bytes: u64, took: Duration) {
        let reading = bytes as f64 * self.seconds_per_byte;
        let part = if self.is_measured { NEW_PART } else { 1.0 };
        let error = part * (took.as_secs_f64() - reading - self.rest);
        let by_bytes = reading.powi(2) / (reading.powi(2) + self.rest.max(USUAL_REST).powi(2));
        if bytes > 0 {
            self.seconds_per_byte = ((reading + error * by_bytes) / bytes as f64).max(0.0);
        }
        self.rest = (self.rest + error * (1.0 - by_bytes)).max(0.0);
        self.is_measured = true;
    }

    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(self.rest + bytes as f64 * self.seconds_per_byte).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn seconds(rate: &LoadRate, bytes: u64) -> f64 {
        rate.time_for(bytes).as_secs_f64()
    }

    #[test]
    fn an_estimate_follows_what_was_measured() {
        let mut rate = LoadRate::new();
        assert_eq!(rate.time_for(400_000_000), Duration::from_secs(2));
        rate.measure(4 * GIB, Duration::from_secs(4));
        assert!((seconds(&rate, 4 * GIB) - 4.0).abs() < 0.01, "the guess counts for nothing any more: {rate:?}");
        (0..8).for_each(|_| rate.measure(4 * GIB, Duration::from_secs(8)));
        assert!((seconds(&rate, 2 * GIB) - 4.0).abs() < 0.1, "{rate:?}");
    }

    #[test]
    fn a_small_load_that_took_long_does_not_make_a_large_one_take_for_ever() {
        let mut rate = LoadRate::new();
        rate.measure(408 << 10, Duration::from_secs(1));
        assert!((seconds(&rate, 408 << 10) - 1.0).abs() < 0.01, "{rate:?}");
        assert!(seconds(&rate, 134 << 20) < 3.0, "{rate:?}");
        // And one that is over at once does not make it take no time.
        (0..20).for_each(|_| rate.measure(408 << 10, Duration::from_millis(1)));
        assert!(seconds(&rate, 134 << 20) > 0.2, "{rate:?}");
    }
}
