//! One node's page in the ledger: what it holds and has used. Only ever touched under the ledger's lock.

use std::sync::Arc;
use std::time::Duration;

use super::amounts::{Amounts, Demand, Share};
use super::{LedgerTotals, Now, Refusal, Retry, Spent};
use crate::gateway::account::{AccountPath, Node};
use crate::gateway::quota::{Bound, Budget, Calendar, Enforcement, Fit, Gcra, Limit, Quota, UnixSeconds};

#[derive(Debug, Default)]
pub(super) struct Page {
    /// As they were when a request last asked.
    limits: Arc<Quota>,
    /// One for each of `limits`.
    counters: Vec<Counter>,
    pub(super) totals: LedgerTotals,
    mean_held: Option<Duration>,
}

#[derive(Debug)]
struct Counter {
    state: State,
    would_have_refused: u64,
}

#[derive(Debug)]
enum State {
    Rate(Gcra),
    Budget(Budget),
    /// What open requests hold.
    Held(u64),
    /// Each request is looked at by itself.
    Stateless,
}

/// What a new counter is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) calendar: &'a Calendar,
    pub(super) spent: &'a dyn Spent,
}

/// A limit and how far it is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) limit: &'a Limit,
    pub(super) remaining: u64,
    pub(super) reset: Duration,
    /// The end of a budget's window.
    pub(super) resets_at: Option<UnixSeconds>,
    pub(super) would_have_refused: u64,
}

impl Page {
    /// The node's limits as they are today; what was used under earlier ones stays used.
    pub(super) fn follow(&mut self, node: &Node, now: Now, origin: Origin<'_>) {
        if !Arc::ptr_eq(&self.limits, &node.limits) {
            let former = std::mem::take(&mut self.counters);
            let mut former: Vec<_> = self.limits.limits().iter().zip(former).collect();
            let counter = |limit: &Limit| {
                let same = former.iter().position(|(earlier, _)| earlier.is_same_rule(limit));
                let kept = same.and_then(|index| former.swap_remove(index).1.under(limit, now));
                kept.unwrap_or_else(|| Counter::new(limit, (&node.path, self.totals.open), now, origin))
            };
            self.counters = node.limits.limits().iter().map(counter).collect();
            self.limits = Arc::clone(&node.limits);
        }
        self.roll(now, origin.calendar);
    }

    /// Begins the windows of this instant.
    pub(super) fn roll(&mut self, now: Now, calendar: &Calendar) {
        for counter in &mut self.counters {
            if let State::Budget(budget) = &mut counter.state {
                budget.roll(calendar, now.wall);
            }
        }
    }

    /// Limits on trial note what they would have refused.
    pub(super) fn note_trials(&mut self, (demand, model): (&Demand, Option<&str>), now: Now) {
        for (limit, counter) in self.limits.limits().iter().zip(&mut self.counters) {
            if limit.enforcement == Enforcement::DryRun
                && limit.covers(model)
                && counter.fit(limit, demand, (now, self.mean_held)).is_some_and(|(fit, _)| fit != Fit::Now)
            {
                counter.would_have_refused += 1;
            }
        }
    }

    /// The limit that keeps this ask out longest, and for how long.
    pub(super) fn refusal(
        &self,
        scope: &AccountPath,
        (demand, model): (&Demand, Option<&str>),
        now: Now,
    ) -> Option<(Fit, Refusal)> {
        let mut worst: Option<(Fit, usize, Share)> = None;
        for (index, (limit, counter)) in self.limits.limits().iter().zip(&self.counters).enumerate() {
            if limit.enforcement == Enforcement::DryRun || !limit.covers(model) {
                continue;
            }
            let Some((fit, share)) = counter.fit(limit, demand, (now, self.mean_held)) else { continue };
            if fit != Fit::Now && worst.is_none_or(|(earlier, ..)| fit > earlier) {
                worst = Some((fit, index, share));
            }
        }
        let (fit, index, share) = worst?;
        Some((fit, self.describe(index, (fit, share), scope, now)?))
    }

    fn describe(&self, index: usize, (fit, share): (Fit, Share), scope: &AccountPath, now: Now) -> Option<Refusal> {
        let retry = match fit {
            Fit::Now => return None,
            Fit::After(wait) => Retry::After(wait),
            Fit::Spent => Retry::Spent,
            Fit::Never => Retry::Never,
        };
        let (limit, counter) = (&self.limits.limits()[index], &self.counters[index]);
        Some(Refusal {
            limit: limit.name(),
            scope: scope.clone(),
            model: limit.model.clone(),
            limit_value: limit.value().get(),
            current_value: counter.taken(limit, now),
            asked: if fit == Fit::Never { share.whole } else { share.now },
            window: counter.window(),
            retry,
        })
    }

    pub(super) fn take(&mut self, asked: &Amounts, model: Option<&str>, now: Now) {
        for (limit, counter) in self.limits.limits().iter().zip(&mut self.counters) {
            if limit.covers(model) {
                counter.take(asked.of_limit(limit), now);
            }
        }
    }

    /// `used` takes the place of what was `held`.
    pub(super) fn settle(&mut self, held: &Amounts, used: &Amounts, model: Option<&str>, now: Now) {
        for (limit, counter) in self.limits.limits().iter().zip(&mut self.counters) {
            if limit.covers(model) {
                counter.settle(held.of_limit(limit), used.of_limit(limit), now);
            }
        }
    }

    /// An exponential mean over about the last eight requests.
    pub(super) fn note_held(&mut self, held: Duration) {
        let mean = self.mean_held.unwrap_or(held);
        self.mean_held = Some((mean * 7 + held) / 8);
    }

    pub(super) fn standings(&self, now: Now) -> impl Iterator<Item = Standing<'_>> {
        self.limits.limits().iter().zip(&self.counters).map(move |(limit, counter)| Standing {
            limit,
            remaining: limit.value().get().saturating_sub(counter.taken(limit, now)),
            reset: counter.reset(now),
            resets_at: counter.window().map(|(_, end)| end),
            would_have_refused: counter.would_have_refused,
        })
    }
}

impl Counter {
    fn new(limit: &Limit, (scope, open): (&AccountPath, u64), now: Now, origin: Origin<'_>) -> Self {
        let state = match limit.bound {
            Bound::Rate { per_minute, .. } => State::Rate(Gcra::new(per_minute)),
            Bound::Budget { amount, period, unit } => {
                let (start, end) = origin.calendar.window(period, now.wall);
                let used = origin.spent.used(scope, (unit, limit.model.as_deref()), (start, end));
                State::Budget(Budget::new(amount, period, (origin.calendar, now.wall), used))
            }
            Bound::ConcurrentRequests(_) if limit.model.is_none() => State::Held(open),
            Bound::ConcurrentRequests(_) | Bound::BatchTokens(_) => State::Held(0),
            Bound::QueuedRequests(_) | Bound::ContextTokens(_) => State::Stateless,
        };
        Self { state, would_have_refused: 0 }
    }

    /// The same counter under a limit of another value; `None` if it counts over another time.
    fn under(mut self, limit: &Limit, now: Now) -> Option<Self> {
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

    /// `None`: nothing is asked of this limit.
    fn fit(&self, limit: &Limit, demand: &Demand, (now, mean_held): (Now, Option<Duration>)) -> Option<(Fit, Share)> {
        const BEFORE_ANYTHING_ENDED: Duration = Duration::from_secs(1);
        let (most, share) = (limit.value().get(), demand.of_limit(limit)?);
        let fit = match &self.state {
            _ if share.whole > most => Fit::Never,
            State::Rate(bucket) => bucket.fit(now.monotonic, share.now),
            State::Budget(budget) => budget.fit(now.wall, share.now, demand.overrun),
            State::Held(held) if held.saturating_add(share.now) > most => {
                let at_once = u32::try_from(most).unwrap_or(u32::MAX);
                Fit::After(mean_held.map_or(BEFORE_ANYTHING_ENDED, |held| held / at_once))
            }
            State::Held(_) | State::Stateless => Fit::Now,
        };
        Some((fit, share))
    }

    fn take(&mut self, amount: u64, now: Now) {
        match &mut self.state {
            State::Rate(bucket) => bucket.take(now.monotonic, amount),
            State::Budget(budget) => budget.hold(amount),
            State::Held(held) => *held = held.saturating_add(amount),
            State::Stateless => {}
        }
    }

    fn settle(&mut self, held: u64, used: u64, now: Now) {
        match &mut self.state {
            State::Rate(bucket) => match held.checked_sub(used) {
                Some(unused) => bucket.give_back(unused),
                None => bucket.take(now.monotonic, used - held),
            },
            State::Budget(budget) => budget.settle(held, used),
            State::Held(now_held) => *now_held = now_held.saturating_sub(held),
            State::Stateless => {}
        }
    }

    fn taken(&self, limit: &Limit, now: Now) -> u64 {
        match &self.state {
            State::Rate(bucket) => limit.value().get().saturating_sub(bucket.remaining(now.monotonic)),
            State::Budget(budget) => budget.taken(),
            State::Held(held) => *held,
            State::Stateless => 0,
        }
    }

    /// Of a budget.
    fn window(&self) -> Option<(UnixSeconds, UnixSeconds)> {
        match &self.state {
            State::Budget(budget) => Some(budget.window()),
            State::Rate(_) | State::Held(_) | State::Stateless => None,
        }
    }

    /// Until the whole limit is available again; of what is held, nobody knows.
    fn reset(&self, now: Now) -> Duration {
        match &self.state {
            State::Rate(bucket) => bucket.reset(now.monotonic),
            State::Budget(budget) => budget.reset(now.wall),
            State::Held(_) | State::Stateless => Duration::ZERO,
        }
    }
}
