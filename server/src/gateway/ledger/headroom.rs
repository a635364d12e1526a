//! How far the limits of a caller are used.

use std::sync::Arc;
use std::time::Duration;

use super::amounts::Amounts;
use super::pages::{Applicant, Asked, Pages};
use super::{Ask, Ledger, Now, Refusal};
use crate::gateway::account::{AccountPath, Caller};
use crate::gateway::quota::{Limit, Percent, Unit, UnixSeconds};

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
    /// What may be used beyond a grant, in the class `batch`; `None` of what is no grant.
    pub overrun_remaining: Option<u64>,
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
            let binding = states.iter().filter(|state| state.limit.is_enforced() && state.limit.covers(model));
            let of_unit = binding.filter(|state| state.limit.counts(unit));
            let tightest = of_unit.min_by_key(|state| state.remaining)?;
            let LimitState { limit, remaining, reset, .. } = tightest;
            Some(WindowState { limit: limit.value().get(), remaining: *remaining, reset: *reset })
        };
        RateLimitState { requests: tightest(Unit::Requests), tokens: tightest(Unit::Tokens) }
    }

    /// What would keep this ask out now: a limit, or whoever waits in line before it. Nothing is taken and nothing counted.
    #[cfg(test)]
    pub(super) fn would_refuse(&self, caller: &Arc<Caller>, ask: &Ask) -> Option<Refusal> {
        self.would_overrun(caller, ask).err()
    }

    /// The grants that this ask would be admitted beyond now; none where it is admitted as it asks. Nothing is taken and
    /// nothing counted.
    pub fn would_overrun(&self, caller: &Arc<Caller>, ask: &Ask) -> Result<Vec<LimitState>, Refusal> {
        let (_, demand) = self.demand(caller, ask);
        let (overrun, model) = (self.books.parts.overrun, ask.model.as_deref());
        let mut pages = self.books.open();
        let now = self.books.now();
        let slots = pages.slots(&caller.account, now, self.books.counter_source());
        let applicant = Applicant { account: &caller.account, slots: &slots, ticket: None };
        match pages.in_turn(applicant, Asked { demand: &demand, model }, overrun, now) {
            Ok(fitting) if fitting.overrun == Percent::NONE => Ok(Vec::new()),
            Ok(fitting) => {
                let states = states(&pages, caller, &slots, now, overrun);
                let binds = |limit: &Limit| limit.is_enforced() && limit.covers(model);
                let lacks = |state: &LimitState| fitting.now.of_limit(&state.limit) > state.remaining;
                let grants = states.filter(|state| state.overrun_remaining.is_some() && binds(&state.limit));
                Ok(grants.filter(lacks).collect())
            }
            Err(refusal) => {
                drop(pages);
                Err(self.told(caller, ask, refusal))
            }
        }
    }

    /// Every limit on the caller's path, its own first.
    pub fn limits_of(&self, caller: &Arc<Caller>) -> Vec<LimitState> {
        let mut pages = self.books.open();
        let now = self.books.now();
        let slots = pages.slots(&caller.account, now, self.books.counter_source());
        states(&pages, caller, &slots, now, self.books.parts.overrun).collect()
    }

    /// The longest answer to one prompt that could ever fit the caller's limits. `None`: nothing limits it.
    pub fn largest_output(&self, caller: &Caller, model: &str, prompt_tokens: u32) -> Option<u32> {
        self.longest_answers(caller, |most| vec![Ask::new(model, prompt_tokens, most)])
    }

    /// For requests that state no bound: how long each answer may become so that what is then asked together, for one
    /// model, could ever fit the caller's limits. `None`: nothing limits it. `asks`: with answers of at most so many tokens;
    /// it never asks less of longer ones.
    pub fn longest_answers(&self, caller: &Caller, asks: impl Fn(u32) -> Vec<Ask>) -> Option<u32> {
        let tariff = &self.books.parts.tariff;
        let model = asks(0).first()?.model.clone();
        let on_path = caller.account.limits().map(|(_, limit)| limit).filter(|limit| limit.covers(model.as_deref()));
        let limits: Vec<&Limit> = on_path.filter(|limit| limit.counts_output() || !limit.is_shared()).collect();
        if limits.is_empty() {
            return None;
        }
        let fits = |tokens: u32| {
            let amounts: Vec<Amounts> = asks(tokens).iter().map(|ask| ask.amounts(tariff)).collect();
            limits.iter().all(|limit| Amounts::asked_of(&amounts, limit) <= limit.value().get())
        };
        let (mut least, mut most) = (0, u32::MAX);
        while least < most {
            let middle = most - (most - least) / 2;
            if fits(middle) { least = middle } else { most = middle - 1 }
        }
        Some(least)
    }
}

fn states(
    pages: &Pages,
    caller: &Caller,
    slots: &[usize],
    now: Now,
    overrun: Percent,
) -> impl Iterator<Item = LimitState> {
    caller.account.nodes.iter().zip(slots).flat_map(move |(node, slot)| {
        pages.pages[*slot].standings(now, overrun).map(|standing| LimitState {
            scope: node.path.clone(),
            limit: standing.limit.clone(),
            remaining: standing.remaining,
            overrun_remaining: standing.overrun_remaining,
            reset: standing.reset,
            resets_at: standing.resets_at,
            would_have_refused: standing.would_have_refused,
        })
    })
}
