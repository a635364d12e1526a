//! How long loads take, from how long they took.

use std::time::Duration;

/// Taken for granted until a load was measured, in bytes a second: what a slow disk gives.
const FIRST_GUESS: f64 = 200e6;
/// A new measurement counts for this part of the estimate.
const NEW_PART: f64 = 0.5;
/// Shorter loads say nothing of the rate.
const SHORTEST: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct LoadRate {
    bytes_per_second: f64,
    is_measured: bool,
}

impl LoadRate {
    pub(super) fn new() -> Self {
        Self { bytes_per_second: FIRST_GUESS, is_measured: false }
    }

    pub(super) fn measure(&mut self, bytes: u64, took: Duration) {
        let measured = bytes as f64 / took.max(SHORTEST).as_secs_f64();
        let part = if self.is_measured { NEW_PART } else { 1.0 };
        self.bytes_per_second += part * (measured - self.bytes_per_second);
        self.is_measured = true;
    }

    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second.max(1.0)).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_follows_what_was_measured() {
        let mut rate = LoadRate::new();
        assert_eq!(rate.time_for(400_000_000), Duration::from_secs(2));
        rate.measure(1000, Duration::from_secs(10));
        assert_eq!(rate.time_for(1000), Duration::from_secs(10), "the guess counts for nothing any more");
        rate.measure(3000, Duration::from_secs(10));
        assert_eq!(rate.time_for(2000), Duration::from_secs(10));
    }
}
