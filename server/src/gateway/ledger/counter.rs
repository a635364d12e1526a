//! How far one limit is used.

use std::time::Duration;

use super::Now;
use super::amounts::{Amounts, Share};
use super::holdings::{CounterId, Holdings, Motion};
use super::page::CounterSource;
use crate::gateway::account::AccountPath;
use crate::gateway::quota::{Bound, Budget, Calendar, Fit, Gcra, Limit, Percent, UnixSeconds};

#[derive(Debug)]
pub(super) struct Counter {
    pub(super) id: CounterId,
    state: State,
    pub(super) would_have_refused: u64,
}

#[derive(Debug)]
enum State {
    Rate(Gcra),
    Budget(Budget),
    Held(Held),
    /// Each request is looked at by itself.
    Stateless,
}

/// What open requests hold.
#[derive(Debug, Default)]
struct Held {
    now: u64,
    /// Requests among them that began before the limit was stated.
    earlier: u64,
}

/// What else decides whether an ask fits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) now: Now,
    pub(super) mean_held: Option<Duration>,
    /// Beyond a grant.
    pub(super) overrun: Percent,
    /// What is asked by those who come first.
    pub(super) ahead: u64,
    pub(super) held: HeldIs<'a>,
}

/// How what open requests hold of a budget is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeldIs<'a> {
    /// As used: nothing that may be needed is given to anybody else.
    Used,
    /// As what comes back when they end, since answers are mostly shorter than what was reserved for them.
    ComingBack,
    /// As what others may give back to an answer that holds this itself, and waits for them. Those who wait too give
    /// nothing back.
    Awaited(&'a Holdings),
}

/// How often an answer that waits for others asks again: nobody knows when they end.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(200);

impl Counter {
    pub(super) fn new(
        (id, limit): (CounterId, &Limit),
        (scope, open): (&AccountPath, u64),
        now: Now,
        source: CounterSource<'_>,
    ) -> Self {
        let state = match limit.bound {
            Bound::Rate { per_minute, .. } => State::Rate(Gcra::new(per_minute)),
            Bound::Budget { amount, period, unit } => {
                let (start, end) = source.calendar.window(period, now.wall);
                let used = source.spent.used(scope, unit, limit.model.as_deref(), (start, end));
                State::Budget(Budget::new(amount, period, source.calendar, now.wall, used))
            }
            Bound::ConcurrentRequests(_) if limit.model.is_none() && limit.is_enforced() => {
                State::Held(Held { now: open, earlier: open })
            }
            Bound::ConcurrentRequests(_) | Bound::BatchTokens(_) => State::Held(Held::default()),
            Bound::QueuedRequests(_) | Bound::ContextTokens(_) => State::Stateless,
        };
        Self { id, state, would_have_refused: 0 }
    }

    /// The same counter under a limit of another value; `None` if it counts over another time.
    pub(super) fn under(mut self, limit: &Limit, now: Now) -> Option<Self> {
        match (&mut self.state, limit.bound) {
            (State::Rate(bucket), Bound::Rate { per_minute, .. }) => bucket.set_rate(now.monotonic, per_minute),
            (State::Budget(budget), Bound::Budget { amount, period, .. }) if budget.period() == period => {
                budget.set_amount(amount);
            }
            (State::Budget(_), _) => return None,
            _ => {}
        }
        Some(self)
    }

    /// Begins the window of this instant.
    pub(super) fn roll(&mut self, now: Now, calendar: &Calendar) {
        if let State::Budget(budget) = &mut self.state {
            budget.roll(calendar, now.wall);
        }
    }

    pub(super) fn fit(&self, limit: &Limit, share: Share, terms: Terms<'_>) -> Fit {
        let (most, now) = (limit.value().get(), terms.now);
        match &self.state {
            _ if share.whole > most => Fit::Never,
            State::Rate(bucket) => bucket.fit_behind(now.monotonic, share.now, terms.ahead),
            State::Budget(budget) => {
                let together = share.now.saturating_add(terms.ahead).min(most);
                let fit = budget.fit(now.wall, together, terms.overrun);
                if fit == Fit::Now || !limit.counts_output() {
                    return fit;
                }
                self.returning(budget, together, terms).map_or(fit, |wait| fit.min(Fit::After(wait)))
            }
            State::Held(held) => {
                let excess = held.now.saturating_add(terms.ahead).saturating_add(share.now).saturating_sub(most);
                let fits = excess == 0 || share.now == 0;
                if fits { Fit::Now } else { Fit::After(until_free(excess, most, terms.mean_held)) }
            }
            State::Stateless => Fit::Now,
        }
    }

    /// When `amount` may fit because of what open requests hold; `None`: they could not give back as much.
    fn returning(&self, budget: &Budget, amount: u64, terms: Terms<'_>) -> Option<Duration> {
        let now = terms.now.wall;
        match terms.held {
            HeldIs::Used => None,
            HeldIs::ComingBack => {
                let lacking = budget.lacking(now, amount)?;
                Some(until_free(lacking, budget.held(), terms.mean_held))
            }
            HeldIs::Awaited(own) => {
                let own_that_runs = match own.motion() {
                    Motion::Runs => own.of(self.id).unwrap_or(0),
                    Motion::StandsStill => 0,
                };
                let of_others = budget.held_by_running().saturating_sub(own_that_runs);
                let fit = budget.fit_without(of_others, now, amount, terms.overrun);
                (fit == Fit::Now).then_some(ASK_AGAIN)
            }
        }
    }

    /// A reservation's motion has changed.
    pub(super) fn note_motion(&mut self, holdings: &Holdings) {
        let (State::Budget(budget), Some(taken)) = (&mut self.state, holdings.of(self.id)) else { return };
        match holdings.motion() {
            Motion::Runs => budget.goes_on(taken),
            Motion::StandsStill => budget.stands_still(taken),
        }
    }

    pub(super) fn take(&mut self, amount: u64, now: Now, holdings: &mut Holdings) {
        match &mut self.state {
            // A growing answer is no further request: it must not look like one that was counted when it began.
            State::Held(_) if amount == 0 => return,
            State::Rate(bucket) => bucket.take(now.monotonic, amount),
            State::Budget(budget) => budget.hold(amount),
            State::Held(held) => held.now = held.now.saturating_add(amount),
            State::Stateless => return,
        }
        holdings.add(self.id, amount);
    }

    /// What a reservation used takes the place of what it held here. One that began without this counter leaves alone
    /// what others took of it, and counts where it ends: in a budget, and once where it was counted as it ran.
    pub(super) fn settle(&mut self, limit: &Limit, holdings: &Holdings, [held, used]: [&Amounts; 2], now: Now) {
        let taken = holdings.of(self.id);
        if taken.is_none() && !limit.is_enforced() {
            return;
        }
        let [held, used] = [held, used].map(|amounts| amounts.of_limit(limit));
        match (&mut self.state, taken) {
            (State::Rate(bucket), Some(taken)) => match held.checked_sub(used) {
                Some(unused) if limit.is_enforced() => bucket.give_back(unused.min(taken)),
                // On trial a part that found no room took nothing.
                Some(_) => bucket.give_back(taken.saturating_sub(used)),
                None => bucket.take(now.monotonic, used - held),
            },
            (State::Budget(budget), taken) => budget.settle(taken.unwrap_or(0), used),
            (State::Held(held), Some(taken)) => held.now = held.now.saturating_sub(taken),
            (State::Held(held), None) if held.earlier > 0 => {
                held.earlier -= 1;
                held.now = held.now.saturating_sub(1);
            }
            (State::Rate(_) | State::Held(_), None) | (State::Stateless, _) => {}
        }
    }

    /// On trial: the answer would have ended here, having used what it holds.
    pub(super) fn end_trial_of(&mut self, holdings: &mut Holdings) {
        let taken = holdings.of(self.id).unwrap_or(0);
        match &mut self.state {
            State::Budget(budget) => budget.settle(taken, taken),
            State::Held(held) => held.now = held.now.saturating_sub(taken),
            State::Rate(_) | State::Stateless => {}
        }
        holdings.remove(self.id);
    }

    pub(super) fn taken(&self, limit: &Limit, now: Now) -> u64 {
        match &self.state {
            State::Rate(bucket) => limit.value().get().saturating_sub(bucket.remaining(now.monotonic)),
            State::Budget(budget) => budget.taken(),
            State::Held(held) => held.now,
            State::Stateless => 0,
        }
    }

    pub(super) fn remaining(&self, limit: &Limit, now: Now) -> u64 {
        match &self.state {
            State::Budget(budget) => budget.remaining(now.wall),
            State::Rate(_) | State::Held(_) | State::Stateless => {
                limit.value().get().saturating_sub(self.taken(limit, now))
            }
        }
    }

    /// Of a grant.
    pub(super) fn overrun_remaining(&self, now: Now, overrun: Percent) -> Option<u64> {
        match &self.state {
            State::Budget(budget) => budget.overrun_remaining(now.wall, overrun),
            State::Rate(_) | State::Held(_) | State::Stateless => None,
        }
    }

    /// Of a budget.
    pub(super) fn window(&self) -> Option<(UnixSeconds, UnixSeconds)> {
        match &self.state {
            State::Budget(budget) => Some(budget.window()),
            State::Rate(_) | State::Held(_) | State::Stateless => None,
        }
    }

    /// Until the whole limit is available again; of what is held, nobody knows.
    pub(super) fn reset(&self, now: Now) -> Duration {
        match &self.state {
            State::Rate(bucket) => bucket.reset(now.monotonic),
            State::Budget(budget) => budget.reset(now.wall),
            State::Held(_) | State::Stateless => Duration::ZERO,
        }
    }
}

/// All that may be held comes free once in the time for which requests hold it, as they went so far.
fn until_free(excess: u64, most: u64, mean_held: Option<Duration>) -> Duration {
    const BEFORE_ANYTHING_ENDED: Duration = Duration::from_secs(1);
    let Some(mean) = mean_held else { return BEFORE_ANYTHING_ENDED };
    let nanoseconds = mean.as_nanos().saturating_mul(excess.into()).div_ceil(most.into());
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}
