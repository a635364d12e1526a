//! All pages, and the line before them: what the ledger looks at and changes under its lock.

use std::collections::HashMap;

use super::amounts::{Amounts, Demand};
use super::counter::HeldIs;
use super::holdings::{Holdings, Motion};
use super::line::{Line, Ticket};
use super::page::{CounterSource, Page, Trial};
use super::reservation::Taken;
use super::{LedgerTotals, Now, Refusal, Retry};
use crate::gateway::account::{Account, AccountPath, Node};
use crate::gateway::quota::{Fit, Percent};

#[derive(Debug, Default)]
pub(super) struct Pages {
    pub(super) totals: LedgerTotals,
    pub(super) line: Line,
    /// One page a node that ever was on a request's path; bounded by the number of accounts.
    pub(super) pages: Vec<Page>,
    pub(super) slots: HashMap<AccountPath, usize>,
}

/// Who asks for room. `slots`: the pages on the way from the account to the root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applicant<'a> {
    pub(super) account: &'a Account,
    pub(super) slots: &'a [usize],
    /// Of one that waits in line already.
    pub(super) ticket: Option<Ticket>,
}

/// What is asked of the limits that cover `model`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) demand: &'a Demand,
    pub(super) model: Option<&'a str>,
}

impl Pages {
    /// The pages on the way from the account to the root, with the limits that they have today.
    pub(super) fn slots(&mut self, account: &Account, now: Now, source: CounterSource<'_>) -> Vec<usize> {
        account.nodes.iter().map(|node| self.slot(node, now, source)).collect()
    }

    fn slot(&mut self, node: &Node, now: Now, source: CounterSource<'_>) -> usize {
        let slot = self.slots.get(&node.path).copied().unwrap_or_else(|| {
            let slot = self.pages.len();
            self.slots.insert(node.path.clone(), slot);
            self.pages.push(Page::at(slot));
            slot
        });
        self.pages[slot].follow(node, now, source);
        slot
    }

    /// What a request would take to begin, if every limit on its path has room: as it asks, or beyond a grant.
    pub(super) fn fitting(
        &self,
        applicant: Applicant<'_>,
        asked: Asked<'_>,
        overrun: Percent,
        now: Now,
    ) -> Result<Demand, Refusal> {
        let Some(refusal) = self.refusal(applicant, asked, now) else { return Ok(*asked.demand) };
        if refusal.retry != Retry::Spent || overrun == Percent::NONE {
            return Err(refusal);
        }
        let beyond = asked.demand.overrunning(overrun);
        match self.refusal(applicant, Asked { demand: &beyond, ..asked }, now) {
            None => Ok(beyond),
            Some(further) if further.retry == Retry::Spent => Err(refusal),
            Some(further) => Err(further),
        }
    }

    /// The same, if nobody who came earlier waits for room that this request would take.
    pub(super) fn in_turn(
        &self,
        applicant: Applicant<'_>,
        asked: Asked<'_>,
        overrun: Percent,
        now: Now,
    ) -> Result<Demand, Refusal> {
        let fitting = self.fitting(applicant, asked, overrun, now);
        let Some(behind) = self.behind(applicant, asked, now) else { return fitting };
        // Waiting does not help against a limit that keeps it out for longer.
        Err(fitting.err().filter(|own| own.retry > behind.retry).unwrap_or(behind))
    }

    /// Takes of every limit what was seen to fit.
    pub(super) fn admit(&mut self, slots: &[usize], asked: Asked<'_>, now: Now) -> Holdings {
        let mut holdings = Holdings::default();
        self.take(slots, asked, now, &mut holdings);
        slots.iter().for_each(|slot| self.pages[*slot].totals.take());
        self.totals.take();
        holdings
    }

    pub(super) fn rehearse(&mut self, taken: &mut Taken, model: Option<&str>, trial: Trial, now: Now) {
        let Taken { slots, demand, holdings, .. } = taken;
        let asked = Asked { demand, model };
        slots.iter().for_each(|slot| self.pages[*slot].rehearse(asked, trial, now, holdings));
    }

    /// As if it had never been admitted.
    pub(super) fn give_back(&mut self, taken: &Taken, model: Option<&str>, now: Now) {
        for slot in &taken.slots {
            let page = &mut self.pages[*slot];
            page.settle(&taken.holdings, [&taken.demand.now, &Amounts::default()], model, now);
            page.totals.take_back();
        }
        self.totals.take_back();
    }

    pub(super) fn count_refusal(&mut self, account: &Account) {
        self.totals.refused += 1;
        for node in &account.nodes {
            if let Some(slot) = self.slots.get(&node.path) {
                self.pages[*slot].totals.refused += 1;
            }
        }
    }

    pub(super) fn take(&mut self, slots: &[usize], asked: Asked<'_>, now: Now, holdings: &mut Holdings) {
        slots.iter().for_each(|slot| self.pages[*slot].take(&asked.demand.now, asked.model, now, holdings));
    }

    /// Whether others may wait for what a reservation holds.
    pub(super) fn set_motion(&mut self, slots: &[usize], holdings: &mut Holdings, motion: Motion) {
        let Some(changed) = holdings.set_motion(motion) else { return };
        slots.iter().for_each(|slot| self.pages[*slot].note_motion(changed));
    }

    /// Of all limits on the path the one that keeps this ask out longest, if any does.
    pub(super) fn refusal(&self, applicant: Applicant<'_>, asked: Asked<'_>, now: Now) -> Option<Refusal> {
        self.refusal_if(applicant, asked, now, HeldIs::Used)
    }

    /// The same, if what others hold is looked at so.
    pub(super) fn refusal_if(
        &self,
        applicant: Applicant<'_>,
        asked: Asked<'_>,
        now: Now,
        held: HeldIs<'_>,
    ) -> Option<Refusal> {
        let mut worst: Option<(Fit, Refusal)> = None;
        for (node, slot) in applicant.account.nodes.iter().zip(applicant.slots) {
            let found = self.pages[*slot].refusal(&node.path, asked, now, held);
            worst = found.into_iter().chain(worst).max_by_key(|(fit, _)| *fit);
        }
        worst.map(|(_, refusal)| refusal)
    }
}
