//! The wall clock as budgets see it: it neither goes back nor leaps.
//!
//! A clock that goes back would open a window that is over; so the latest instant that was ever seen is kept, over restarts
//! too, and time stands still until the clock has reached it again. A clock that leaps ahead would open windows that have not
//! begun, for good; so it is followed at most [`Wall::new`]'s `largest_leap` beyond what passed on the monotonic clock. Past
//! that, time goes on as the monotonic clock does and budgets are closed, until the wall clock is right again or an operator
//! says that it is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::gateway::quota::UnixSeconds;

#[derive(Debug)]
pub(super) struct Wall {
    latest: AtomicU64,
    /// By how much the wall clock may be ahead of the monotonic one, in seconds, without a leap.
    ahead: AtomicU64,
    largest_leap: Duration,
    /// Was said in the log.
    is_told: AtomicBool,
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) monotonic: Duration,
    pub(super) wall: Duration,
}

impl Reading {
    fn ahead(self) -> u64 {
        self.wall.as_secs().saturating_sub(self.monotonic.as_secs())
    }
}

impl Wall {
    /// `latest`: the latest instant that an earlier process saw.
    pub(super) fn new(latest: UnixSeconds, start: Reading, largest_leap: Duration) -> Self {
        let (latest, ahead) = (AtomicU64::new(latest.0), AtomicU64::new(start.ahead()));
        Self { latest, ahead, largest_leap, is_told: AtomicBool::new(false) }
    }

    pub(super) fn now(&self, reading: Reading) -> UnixSeconds {
        let wall = if self.has_leapt(reading) {
            if !self.is_told.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    seconds = reading.ahead().saturating_sub(self.ahead.load(Ordering::Relaxed)),
                    "the wall clock leapt ahead: budgets are closed until it is right, or the configuration is read again"
                );
            }
            self.ahead.load(Ordering::Relaxed).saturating_add(reading.monotonic.as_secs())
        } else {
            self.follow(reading);
            reading.wall.as_secs()
        };
        UnixSeconds(self.latest.fetch_max(wall, Ordering::Relaxed).max(wall))
    }

    /// Writes only where something changed: every request passes here.
    fn follow(&self, reading: Reading) {
        if reading.ahead() > self.ahead.load(Ordering::Relaxed) {
            self.ahead.fetch_max(reading.ahead(), Ordering::Relaxed);
        }
        if self.is_told.load(Ordering::Relaxed) {
            self.is_told.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn has_leapt(&self, reading: Reading) -> bool {
        let bound = self.ahead.load(Ordering::Relaxed).saturating_add(self.largest_leap.as_secs());
        reading.ahead() > bound
    }

    /// An operator says that the clock is right. Whether it had leapt.
    pub(super) fn accept(&self, reading: Reading) -> bool {
        let had_leapt = self.has_leapt(reading);
        self.ahead.fetch_max(reading.ahead(), Ordering::Relaxed);
        had_leapt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600;

    fn at(monotonic: u64, wall: u64) -> Reading {
        Reading { monotonic: Duration::from_secs(monotonic), wall: Duration::from_secs(wall) }
    }

    fn wall() -> Wall {
        Wall::new(UnixSeconds(0), at(10, 1_000_000), Duration::from_secs(HOUR))
    }

    #[test]
    fn time_stands_still_until_a_clock_that_went_back_has_caught_up() {
        let wall = wall();
        assert_eq!(wall.now(at(20, 1_000_010)), UnixSeconds(1_000_010));
        assert_eq!(wall.now(at(21, 900_000)), UnixSeconds(1_000_010));
        assert_eq!(wall.now(at(30, 1_000_020)), UnixSeconds(1_000_020));
        assert!(!wall.has_leapt(at(30, 1_000_020)), "coming back is no leap");
    }

    #[test]
    fn a_clock_that_leaps_is_not_followed_until_it_is_right_or_an_operator_says_so() {
        let wall = wall();
        assert_eq!(wall.now(at(20, 1_000_010 + HOUR)), UnixSeconds(1_000_010 + HOUR), "that much is followed");
        let leapt = at(30, 1_000_020 + 3 * HOUR);
        assert!(wall.has_leapt(leapt));
        assert_eq!(wall.now(leapt), UnixSeconds(1_000_020 + HOUR));
        let right = at(40, 1_000_030 + HOUR);
        assert!(!wall.has_leapt(right));
        assert_eq!(wall.now(right), UnixSeconds(1_000_030 + HOUR));
        assert!(wall.accept(leapt) && !wall.accept(leapt));
        assert_eq!(wall.now(at(50, 1_000_040 + 3 * HOUR)), UnixSeconds(1_000_040 + 3 * HOUR));
    }
}
