//! A rate's state: GCRA (the generic cell rate algorithm of ITU-T I.371). One number a bucket, the *theoretical arrival
//! time*, from which room, refusal and the exact waiting time all follow. A rate of `n` a minute lets a full minute's
//! worth through at once and refills evenly.
//!
//! Time is kept in units of one `n`-th of a nanosecond, in which one unit of quota costs exactly one minute. So nothing
//! is ever rounded but the final waiting time, which is rounded up to the nanosecond.

use std::num::NonZeroU64;
use std::time::Duration;

use super::Fit;

/// A rate's state. `theoretical_arrival` is in units of 1/`per_minute` nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Gcra {
    per_minute: NonZeroU64,
    theoretical_arrival: u128,
}

impl Gcra {
    const MINUTE_NS: u128 = 60_000_000_000;

    /// A full bucket.
    pub fn new(per_minute: NonZeroU64) -> Self {
        Self { per_minute, theoretical_arrival: 0 }
    }

    pub fn fit(&self, now: Duration, amount: u64) -> Fit {
        self.fit_behind(now, amount, 0)
    }

    /// The same, once `ahead` was taken by those who ask before it.
    pub fn fit_behind(&self, now: Duration, amount: u64, ahead: u64) -> Fit {
        if amount > self.per_minute.get() {
            return Fit::Never;
        }
        let asked = cost(amount) + cost(ahead);
        let excess = (self.backlog(now) + asked).saturating_sub(cost(self.per_minute.get()));
        match excess {
            0 => Fit::Now,
            _ => Fit::After(nanoseconds(excess.div_ceil(self.rate()))),
        }
    }

    /// Takes `amount` whether or not it fits: what was really used is used. A debt delays whoever asks next.
    pub fn take(&mut self, now: Duration, amount: u64) {
        self.theoretical_arrival = self.theoretical_arrival.max(self.scaled(now)) + cost(amount);
    }

    /// Returns what was taken and not used. Never fills the bucket above its rim, because room is counted from `now`.
    pub fn give_back(&mut self, amount: u64) {
        self.theoretical_arrival = self.theoretical_arrival.saturating_sub(cost(amount));
    }

    /// A changed rate keeps what was used: the backlog counts units of quota, whatever the rate. A lowered one leaves
    /// no room, and no less than none: who asks again waits for a minute at most.
    pub fn set_rate(&mut self, now: Duration, per_minute: NonZeroU64) {
        if per_minute != self.per_minute {
            let backlog = self.backlog(now).min(cost(per_minute.get()));
            self.per_minute = per_minute;
            self.theoretical_arrival = self.scaled(now) + backlog;
        }
    }

    /// How many units would fit now.
    pub fn remaining(&self, now: Duration) -> u64 {
        let room = cost(self.per_minute.get()).saturating_sub(self.backlog(now));
        u64::try_from(room / Self::MINUTE_NS).unwrap_or(u64::MAX)
    }

    /// How long until the bucket is full again.
    pub fn reset(&self, now: Duration) -> Duration {
        nanoseconds(self.backlog(now).div_ceil(self.rate()))
    }

    /// What was taken and has not yet drained; one unit of quota is one minute.
    fn backlog(&self, now: Duration) -> u128 {
        self.theoretical_arrival.saturating_sub(self.scaled(now))
    }

    fn scaled(&self, now: Duration) -> u128 {
        now.as_nanos() * self.rate()
    }

    fn rate(&self) -> u128 {
        u128::from(self.per_minute.get())
    }
}

fn cost(amount: u64) -> u128 {
    u128::from(amount) * Gcra::MINUTE_NS
}

fn nanoseconds(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn rate(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    /// At every rate and from every state: refused one nanosecond before the stated wait, accepted at it.
    #[test]
    fn an_ask_repeated_at_exactly_the_stated_wait_passes_and_a_nanosecond_earlier_fails() {
        let start = Duration::from_secs(86_400 * 400) + NANOSECOND * 7;
        for per_minute in [1, 2, 7, 60, 61, 999, 1_300_001, u64::MAX >> 8] {
            for used in [1, per_minute / 2, per_minute] {
                for amount in [1, per_minute / 3, per_minute] {
                    let mut bucket = Gcra::new(rate(per_minute));
                    bucket.take(start, used);
                    let Fit::After(wait) = bucket.fit(start, amount) else { continue };
                    assert_eq!(bucket.fit(start + wait, amount), Fit::Now, "{per_minute} {used} {amount}");
                    let early = bucket.fit(start + wait - NANOSECOND, amount);
                    assert_eq!(early, Fit::After(NANOSECOND), "{per_minute} {used} {amount}");
                }
            }
        }
    }

    #[test]
    fn a_rate_that_does_not_divide_a_minute_still_admits_exactly_its_number() {
        for per_minute in [7, 20, 999, 245_001] {
            let mut bucket = Gcra::new(rate(per_minute));
            let admitted = (0..per_minute + 5).take_while(|_| {
                let fits = bucket.fit(Duration::ZERO, 1) == Fit::Now;
                if fits {
                    bucket.take(Duration::ZERO, 1);
                }
                fits
            });
            assert_eq!(admitted.count() as u64, per_minute);
        }
    }

    #[test]
    fn an_ask_above_the_limit_is_told_that_it_never_fits() {
        let bucket = Gcra::new(rate(100));
        assert_eq!(bucket.fit(Duration::ZERO, 100), Fit::Now);
        assert_eq!(bucket.fit(Duration::ZERO, 101), Fit::Never);
    }

    #[test]
    fn behind_others_an_ask_fits_when_they_and_it_have_drained() {
        let mut bucket = Gcra::new(rate(60));
        bucket.take(Duration::ZERO, 60);
        assert_eq!(bucket.fit_behind(Duration::ZERO, 1, 39), Fit::After(Duration::from_secs(40)));
        assert_eq!(
            bucket.fit_behind(Duration::ZERO, 1, 99),
            Fit::After(Duration::from_secs(100)),
            "more than a minute's"
        );
    }

    #[test]
    fn what_is_given_back_fits_at_once_and_never_overfills() {
        let mut bucket = Gcra::new(rate(100));
        bucket.take(Duration::ZERO, 100);
        assert_eq!(bucket.remaining(Duration::ZERO), 0);
        bucket.give_back(70);
        assert_eq!(bucket.remaining(Duration::ZERO), 70);
        let later = Duration::from_secs(120);
        bucket.give_back(30);
        assert_eq!(bucket.remaining(later), 100, "drained and refunded is full, not fuller");
        assert_eq!(bucket.fit(later, 101), Fit::Never);
    }

    #[test]
    fn reset_is_the_instant_at_which_the_bucket_is_full() {
        let mut bucket = Gcra::new(rate(60));
        bucket.take(Duration::ZERO, 3);
        assert_eq!(bucket.reset(Duration::ZERO), Duration::from_secs(3));
        assert_eq!(bucket.remaining(Duration::from_secs(3)), 60);
        assert_eq!(bucket.remaining(Duration::from_secs(3) - NANOSECOND), 59);
    }

    #[test]
    fn a_changed_rate_keeps_what_was_used() {
        let mut bucket = Gcra::new(rate(100));
        bucket.take(Duration::ZERO, 40);
        bucket.set_rate(Duration::ZERO, rate(50));
        assert_eq!(bucket.remaining(Duration::ZERO), 10);
        bucket.set_rate(Duration::ZERO, rate(30));
        assert_eq!(bucket.remaining(Duration::ZERO), 0, "lowering below what was used is a wait, not a wrap-around");
        assert_eq!(bucket.fit(Duration::ZERO, 1), Fit::After(Duration::from_secs(2)), "and no debt");
    }

    #[test]
    fn a_debt_delays_whoever_asks_next() {
        let mut bucket = Gcra::new(rate(60));
        bucket.take(Duration::ZERO, 90);
        assert_eq!(bucket.fit(Duration::ZERO, 1), Fit::After(Duration::from_secs(31)));
    }

    #[test]
    fn a_lowered_rate_is_used_up_and_has_room_again_within_a_minute() {
        let start = Duration::from_secs(1000);
        let mut bucket = Gcra::new(rate(20_000));
        bucket.take(start, 20_000);
        bucket.set_rate(start, rate(200));
        assert_eq!(bucket.remaining(start), 0);
        assert_eq!(bucket.fit(start, 200), Fit::After(Duration::from_secs(60)));
        assert_eq!(bucket.remaining(start + Duration::from_secs(60)), 200);
    }
}
