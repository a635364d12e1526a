//! One node's page in the ledger: what it holds and has used. Only ever touched under the ledger's lock.

use std::sync::Arc;
use std::time::Duration;

use super::amounts::{Amounts, Share};
use super::counter::{Counter, HeldIs, Terms};
use super::holdings::{CounterId, Holdings};
use super::pages::Asked;
use super::{LedgerTotals, Now, Refusal, Retry, Spent};
use crate::gateway::account::{AccountPath, Node};
use crate::gateway::quota::{Bound, Calendar, Fit, Limit, Percent, Quota, UnixSeconds};

#[derive(Debug, Default)]
pub(super) struct Page {
    /// Where it stands in the ledger.
    slot: usize,
    /// As they were when a request last asked.
    limits: Arc<Quota>,
    /// One for each of `limits`.
    counters: Vec<Counter>,
    next_serial: u64,
    pub(super) totals: LedgerTotals,
    mean_held: Option<Duration>,
}

/// What a new counter is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct CounterSource<'a> {
    pub(super) calendar: &'a Calendar,
    pub(super) spent: &'a dyn Spent,
}

/// A limit and how far it is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) limit: &'a Limit,
    pub(super) remaining: u64,
    /// Beyond a grant.
    pub(super) overrun_remaining: Option<u64>,
    pub(super) reset: Duration,
    /// The end of a budget's window.
    pub(super) resets_at: Option<UnixSeconds>,
    pub(super) would_have_refused: u64,
}

/// How an enforced limit would have treated a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    /// How far a grant may be overrun.
    pub(super) overrun: Percent,
    /// For how long the request waits for its turn.
    pub(super) patience: Duration,
}

/// How far one of a page's limits, by its place, has room for what is asked of it.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    index: usize,
    fit: Fit,
    share: Share,
}

impl Page {
    pub(super) fn at(slot: usize) -> Self {
        Self { slot, ..Self::default() }
    }

    /// The node's limits as they are today; what was used under earlier ones stays used.
    pub(super) fn follow(&mut self, node: &Node, now: Now, source: CounterSource<'_>) {
        if !Arc::ptr_eq(&self.limits, &node.limits) {
            let former = std::mem::take(&mut self.counters);
            let mut former: Vec<_> = self.limits.limits().iter().zip(former).collect();
            let (slot, open, next_serial) = (self.slot, self.totals.open, &mut self.next_serial);
            let counter = |limit: &Limit| {
                let same = former.iter().position(|(earlier, _)| earlier.is_same_rule(limit));
                let kept = same.and_then(|index| former.swap_remove(index).1.under(limit, now));
                kept.unwrap_or_else(|| {
                    *next_serial += 1;
                    let id = CounterId { slot, serial: *next_serial };
                    Counter::new((id, limit), (&node.path, open), now, source)
                })
            };
            self.counters = node.limits.limits().iter().map(counter).collect();
            self.limits = Arc::clone(&node.limits);
        }
        self.roll(now, source.calendar);
    }

    /// Begins the windows of this instant.
    pub(super) fn roll(&mut self, now: Now, calendar: &Calendar) {
        self.counters.iter_mut().for_each(|counter| counter.roll(now, calendar));
    }

    /// The limit that keeps this ask out longest, and for how long.
    pub(super) fn refusal(
        &self,
        scope: &AccountPath,
        Asked { demand, model }: Asked<'_>,
        now: Now,
        held: HeldIs<'_>,
    ) -> Option<(Fit, Refusal)> {
        let terms = Terms { held, ..self.terms(now, demand.overrun) };
        let mut worst: Option<Verdict> = None;
        for (index, (limit, counter)) in self.counted().enumerate() {
            if !limit.is_enforced() || !limit.covers(model) {
                continue;
            }
            let Some(share) = demand.of_limit(limit) else { continue };
            let fit = counter.fit(limit, share, terms);
            if fit != Fit::Now && worst.is_none_or(|earlier| fit > earlier.fit) {
                worst = Some(Verdict { index, fit, share });
            }
        }
        let worst = worst?;
        Some((worst.fit, self.describe(worst, scope, now)))
    }

    /// The same of one limit, for whose room others wait; `terms` say what they ask of it.
    pub(super) fn refusal_behind(&self, index: usize, scope: &AccountPath, share: Share, terms: Terms<'_>) -> Refusal {
        let fit = self.counters[index].fit(&self.limits.limits()[index], share, terms);
        self.describe(Verdict { index, fit, share }, scope, terms.now)
    }

    /// What fits now fits after no time at all.
    fn describe(&self, Verdict { index, fit, share }: Verdict, scope: &AccountPath, now: Now) -> Refusal {
        let retry = match fit {
            Fit::Now => Retry::After(Duration::ZERO),
            Fit::After(wait) => Retry::After(wait),
            Fit::Spent => Retry::Spent,
            Fit::Never => Retry::Never,
        };
        let (limit, counter) = (&self.limits.limits()[index], &self.counters[index]);
        Refusal {
            limit: limit.name(),
            scope: scope.clone(),
            model: limit.model.clone(),
            limit_value: limit.value().get(),
            current_value: counter.taken(limit, now),
            asked: if fit == Fit::Never { share.whole } else { share.now },
            window: counter.window(),
            retry,
        }
    }

    /// Of the enforced limits.
    pub(super) fn take(&mut self, asked: &Amounts, model: Option<&str>, now: Now, holdings: &mut Holdings) {
        for (limit, counter) in self.limits.limits().iter().zip(&mut self.counters) {
            if limit.is_enforced() && limit.covers(model) {
                counter.take(asked.of_limit(limit), now, holdings);
            }
        }
    }

    /// A request was admitted. Limits on trial take what they would have admitted too, and note what they would have
    /// refused, which takes nothing of them. What would have waited for its turn takes it early; nobody knows of what is
    /// held how long that takes, so there it counts as refused.
    pub(super) fn rehearse(
        &mut self,
        Asked { demand, model }: Asked<'_>,
        Trial { overrun, patience }: Trial,
        now: Now,
        holdings: &mut Holdings,
    ) {
        let terms = self.terms(now, overrun);
        for (limit, counter) in self.limits.limits().iter().zip(&mut self.counters) {
            if limit.is_enforced() || !limit.covers(model) {
                continue;
            }
            let Some(share) = demand.of_limit(limit) else { continue };
            match counter.fit(limit, share, terms) {
                Fit::Now => counter.take(share.now, now, holdings),
                Fit::After(wait) if wait <= patience && !limit.name().is_held() => {
                    counter.take(share.now, now, holdings);
                }
                Fit::After(_) | Fit::Spent | Fit::Never => counter.would_have_refused += 1,
            }
        }
    }

    /// The same while an answer grows, of limits that it began with. A rate without room would have made it wait, so that
    /// it takes nothing; a budget without room would have ended it.
    pub(super) fn rehearse_further(
        &mut self,
        Asked { demand, model }: Asked<'_>,
        overrun: Percent,
        now: Now,
        holdings: &mut Holdings,
    ) {
        let terms = self.terms(now, overrun);
        for (limit, counter) in self.limits.limits().iter().zip(&mut self.counters) {
            if limit.is_enforced() || !limit.covers(model) || holdings.of(counter.id).is_none() {
                continue;
            }
            let Some(share) = demand.of_limit(limit) else { continue };
            match counter.fit(limit, share, terms) {
                Fit::Now => counter.take(share.now, now, holdings),
                Fit::After(_) if limit.name().is_rate() => {}
                Fit::After(_) | Fit::Spent | Fit::Never => {
                    counter.would_have_refused += 1;
                    counter.end_trial_of(holdings);
                }
            }
        }
    }

    /// `used` takes the place of what was `held`.
    pub(super) fn settle(&mut self, holdings: &Holdings, amounts: [&Amounts; 2], model: Option<&str>, now: Now) {
        for (limit, counter) in self.limits.limits().iter().zip(&mut self.counters) {
            if limit.covers(model) {
                counter.settle(limit, holdings, amounts, now);
            }
        }
    }

    pub(super) fn note_motion(&mut self, holdings: &Holdings) {
        self.counters.iter_mut().for_each(|counter| counter.note_motion(holdings));
    }

    /// Limits on queued requests that bind a request of `model`.
    pub(super) fn queue_limits(&self, model: Option<&str>) -> impl Iterator<Item = (&Limit, CounterId)> {
        let is_one = move |limit: &Limit| matches!(limit.bound, Bound::QueuedRequests(_)) && limit.covers(model);
        self.counted().filter(move |(limit, _)| is_one(limit)).map(|(limit, counter)| (limit, counter.id))
    }

    /// A limit on trial would have refused a request before it was admitted.
    pub(super) fn note_refused(&mut self, id: CounterId) {
        let counter = self.counters.iter_mut().find(|counter| counter.id == id);
        counter.into_iter().for_each(|counter| counter.would_have_refused += 1);
    }

    /// An exponential mean over about the last eight requests.
    pub(super) fn note_held(&mut self, held: Duration) {
        let mean = self.mean_held.unwrap_or(held);
        self.mean_held = Some((mean * 7 + held) / 8);
    }

    pub(super) fn standings(&self, now: Now, overrun: Percent) -> impl Iterator<Item = Standing<'_>> {
        self.counted().map(move |(limit, counter)| Standing {
            limit,
            remaining: counter.remaining(limit, now),
            overrun_remaining: counter.overrun_remaining(now, overrun),
            reset: counter.reset(now),
            resets_at: counter.window().map(|(_, end)| end),
            would_have_refused: counter.would_have_refused,
        })
    }

    fn counted(&self) -> impl Iterator<Item = (&Limit, &Counter)> {
        self.limits.limits().iter().zip(&self.counters)
    }

    pub(super) fn terms(&self, now: Now, overrun: Percent) -> Terms<'static> {
        Terms { now, mean_held: self.mean_held, overrun, ahead: 0, held: HeldIs::Used }
    }
}
