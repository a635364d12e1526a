//! A budget's state: a plain accumulator over one window.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{Calendar, Fit, Percent, Period, UnixSeconds};

/// What of a window is used, and what open requests hold of it.
///
/// A request counts in the window in which it ends: what is held when a window begins is held of the new one, so that no
/// instant exists at which an open request holds nothing.
#[derive(Debug, Clone)]
pub struct Budget {
    amount: NonZeroU64,
    period: Period,
    start: UnixSeconds,
    end: UnixSeconds,
    used: u64,
    held: u64,
    /// Of it, by requests that wait for others.
    still: u64,
}

impl Budget {
    /// With what was used since the start of the window that holds `now`.
    pub fn new(amount: NonZeroU64, period: Period, calendar: &Calendar, now: UnixSeconds, used: u64) -> Self {
        let (start, end) = calendar.window(period, now);
        Self { amount, period, start, end, used, held: 0, still: 0 }
    }

    /// Opens the window of `now`. Time that goes back opens none.
    pub fn roll(&mut self, calendar: &Calendar, now: UnixSeconds) {
        if now >= self.end && !matches!(self.period, Period::Grant { .. }) {
            (self.start, self.end) = calendar.window(self.period, now);
            self.used = 0;
        }
    }

    /// `overrun`: how much of a grant may be used beyond it.
    pub fn fit(&self, now: UnixSeconds, amount: u64, overrun: Percent) -> Fit {
        if amount > self.amount.get() {
            return Fit::Never;
        }
        let is_grant = matches!(self.period, Period::Grant { .. });
        if is_grant && now >= self.end {
            return Fit::Spent;
        }
        if now < self.start {
            return Fit::After(self.start.since(now));
        }
        let beyond = if is_grant { overrun.of(self.amount.get()) } else { 0 };
        match amount <= self.amount.get().saturating_add(beyond).saturating_sub(self.taken()) {
            true => Fit::Now,
            false if is_grant => Fit::Spent,
            false => Fit::After(self.end.since(now)),
        }
    }

    /// The same, if so much of what is held were given back.
    pub fn fit_without(&self, returned: u64, now: UnixSeconds, amount: u64, overrun: Percent) -> Fit {
        Self { held: self.held.saturating_sub(returned), ..self.clone() }.fit(now, amount, overrun)
    }

    /// What is held by whoever waits for others is not given back to them.
    pub fn stands_still(&mut self, held: u64) {
        self.still = self.still.saturating_add(held);
    }

    pub fn goes_on(&mut self, held: u64) {
        self.still = self.still.saturating_sub(held);
    }

    pub fn held_by_running(&self) -> u64 {
        self.held.saturating_sub(self.still)
    }

    pub fn hold(&mut self, amount: u64) {
        self.held = self.held.saturating_add(amount);
    }

    /// Turns what was held into what was used. `used` may be more than `held`: what was really used is used.
    pub fn settle(&mut self, held: u64, used: u64) {
        self.held = self.held.saturating_sub(held);
        self.used = self.used.saturating_add(used);
    }

    /// A changed amount keeps what is used and held.
    pub fn set_amount(&mut self, amount: NonZeroU64) {
        self.amount = amount;
    }

    pub fn period(&self) -> Period {
        self.period
    }

    /// Used, or held by open requests.
    pub fn taken(&self) -> u64 {
        self.used.saturating_add(self.held)
    }

    pub fn held(&self) -> u64 {
        self.held
    }

    /// How much of what open requests hold would have to come back for `amount` to fit. `None`: nothing, or it would not do.
    pub fn lacking(&self, now: UnixSeconds, amount: u64) -> Option<u64> {
        let is_open = (self.start..self.end).contains(&now);
        let lacking = self.taken().saturating_add(amount).saturating_sub(self.amount.get());
        (is_open && (1..=self.held).contains(&lacking)).then_some(lacking)
    }

    /// Nothing is left of a grant that is over, nor of one before it begins.
    pub fn remaining(&self, now: UnixSeconds) -> u64 {
        let is_open = (self.start..self.end).contains(&now) || !matches!(self.period, Period::Grant { .. });
        if is_open { self.amount.get().saturating_sub(self.taken()) } else { 0 }
    }

    /// How much of a grant may still be used beyond it; `None` of what is no grant.
    pub fn overrun_remaining(&self, now: UnixSeconds, overrun: Percent) -> Option<u64> {
        let beyond = overrun.of(self.amount.get());
        let is_open = (self.start..self.end).contains(&now);
        let left = beyond.saturating_sub(self.taken().saturating_sub(self.amount.get()));
        matches!(self.period, Period::Grant { .. }).then_some(if is_open { left } else { 0 })
    }

    /// Until the window is over, or begins.
    pub fn reset(&self, now: UnixSeconds) -> Duration {
        if now < self.start { self.start.since(now) } else { self.end.since(now) }
    }

    pub fn window(&self) -> (UnixSeconds, UnixSeconds) {
        (self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(value: u64) -> NonZeroU64 {
        NonZeroU64::new(value).unwrap()
    }

    const NOON: UnixSeconds = UnixSeconds(43_200);

    fn daily(amount: u64) -> (Budget, Calendar) {
        let calendar = Calendar::utc();
        (Budget::new(n(amount), Period::Day, &calendar, NOON, 0), calendar)
    }

    #[test]
    fn a_spent_day_fits_again_at_midnight_and_not_a_second_earlier() {
        let (mut day, calendar) = daily(100);
        day.hold(60);
        day.settle(60, 100);
        let Fit::After(wait) = day.fit(NOON, 1, Percent::NONE) else { panic!("it fits tomorrow") };
        assert_eq!(wait, Duration::from_secs(43_200));
        day.roll(&calendar, UnixSeconds(86_399));
        assert_eq!(day.fit(UnixSeconds(86_399), 1, Percent::NONE), Fit::After(Duration::from_secs(1)));
        day.roll(&calendar, UnixSeconds(86_400));
        assert_eq!(day.fit(UnixSeconds(86_400), 100, Percent::NONE), Fit::Now);
    }

    #[test]
    fn what_open_requests_hold_at_midnight_is_held_of_the_new_day() {
        let (mut day, calendar) = daily(100);
        day.hold(70);
        day.roll(&calendar, UnixSeconds(86_400));
        assert_eq!(day.remaining(UnixSeconds(86_400)), 30);
        day.settle(70, 10);
        assert_eq!(day.remaining(UnixSeconds(86_400)), 90);
    }

    #[test]
    fn a_clock_that_goes_back_does_not_reopen_a_window() {
        let (mut day, calendar) = daily(100);
        day.roll(&calendar, UnixSeconds(90_000));
        day.settle(0, 100);
        day.roll(&calendar, NOON);
        assert!(matches!(day.fit(NOON, 1, Percent::NONE), Fit::After(_)));
    }

    #[test]
    fn a_grant_begins_ends_and_is_not_given_twice() {
        let calendar = Calendar::utc();
        let period = Period::Grant { from: UnixSeconds(100), until: UnixSeconds(200) };
        let mut grant = Budget::new(n(10), period, &calendar, UnixSeconds(50), 0);
        assert_eq!(grant.fit(UnixSeconds(50), 1, Percent::NONE), Fit::After(Duration::from_secs(50)));
        assert_eq!(grant.fit(UnixSeconds(100), 10, Percent::NONE), Fit::Now);
        grant.settle(0, 10);
        assert_eq!(grant.fit(UnixSeconds(150), 1, Percent::NONE), Fit::Spent);
        grant.roll(&calendar, UnixSeconds(200));
        assert_eq!(grant.fit(UnixSeconds(200), 1, Percent::NONE), Fit::Spent);
        assert_eq!(grant.fit(UnixSeconds(150), 11, Percent::NONE), Fit::Never);
    }

    #[test]
    fn a_lowered_budget_has_nothing_left_and_no_negative_room() {
        let (mut day, _) = daily(100);
        day.settle(0, 60);
        day.set_amount(n(50));
        assert_eq!(day.remaining(NOON), 0);
        day.set_amount(n(80));
        assert_eq!(day.remaining(NOON), 20);
    }

    #[test]
    fn what_is_lacking_is_known_where_it_may_come_back() {
        let (mut day, _) = daily(100);
        day.settle(0, 50);
        day.hold(40);
        let lacking = [10, 11, 50, 51].map(|amount| day.lacking(NOON, amount));
        assert_eq!(lacking, [None, Some(1), Some(40), None]);
        assert_eq!(day.lacking(UnixSeconds(86_400), 11), None, "the day is over");
    }

    #[test]
    fn nothing_is_left_of_a_grant_before_it_begins_nor_after_it_is_over() {
        let calendar = Calendar::utc();
        let period = Period::Grant { from: UnixSeconds(100), until: UnixSeconds(200) };
        let grant = Budget::new(n(10), period, &calendar, UnixSeconds(50), 0);
        let left = [50, 99, 100, 199, 200].map(|now| grant.remaining(UnixSeconds(now)));
        assert_eq!(left, [0, 0, 10, 10, 0]);
        assert_eq!(grant.reset(UnixSeconds(50)), Duration::from_secs(50));
    }

    #[test]
    fn only_a_grant_may_be_overrun_and_only_while_it_lasts() {
        let calendar = Calendar::utc();
        let grant = Period::Grant { from: UnixSeconds(0), until: UnixSeconds(86_400) };
        let mut granted = Budget::new(n(100), grant, &calendar, NOON, 100);
        let quarter = Percent(25);
        assert_eq!(granted.fit(NOON, 25, Percent::NONE), Fit::Spent);
        assert_eq!(granted.fit(NOON, 25, quarter), Fit::Now);
        assert_eq!(granted.fit(NOON, 26, quarter), Fit::Spent);
        granted.hold(25);
        assert_eq!(granted.fit(NOON, 1, quarter), Fit::Spent);
        assert_eq!(granted.fit(UnixSeconds(86_400), 1, quarter), Fit::Spent, "it is over");
        let left = |grant: &Budget, now| grant.overrun_remaining(now, quarter);
        assert_eq!([NOON, UnixSeconds(86_400)].map(|now| left(&granted, now)), [Some(0), Some(0)]);
        granted.settle(25, 5);
        assert_eq!(left(&granted, NOON), Some(20));
        granted.set_amount(n(200));
        assert_eq!(left(&granted, NOON), Some(50), "it is within the grant again");
        let (mut day, _) = daily(100);
        day.settle(0, 100);
        assert!(matches!(day.fit(NOON, 1, quarter), Fit::After(_)));
        assert_eq!(left(&day, NOON), None);
    }
}
