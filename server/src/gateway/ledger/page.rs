//! One account's page in the ledger: what it holds and has used. Only ever touched under the ledger's lock.

use std::time::Duration;

use super::{Ask, Exit, LedgerTotals, Refusal, Reservation, Retry};
use crate::gateway::account::Account;
use crate::gateway::quota::{Fit, Gcra, Limit};

#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) requests: Option<Gcra>,
    pub(super) tokens: Option<Gcra>,
    pub(super) totals: LedgerTotals,
    mean_held: Option<Duration>,
}

impl Page {
    /// The account's limits as they are today; what was used under earlier ones stays used.
    pub(super) fn follow(&mut self, account: &Account, now: Duration) {
        for limit in account.limits.limits() {
            let (bucket, rate) = match *limit {
                Limit::RequestsPerMinute(rate) => (&mut self.requests, rate),
                Limit::TokensPerMinute(rate) => (&mut self.tokens, rate),
                Limit::ConcurrentRequests(_) => continue,
            };
            bucket.get_or_insert_with(|| Gcra::new(rate)).set_rate(now, rate);
        }
    }

    /// The limit that keeps this ask out longest, if any does.
    pub(super) fn refusal(&self, account: &Account, ask: Ask, now: Duration) -> Option<Refusal> {
        let tightest = account.limits.limits().iter().map(|limit| (self.fit(limit, ask, now), limit));
        let (fit, limit) = tightest.max_by_key(|(fit, _)| *fit)?;
        let retry = match fit {
            Fit::Now => return None,
            Fit::After(wait) => Retry::After(wait),
            Fit::Never => Retry::Never,
        };
        Some(Refusal {
            limit: limit.name(),
            scope: account.name.clone(),
            limit_value: limit.value().get(),
            current_value: self.current(limit, now),
            asked: limit.asked(ask),
            retry,
        })
    }

    fn fit(&self, limit: &Limit, ask: Ask, now: Duration) -> Fit {
        let asked = limit.asked(ask);
        match limit {
            Limit::RequestsPerMinute(rate) => self.requests.unwrap_or_else(|| Gcra::new(*rate)).fit(now, asked),
            Limit::TokensPerMinute(rate) => self.tokens.unwrap_or_else(|| Gcra::new(*rate)).fit(now, asked),
            Limit::ConcurrentRequests(most) if self.totals.open < u64::from(most.get()) => Fit::Now,
            Limit::ConcurrentRequests(most) => Fit::After(self.mean_time_between_ends(most.get())),
        }
    }

    fn current(&self, limit: &Limit, now: Duration) -> u32 {
        let taken = |bucket: Option<Gcra>| bucket.map_or(0, |b| limit.value().get() - b.remaining(now));
        match limit {
            Limit::RequestsPerMinute(_) => taken(self.requests),
            Limit::TokensPerMinute(_) => taken(self.tokens),
            Limit::ConcurrentRequests(_) => u32::try_from(self.totals.open).unwrap_or(u32::MAX),
        }
    }

    fn mean_time_between_ends(&self, concurrent: u32) -> Duration {
        const BEFORE_ANYTHING_ENDED: Duration = Duration::from_secs(1);
        self.mean_held.map_or(BEFORE_ANYTHING_ENDED, |held| held / concurrent)
    }

    pub(super) fn take(&mut self, now: Duration, tokens: u32) {
        if let Some(requests) = &mut self.requests {
            requests.take(now, 1);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.take(now, tokens);
        }
    }

    pub(super) fn settle(&mut self, reservation: &Reservation, now: Duration) {
        let used_tokens = reservation.used.prompt_tokens.saturating_add(reservation.used.generated_tokens);
        if let Some(bucket) = &mut self.tokens {
            match reservation.reserved_tokens.checked_sub(used_tokens) {
                Some(unused) => bucket.give_back(unused),
                None => bucket.take(now, used_tokens - reservation.reserved_tokens),
            }
        }
        match reservation.exit {
            Exit::Settle => self.note_held(now.saturating_sub(reservation.taken_at)),
            Exit::Withdraw => {
                if let Some(requests) = &mut self.requests {
                    requests.give_back(1);
                }
            }
        }
    }

    /// An exponential mean over about the last eight requests.
    fn note_held(&mut self, held: Duration) {
        let mean = self.mean_held.unwrap_or(held);
        self.mean_held = Some((mean * 7 + held) / 8);
    }
}

impl Limit {
    /// How much of this limit an ask takes.
    fn asked(&self, ask: Ask) -> u32 {
        match self {
            Self::TokensPerMinute(_) => ask.total_tokens(),
            Self::RequestsPerMinute(_) | Self::ConcurrentRequests(_) => 1,
        }
    }
}
