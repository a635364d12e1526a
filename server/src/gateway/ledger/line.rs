//! The line before the limits: what would fit a moment later waits for its turn instead of being refused.
//!
//! First come, first served before each limit: nobody passes whoever came earlier and waits for a limit that they would
//! take from too. Who waits for one limit holds up nobody at another. The line is bounded, in all and for each account, and
//! so is the wait; whoever leaves gives its place back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::amounts::Amounts;
use super::counter::Terms;
use super::holdings::CounterId;
use super::pages::{Applicant, Asked};
use super::{Ask, Books, Ledger, Now, Pages, Refusal, Reservation, Retry, Turn};
use crate::gateway::account::{Account, AccountPath, Caller, Node};
use crate::gateway::quota::Limit;

/// How old the limits that somebody waits for may be.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineBounds {
    /// Requests that wait at the same time.
    pub max_waiting: usize,
    /// Of one account, unless a limit on queued requests says less.
    pub max_waiting_per_account: usize,
    pub longest_wait: Duration,
}

/// Who waits, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: Vec<Waiting>,
    next_ticket: Ticket,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    account: AccountPath,
    model: Option<Arc<str>>,
    /// The limit that has no room for it.
    before: Refusal,
    /// What it takes once it is its turn.
    asks: Amounts,
    /// The limits on queued requests, on trial, that would not have let it wait.
    beyond: Vec<CounterId>,
}

/// Those who wait for a limit that an ask would take from too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ahead {
    /// On the way from the account to the root.
    node: usize,
    /// Of that node.
    limit: usize,
    /// What they ask of it together.
    amount: u64,
}

/// Who waits already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Ticket(u64);

/// Why nothing was reserved for whoever would have waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoTurn {
    Refused(Refusal),
    /// Whoever waited may ask for nothing any more.
    Gone,
}

/// A place in the line. Dropping it leaves the line.
#[derive(Debug)]
struct Place {
    books: Arc<Books>,
    ticket: Ticket,
    /// On the monotonic clock.
    deadline: Duration,
}

impl Ledger {
    /// As [`Ledger::reserve`], after a wait if that helps. `today` is asked during the wait and says what has become of the
    /// caller: a raised limit lets it go on, a lowered one binds it, and `None` ends it. Cancel safe: whoever stops waiting
    /// has taken nothing.
    pub async fn reserve_in_turn(
        &self,
        caller: &Arc<Caller>,
        ask: &Ask,
        today: impl Fn() -> Option<Arc<Caller>>,
    ) -> Result<Reservation, NoTurn> {
        let mut place: Option<Place> = None;
        let mut caller = Arc::clone(caller);
        loop {
            // Before the ledger is asked, so that nothing that is given back meanwhile is missed.
            let gave_back = self.books.gave_back.notified();
            let patience = self.books.parts.line.longest_wait;
            let turn = Turn { ticket: place.as_ref().map(|place| place.ticket), patience };
            let refusal = match self.take(&caller, ask, turn) {
                Ok(reservation) => return Ok(reservation),
                Err(refusal) => refusal,
            };
            let now = self.books.now();
            if place.is_none() {
                place = self.join(&caller, ask, &refusal, now);
                // Something may have come free before anybody knew that it is waited for.
                if place.is_some() {
                    continue;
                }
            }
            let wait = place.as_ref().and_then(|place| wait(&refusal, place.deadline, now));
            let (Some(place), Some(wait)) = (&place, wait) else {
                self.books.open().count_refusal(&caller.account);
                return Err(NoTurn::Refused(self.told(&caller, ask, refusal)));
            };
            place.wait_before(refusal);
            tokio::select! {
                () = gave_back => {}
                () = sleep(wait.min(LOOK_AGAIN)) => {}
            }
            caller = today().ok_or(NoTurn::Gone)?;
        }
    }

    /// `None`: the line is full, or waiting would not help.
    fn join(&self, caller: &Caller, ask: &Ask, refusal: &Refusal, now: Now) -> Option<Place> {
        let bounds = self.books.parts.line;
        let deadline = now.monotonic + bounds.longest_wait;
        wait(refusal, deadline, now)?;
        let (_, demand) = self.demand(caller, ask);
        let mut pages = self.books.open();
        let waiting = Waiting {
            ticket: pages.line.next_ticket,
            account: caller.account.path.clone(),
            model: ask.model.clone(),
            before: refusal.clone(),
            asks: demand.now,
            beyond: Vec::new(),
        };
        let ticket = pages.join_line(&caller.account, waiting, bounds)?;
        Some(Place { books: Arc::clone(&self.books), ticket, deadline })
    }
}

/// How long to wait before the ledger is asked again; `None` if that is in vain.
fn wait(refusal: &Refusal, deadline: Duration, now: Now) -> Option<Duration> {
    const LEAST: Duration = Duration::from_millis(1);
    let left = deadline.saturating_sub(now.monotonic);
    match refusal.retry {
        _ if left.is_zero() => None,
        // Nobody knows when one ends; whoever ends says so.
        Retry::After(_) if refusal.limit.is_held() => Some(left),
        Retry::After(wait) if wait <= left => Some(wait.max(LEAST)),
        Retry::After(_) | Retry::Spent | Retry::Never => None,
    }
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The first limit that somebody who came earlier waits for and that this ask would take from.
    fn ahead(&self, applicant: Applicant<'_>, Asked { demand, model }: Asked<'_>) -> Option<Ahead> {
        let Applicant { account, ticket, .. } = applicant;
        let earlier =
            || self.waiting.iter().take_while(move |waiting| ticket.is_none_or(|ticket| waiting.ticket < ticket));
        earlier().find_map(|first| {
            let node = account.nodes.iter().position(|node| node.path == first.before.scope)?;
            let limits = account.nodes[node].limits.limits();
            let limit = limits.iter().position(|limit| first.waits_before(limit) && limit.covers(model))?;
            demand.of_limit(&limits[limit]).filter(|share| share.now > 0)?;
            let scope = &first.before.scope;
            let same = earlier().filter(|one| one.before.scope == *scope && one.waits_before(&limits[limit]));
            let amount = same.fold(0_u64, |sum, one| sum.saturating_add(one.asks.of_limit(&limits[limit])));
            Some(Ahead { node, limit, amount })
        })
    }

    fn within(&self, path: &AccountPath) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter().filter(move |waiting| waiting.account.is_within(path))
    }

    fn is_crowded(&self, account: &AccountPath, bounds: LineBounds) -> bool {
        self.waiting.len() >= bounds.max_waiting || self.within(account).count() >= bounds.max_waiting_per_account
    }

    fn join(&mut self, newcomer: Waiting) -> Ticket {
        self.next_ticket.0 += 1;
        let ticket = newcomer.ticket;
        self.waiting.push(newcomer);
        ticket
    }

    fn waiting_mut(&mut self, ticket: Ticket) -> Option<&mut Waiting> {
        self.waiting.iter_mut().find(|waiting| waiting.ticket == ticket)
    }
}

impl Waiting {
    fn waits_before(&self, limit: &Limit) -> bool {
        limit.is_enforced() && limit.name() == self.before.limit && limit.model == self.before.model
    }
}

impl Pages {
    /// Whoever came earlier and waits for room that this ask would take: it fits once they have had what they ask.
    pub(super) fn behind(&self, applicant: Applicant<'_>, asked: Asked<'_>, now: Now) -> Option<Refusal> {
        let Ahead { node, limit, amount } = self.line.ahead(applicant, asked)?;
        let Node { path, limits } = &applicant.account.nodes[node];
        let share = asked.demand.of_limit(&limits.limits()[limit])?;
        let page = &self.pages[applicant.slots[node]];
        let terms = Terms { ahead: amount, ..page.terms(now, asked.demand.overrun) };
        Some(page.refusal_behind(limit, path, share, terms))
    }

    /// `None`: the line is full. A limit on trial notes that it is.
    fn join_line(&mut self, account: &Account, mut newcomer: Waiting, bounds: LineBounds) -> Option<Ticket> {
        if self.line.is_crowded(&account.path, bounds) {
            return None;
        }
        for node in &account.nodes {
            let Some(slot) = self.slots.get(&node.path) else { continue };
            for (limit, id) in self.pages[*slot].queue_limits(newcomer.model.as_deref()) {
                let counts = |one: &&Waiting| limit.covers(one.model.as_deref()) && !one.beyond.contains(&id);
                let is_full = self.line.within(&node.path).filter(counts).count() as u64 >= limit.value().get();
                match (is_full, limit.is_enforced()) {
                    (true, true) => return None,
                    (true, false) => newcomer.beyond.push(id),
                    (false, _) => {}
                }
            }
        }
        newcomer.beyond.iter().for_each(|id| self.pages[id.slot].note_refused(*id));
        Some(self.line.join(newcomer))
    }
}

impl Place {
    fn wait_before(&self, refusal: Refusal) {
        if let Some(waiting) = self.books.open().line.waiting_mut(self.ticket) {
            waiting.before = refusal;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.books.open().line.waiting.retain(|waiting| waiting.ticket != self.ticket);
        // Whoever stood behind it may be the first now.
        self.books.gave_back.notify_waiters();
    }
}

impl Default for LineBounds {
    fn default() -> Self {
        Self { max_waiting: 256, max_waiting_per_account: 16, longest_wait: Duration::from_secs(5) }
    }
}
