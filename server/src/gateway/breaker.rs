//! When an upstream is asked again after it failed: a circuit breaker with one trial at a time.
//!
//! Closed, it lets everything pass; `failures_to_open` illnesses in a row open it. Open, it lets nothing pass for a rest
//! that doubles each time. Then it is half open: one request is the trial; if that succeeds it closes, else it opens
//! again. A probe that succeeds ends a rest early, but only a request closes the breaker: a server may be alive and
//! unable to serve.

use std::time::Duration;

use super::upstream::Failure;

/// Longest pause that an upstream may ask for.
const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(300);
/// What an upstream is left alone for when it is busy and does not say how long.
const UNSTATED_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerBounds {
    pub failures_to_open: u32,
    pub first_rest: Duration,
    pub longest_rest: Duration,
}

#[derive(Debug)]
pub(super) struct Breaker {
    bounds: BreakerBounds,
    state: State,
    /// Rests in a row without a success in between.
    rests: u32,
    /// It asked to be left alone until then.
    paused_until: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Duration },
    HalfOpen { trial: Trial },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    Free,
    Taken,
}

impl Default for BreakerBounds {
    fn default() -> Self {
        Self { failures_to_open: 3, first_rest: Duration::from_secs(1), longest_rest: Duration::from_secs(60) }
    }
}

impl Breaker {
    pub(super) fn new(bounds: BreakerBounds) -> Self {
        Self { bounds, state: State::Closed { failures: 0 }, rests: 0, paused_until: Duration::ZERO }
    }

    /// Whether a request would be let through now.
    pub(super) fn lets_pass(&self, now: Duration) -> bool {
        self.opens_in(now).is_zero() && self.state != State::HalfOpen { trial: Trial::Taken }
    }

    /// How long nothing will be let through at least; zero if something might be.
    pub(super) fn opens_in(&self, now: Duration) -> Duration {
        let rest_ends = match self.state {
            State::Open { until } => until,
            State::Closed { .. } | State::HalfOpen { .. } => Duration::ZERO,
        };
        rest_ends.max(self.paused_until).saturating_sub(now)
    }

    /// Lets a request through, or not: between a look and this, another may have taken the trial.
    pub(super) fn enter(&mut self, now: Duration) -> bool {
        if !self.lets_pass(now) {
            return false;
        }
        if !matches!(self.state, State::Closed { .. }) {
            self.state = State::HalfOpen { trial: Trial::Taken };
        }
        true
    }

    /// A request that was let through ended without a verdict, because its client left.
    pub(super) fn leave(&mut self) {
        if let State::HalfOpen { trial } = &mut self.state {
            *trial = Trial::Free;
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.rests = 0;
        self.state = State::Closed { failures: 0 };
    }

    /// `chance` spreads the rests of many gateways: between half of the rest and all of it.
    pub(super) fn failed(&mut self, failure: &Failure, now: Duration, chance: u64) {
        match failure {
            Failure::Busy { retry_after } => {
                let pause = retry_after.unwrap_or(UNSTATED_PAUSE).min(LONGEST_ASKED_PAUSE);
                self.paused_until = self.paused_until.max(now + pause);
                self.leave();
            }
            // It read the request and answered: it is well.
            Failure::Refused(_) => self.succeeded(),
            _ => self.fell_ill(now, chance),
        }
    }

    pub(super) fn probe_succeeded(&mut self) {
        if let State::Open { .. } = self.state {
            self.state = State::HalfOpen { trial: Trial::Free };
        }
    }

    pub(super) fn fell_ill(&mut self, now: Duration, chance: u64) {
        self.state = match self.state {
            State::Closed { failures } if failures + 1 < self.bounds.failures_to_open => {
                State::Closed { failures: failures + 1 }
            }
            // A request from before the rest, or a probe within it: the rest goes on.
            State::Open { until } if until > now => State::Open { until },
            _ => {
                let until = now + self.next_rest(chance);
                self.rests = self.rests.saturating_add(1);
                State::Open { until }
            }
        };
    }

    fn next_rest(&self, chance: u64) -> Duration {
        let BreakerBounds { first_rest, longest_rest, .. } = self.bounds;
        let rest = first_rest.saturating_mul(1_u32.checked_shl(self.rests).unwrap_or(u32::MAX)).min(longest_rest);
        let half = rest / 2;
        half + half.mul_f64((chance >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LATEST: u64 = u64::MAX;

    fn breaker() -> Breaker {
        Breaker::new(BreakerBounds { failures_to_open: 2, first_rest: SECOND, longest_rest: 5 * SECOND })
    }

    fn ill(breaker: &mut Breaker, now: Duration) {
        breaker.failed(&Failure::Unreachable, now, LATEST);
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let mut breaker = breaker();
        for _ in 0..5 {
            ill(&mut breaker, SECOND);
            assert!(breaker.lets_pass(SECOND));
            breaker.succeeded();
        }
        ill(&mut breaker, SECOND);
        ill(&mut breaker, SECOND);
        assert!(!breaker.lets_pass(SECOND) && !breaker.lets_pass(SECOND + SECOND / 2));
        assert!(breaker.lets_pass(2 * SECOND));
    }

    #[test]
    fn half_open_it_lets_one_trial_through_at_a_time() {
        let mut breaker = breaker();
        ill(&mut breaker, SECOND);
        ill(&mut breaker, SECOND);
        let later = 10 * SECOND;
        assert!(breaker.enter(later));
        assert!(!breaker.enter(later), "the trial is taken");
        breaker.leave();
        assert!(breaker.enter(later), "whose client left gave it back");
        breaker.succeeded();
        assert!(breaker.enter(later) && breaker.enter(later));
    }

    #[test]
    fn each_failed_trial_doubles_the_rest_up_to_the_longest() {
        let mut breaker = breaker();
        let mut now = SECOND;
        ill(&mut breaker, now);
        let mut rests = Vec::new();
        for _ in 0..5 {
            ill(&mut breaker, now);
            rests.push(breaker.opens_in(now).as_secs_f64().round() as u64);
            now += 100 * SECOND;
            assert!(breaker.enter(now));
        }
        assert_eq!(rests, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn rests_are_spread_by_chance() {
        let mut breaker = breaker();
        breaker.fell_ill(SECOND, 0);
        breaker.fell_ill(SECOND, 0);
        assert_eq!(breaker.opens_in(SECOND), SECOND / 2, "and never less than half");
    }

    #[test]
    fn a_probe_ends_a_rest_early_but_only_a_request_closes() {
        let mut breaker = breaker();
        ill(&mut breaker, SECOND);
        ill(&mut breaker, SECOND);
        breaker.probe_succeeded();
        assert!(breaker.enter(SECOND) && !breaker.enter(SECOND));
        ill(&mut breaker, SECOND);
        assert_eq!(breaker.opens_in(SECOND).as_secs_f64().round() as u64, 2, "the next rest is longer");
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept_and_is_no_failure() {
        let mut breaker = breaker();
        for _ in 0..9 {
            breaker.failed(&Failure::Busy { retry_after: Some(7 * SECOND) }, SECOND, LATEST);
        }
        assert_eq!(breaker.opens_in(SECOND), 7 * SECOND);
        assert!(breaker.lets_pass(8 * SECOND));
        breaker.failed(&Failure::Busy { retry_after: Some(Duration::MAX) }, SECOND, LATEST);
        assert_eq!(breaker.opens_in(SECOND), LONGEST_ASKED_PAUSE);
    }

    #[test]
    fn a_request_that_was_at_fault_says_the_upstream_is_well() {
        let mut breaker = breaker();
        ill(&mut breaker, SECOND);
        breaker.failed(&Failure::Refused(Box::default()), SECOND, LATEST);
        ill(&mut breaker, SECOND);
        assert!(breaker.lets_pass(SECOND));
    }
}
