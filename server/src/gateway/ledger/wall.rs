//! The wall clock as budgets see it: it neither goes back nor leaps.
//!
//! A clock that goes back would open a window that is over; so the latest instant that was ever seen is kept, over restarts
//! too, and time stands still until the clock has reached it again. A clock that leaps ahead would open windows that
//! have not begun, for good; so it is followed at most [`Wall::new`]'s `largest_leap` beyond what passed on the
//! monotonic clock. Past that, time goes on as the monotonic clock does and budgets are closed, until the wall clock is
//! right again or an operator says that it is. Nothing says how long a server was off; one whose clock is further
//! beyond its latest entry than it may have been away begins as if the clock had leapt.

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

/// How far the wall clock is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockBounds {
    /// By how much it may leap ahead before budgets are closed.
    pub largest_leap: Duration,
    /// How long a server may have been off.
    pub longest_absence: Duration,
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

impl ClockBounds {
    /// The instant that a server begins with. `latest`: of what it kept; 0 where it kept nothing.
    pub fn at_start(self, latest: UnixSeconds, wall: UnixSeconds) -> UnixSeconds {
        let is_believed = latest.0 == 0 || wall.0 <= latest.0.saturating_add(self.longest_absence.as_secs());
        if is_believed { latest.max(wall) } else { latest }
    }
}

impl Default for ClockBounds {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { largest_leap: DAY, longest_absence: 90 * DAY }
    }
}

impl Wall {
    /// `latest`: the latest instant that an earlier process saw.
    pub(super) fn new(latest: UnixSeconds, start: Reading, bounds: ClockBounds) -> Self {
        let at_start = bounds.at_start(latest, UnixSeconds::of(start.wall));
        // A clock that is behind is not ahead of itself.
        let wall = start.wall.min(Duration::from_secs(at_start.0));
        let ahead = AtomicU64::new(Reading { wall, ..start }.ahead());
        let (latest, largest_leap) = (AtomicU64::new(latest.0), bounds.largest_leap);
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

    const BOUNDS: ClockBounds =
        ClockBounds { largest_leap: Duration::from_secs(HOUR), longest_absence: Duration::from_secs(100 * HOUR) };

    fn wall() -> Wall {
        Wall::new(UnixSeconds(0), at(10, 1_000_000), BOUNDS)
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

    #[test]
    fn a_clock_is_believed_at_the_start_as_far_as_the_server_may_have_been_off() {
        let start = |latest, wall| Wall::new(UnixSeconds(latest), at(10, wall), BOUNDS);
        for (latest, now) in [(1_000_000, 1_000_000 + 100 * HOUR), (2_000_000, 1_000_000), (0, 9_000_000_000)] {
            assert!(!start(latest, now).has_leapt(at(10, now)), "{latest}");
        }
        let (latest, far) = (1_000_000, 1_000_000 + 102 * HOUR);
        let doubted = start(latest, far);
        assert!(doubted.has_leapt(at(10, far)));
        assert_eq!(doubted.now(at(15, far + 5)), UnixSeconds(latest + 5));
        assert!(doubted.accept(at(16, far + 6)));
        assert_eq!(doubted.now(at(17, far + 7)), UnixSeconds(far + 7));
    }
}
