//! Equal asks that are refused in one moment are told different instants, so that they do not come back in one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::causes::WORTH_A_RETRY;

/// Steps around a circle by the golden ratio (an additive recurrence): however many steps follow each other, they lie about
/// evenly on it, which random numbers do not.
#[derive(Debug, Default)]
pub(crate) struct Spread(AtomicU64);

impl Spread {
    /// What the next to be refused waits beyond the instant at which its ask would fit: less than a quarter of the `wait`
    /// and than ten seconds. A wait that clients still sit out stays one.
    pub(crate) fn beyond(&self, wait: Duration) -> Duration {
        const LONGEST: Duration = Duration::from_secs(10);
        /// 2^64 over the golden ratio: adding it wraps around.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let place = self.0.fetch_add(STEP, Ordering::Relaxed);
        let spread = (wait / 4).min(LONGEST).mul_f64(f64::from((place >> 32) as u32) / 2.0_f64.powi(32));
        if wait > WORTH_A_RETRY { spread } else { spread.min(WORTH_A_RETRY - wait) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_asks_are_told_instants_that_lie_evenly_over_a_quarter_of_the_wait() {
        let (spread, wait) = (Spread::default(), Duration::from_secs(40));
        let mut told: Vec<Duration> = (0..100).map(|_| spread.beyond(wait)).collect();
        told.sort_unstable();
        assert!(told[99] < Duration::from_secs(10), "{told:?}");
        let gaps = told.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.clone().min().unwrap() > Duration::from_millis(30), "{told:?}");
        assert!(gaps.max().unwrap() < Duration::from_millis(300), "{told:?}");
    }

    #[test]
    fn no_wait_is_made_one_that_clients_do_not_sit_out_and_none_is_made_of_nothing() {
        let spread = Spread::default();
        for seconds in [0, 1, 59, 60] {
            let wait = Duration::from_secs(seconds);
            assert!((0..100).all(|_| wait + spread.beyond(wait) <= WORTH_A_RETRY && spread.beyond(wait) <= wait / 4));
        }
        let days = Duration::from_secs(86_400);
        assert!((0..100).all(|_| spread.beyond(days) < Duration::from_secs(10)));
    }
}
