//! How far the limits of a caller are used.

use std::sync::Arc;
use std::time::Duration;

use super::{Ask, Ledger, Refusal};
use crate::gateway::account::{AccountPath, Caller};
use crate::gateway::quota::{Bound, Limit, Unit, UnixSeconds};

/// For the `x-ratelimit-*` headers; `None` where nothing on the caller's path limits that. Of several limits, the one
/// with the least left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimitState {
    pub requests: Option<WindowState>,
    pub tokens: Option<WindowState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowState {
    pub limit: u64,
    pub remaining: u64,
    /// Until the whole limit is available again.
    pub reset: Duration,
}

/// One limit on a caller's path, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitState {
    /// The node that the limit stands on.
    pub scope: AccountPath,
    pub limit: Limit,
    pub remaining: u64,
    /// Until the whole limit is available again; nothing where nobody knows.
    pub reset: Duration,
    /// The end of a budget's window.
    pub resets_at: Option<UnixSeconds>,
    /// Requests that it would have refused since the start, if it is on trial.
    pub would_have_refused: u64,
}

impl Ledger {
    pub fn headroom(&self, caller: &Arc<Caller>, model: Option<&str>) -> RateLimitState {
        let states = self.limits_of(caller);
        let tightest = |unit: Unit| {
            let of_unit = states.iter().filter(|state| state.limit.covers(model) && state.limit.counts(unit));
            let tightest = of_unit.min_by_key(|state| state.remaining)?;
            let LimitState { limit, remaining, reset, .. } = tightest;
            Some(WindowState { limit: limit.value().get(), remaining: *remaining, reset: *reset })
        };
        RateLimitState { requests: tightest(Unit::Requests), tokens: tightest(Unit::Tokens) }
    }

    /// What would keep this ask out now: a limit, or whoever waits in line before it. Nothing is taken and nothing counted.
    pub fn would_refuse(&self, caller: &Arc<Caller>, ask: &Ask) -> Option<Refusal> {
        let parts = &self.books.parts;
        let demand = ask.demand(ask.first_part(parts.in_parts.tokens.get()), &parts.tariff);
        let mut pages = self.books.open();
        let now = self.books.now();
        let slots = pages.slots(&caller.account, now, self.books.origin());
        let ahead = pages.line.ahead(&caller.account, (&demand, ask), (None, now));
        ahead.or_else(|| {
            let asked = (&demand, ask.model.as_deref());
            pages.fitting((&caller.account, &slots), asked, (parts.overrun, now)).err()
        })
    }

    /// Every limit on the caller's path, its own first.
    pub fn limits_of(&self, caller: &Arc<Caller>) -> Vec<LimitState> {
        let mut pages = self.books.open();
        let now = self.books.now();
        let slots = pages.slots(&caller.account, now, self.books.origin());
        let of_node = caller.account.nodes.iter().zip(slots).flat_map(|(node, slot)| {
            pages.pages[slot].standings(now).map(|standing| LimitState {
                scope: node.path.clone(),
                limit: standing.limit.clone(),
                remaining: standing.remaining,
                reset: standing.reset,
                resets_at: standing.resets_at,
                would_have_refused: standing.would_have_refused,
            })
        });
        of_node.collect()
    }

    /// The largest answer that could ever fit the caller's limits, for requests that state none. `None`: nothing limits
    /// it.
    pub fn largest_output(&self, caller: &Caller, model: &str, prompt_tokens: u32) -> Option<u32> {
        let limits = caller.account.limits().filter(|(_, limit)| limit.covers(Some(model)));
        let room = limits.filter_map(|(_, limit)| match limit.bound {
            Bound::ContextTokens(most) => Some(most.get().saturating_sub(prompt_tokens.into())),
            _ if limit.counts(Unit::Tokens) => Some(limit.value().get().saturating_sub(prompt_tokens.into())),
            _ if limit.counts(Unit::OutputTokens) => Some(limit.value().get()),
            _ => None,
        });
        room.min().map(|room| u32::try_from(room).unwrap_or(u32::MAX))
    }
}
