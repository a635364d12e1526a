//! When an upstream is asked again after it failed: a circuit breaker with one trial at a time.
//!
//! Closed, it lets everything pass; `failures_to_open` illnesses in a row open it. Open, it lets nothing pass for a rest
//! that doubles each time. Then it is half open: one request is the trial; if that succeeds it closes, else it opens
//! again. A probe that succeeds ends a rest early, but only a request closes the breaker: a server may be alive and
//! unable to serve. One that begins to answer is closed on probation: its next illness opens it, and only an answer that it
//! brings to its end makes it well.
//!
//! A request that breaks an upstream twice says nothing new: it may be the request. So it counts once in a while, and whoever
//! repeats it keeps the upstream from nobody.

use std::collections::VecDeque;
use std::time::Duration;

use super::upstream::Failure;

/// Longest pause that an upstream may ask for.
const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(300);
/// What an upstream is left alone for when it is busy and does not say how long.
const UNSTATED_PAUSE: Duration = Duration::from_secs(1);
/// A request that broke an upstream counts again after this.
const SUSPECTED_FOR: Duration = Duration::from_secs(60);
const MAX_SUSPECTS: usize = 32;

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
    /// Requests that it broke on, and when; the latest last.
    broken_by: VecDeque<(Fingerprint, Duration)>,
}

/// The same for the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) u64);

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
        Self {
            bounds,
            state: State::Closed { failures: 0 },
            rests: 0,
            paused_until: Duration::ZERO,
            broken_by: VecDeque::new(),
        }
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

    /// A request has the first word of its answer.
    pub(super) fn began_to_answer(&mut self) {
        if let State::HalfOpen { .. } = self.state {
            self.state = State::Closed { failures: self.bounds.failures_to_open.saturating_sub(1) };
        }
    }

    /// A request has its whole answer. One from before a rest says nothing of now.
    pub(super) fn succeeded(&mut self) {
        if let State::Open { .. } = self.state {
            return;
        }
        self.rests = 0;
        self.state = State::Closed { failures: 0 };
    }

    /// As [`Breaker::failed`], of a request that may be to blame.
    pub(super) fn failed_on(&mut self, request: Fingerprint, failure: &Failure, now: Duration, chance: u64) {
        if failure.may_be_poison() && !self.is_news(request, now) {
            self.leave();
        } else {
            self.failed(failure, now, chance);
        }
    }

    fn is_news(&mut self, request: Fingerprint, now: Duration) -> bool {
        self.broken_by.retain(|(_, since)| now.saturating_sub(*since) < SUSPECTED_FOR);
        let is_news = self.broken_by.iter().all(|(known, _)| *known != request);
        if is_news {
            let excess = (self.broken_by.len() + 1).saturating_sub(MAX_SUSPECTS);
            self.broken_by.drain(..excess);
            self.broken_by.push_back((request, now));
        }
        is_news
    }

    /// `chance` spreads the rests of many gateways: between half of the rest and all of it.
    pub(super) fn failed(&mut self, failure: &Failure, now: Duration, chance: u64) {
        match failure {
            Failure::Busy { retry_after } => {
                let pause = retry_after.unwrap_or(UNSTATED_PAUSE).min(LONGEST_ASKED_PAUSE);
                self.paused_until = self.paused_until.max(now + pause);
                self.leave();
            }
            // It is well, and has room for others.
            Failure::NoRoom { .. } => self.leave(),
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

    fn broke() -> Failure {
        Failure::Broke("reset".into())
    }

    #[test]
    fn a_request_that_breaks_an_upstream_again_and_again_keeps_it_from_nobody() {
        let mut breaker = breaker();
        for millis in 0..200 {
            let now = SECOND + Duration::from_millis(millis * 250);
            assert!(breaker.enter(now), "after {millis} times");
            breaker.failed_on(Fingerprint(7), &broke(), now, LATEST);
        }
        breaker.failed_on(Fingerprint(8), &broke(), 51 * SECOND, LATEST);
        assert!(!breaker.lets_pass(51 * SECOND), "two requests are no chance");
    }

    #[test]
    fn the_trial_that_a_known_request_breaks_on_is_given_back_and_lengthens_no_rest() {
        let mut breaker = breaker();
        for request in [7, 8] {
            breaker.failed_on(Fingerprint(request), &broke(), SECOND, LATEST);
        }
        let later = 3 * SECOND;
        assert!(breaker.enter(later));
        breaker.failed_on(Fingerprint(7), &broke(), later, LATEST);
        assert!(breaker.enter(later), "the next one is the trial");
        breaker.failed_on(Fingerprint(9), &broke(), later, LATEST);
        assert_eq!(breaker.opens_in(later).as_secs_f64().round() as u64, 2);
    }

    #[test]
    fn a_request_counts_again_after_a_while_and_few_are_remembered() {
        let mut breaker = breaker();
        breaker.failed_on(Fingerprint(7), &broke(), SECOND, LATEST);
        breaker.failed_on(Fingerprint(7), &broke(), SECOND + SUSPECTED_FOR, LATEST);
        assert!(!breaker.lets_pass(SECOND + SUSPECTED_FOR));
        for request in 0..1_000 {
            breaker.failed_on(Fingerprint(request), &broke(), 100 * SECOND, LATEST);
        }
        assert_eq!(breaker.broken_by.len(), MAX_SUSPECTS);
    }

    #[test]
    fn an_upstream_that_breaks_off_in_every_answer_rests() {
        let mut breaker = breaker();
        for request in 0..2 {
            assert!(breaker.enter(SECOND));
            breaker.began_to_answer();
            breaker.failed_on(Fingerprint(request), &broke(), SECOND, LATEST);
        }
        assert!(!breaker.lets_pass(SECOND));
        let later = 10 * SECOND;
        assert!(breaker.enter(later));
        breaker.began_to_answer();
        assert!(breaker.lets_pass(later), "others need not wait for the end of the trial");
        breaker.failed_on(Fingerprint(3), &broke(), later, LATEST);
        assert_eq!(breaker.opens_in(later).as_secs_f64().round() as u64, 2, "the rests grow until an answer is whole");
        assert!(breaker.enter(2 * later));
        breaker.began_to_answer();
        breaker.succeeded();
        breaker.failed_on(Fingerprint(4), &broke(), 2 * later, LATEST);
        assert!(breaker.lets_pass(2 * later));
    }

    #[test]
    fn answers_that_end_during_a_rest_do_not_end_it() {
        let mut breaker = breaker();
        ill(&mut breaker, SECOND);
        ill(&mut breaker, SECOND);
        breaker.succeeded();
        breaker.failed(&Failure::Refused(Box::default()), SECOND, LATEST);
        assert!(!breaker.lets_pass(SECOND));
        assert!(breaker.lets_pass(2 * SECOND));
    }

    #[test]
    fn what_has_no_room_for_one_request_is_there_for_others() {
        let mut breaker = breaker();
        for _ in 0..9 {
            assert!(breaker.enter(SECOND));
            breaker.failed(&Failure::NoRoom { retry_after: Some(7 * SECOND) }, SECOND, LATEST);
        }
        assert!(breaker.lets_pass(SECOND));
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
