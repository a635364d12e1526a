//! The line before the limits: what would fit a moment later waits for its turn instead of being refused.
//!
//! First come, first served before each limit: nobody passes whoever came earlier and waits for a limit that they would
//! take from too. Who waits for one limit holds up nobody at another. The line is bounded, in all and for each account, and
//! so is the wait; whoever leaves gives its place back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::amounts::Demand;
use super::{Ask, Books, Ledger, Now, Refusal, Reservation, Retry};
use crate::gateway::account::{Account, AccountPath, Caller, Node};
use crate::gateway::quota::{Bound, Enforcement, Limit};

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
    /// When it said so, on the monotonic clock.
    since: Duration,
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
            let refusal = match self.take(&caller, ask, place.as_ref().map(|place| place.ticket)) {
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
                return Err(NoTurn::Refused(refusal));
            };
            place.wait_before(refusal, now);
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
        let mut pages = self.books.open();
        let waiting = Waiting {
            ticket: pages.line.next_ticket,
            account: caller.account.path.clone(),
            model: ask.model.clone(),
            before: refusal.clone(),
            since: now.monotonic,
        };
        let ticket = pages.line.join(&caller.account, waiting, bounds)?;
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

    /// Whoever came earlier and waits for a limit that this ask would take from: its refusal is this one's too. `ticket`:
    /// of an ask that waits already.
    pub(super) fn ahead(
        &self,
        account: &Account,
        (demand, ask): (&Demand, &Ask),
        (ticket, now): (Option<Ticket>, Now),
    ) -> Option<Refusal> {
        let model = ask.model.as_deref();
        let mut earlier = self.waiting.iter().take_while(|waiting| ticket.is_none_or(|ticket| waiting.ticket < ticket));
        earlier.find_map(|waiting| {
            let Refusal { scope, limit, model: limited, .. } = &waiting.before;
            let is_same = |limit_of: &Limit| limit_of.name() == *limit && limit_of.model == *limited;
            let of_node = account.nodes.iter().find(|node| node.path == *scope)?;
            let limit = of_node.limits.limits().iter().find(|limit| is_same(limit) && limit.covers(model))?;
            let asked = demand.of_limit(limit).map_or(0, |share| share.now);
            let retry = waiting.before.retry.seen_after(now.monotonic.saturating_sub(waiting.since));
            (asked > 0).then(|| Refusal { asked, retry, ..waiting.before.clone() })
        })
    }

    fn join(&mut self, account: &Account, newcomer: Waiting, bounds: LineBounds) -> Option<Ticket> {
        let within = |path: &AccountPath, is_counted: &dyn Fn(&Waiting) -> bool| {
            self.waiting.iter().filter(|waiting| waiting.account.is_within(path) && is_counted(waiting)).count() as u64
        };
        let is_full = |(node, limit): (&Node, &Limit)| match limit.bound {
            Bound::QueuedRequests(most) if limit.enforcement == Enforcement::Refuse => {
                let is_counted = |waiting: &Waiting| limit.covers(waiting.model.as_deref());
                is_counted(&newcomer) && within(&node.path, &is_counted) >= most.get()
            }
            _ => false,
        };
        let of_account = within(&account.path, &|_| true);
        let is_crowded =
            self.waiting.len() >= bounds.max_waiting || of_account >= bounds.max_waiting_per_account as u64;
        if is_crowded || account.limits().any(is_full) {
            return None;
        }
        self.next_ticket.0 += 1;
        let ticket = newcomer.ticket;
        self.waiting.push(newcomer);
        Some(ticket)
    }

    fn waiting_mut(&mut self, ticket: Ticket) -> Option<&mut Waiting> {
        self.waiting.iter_mut().find(|waiting| waiting.ticket == ticket)
    }
}

impl Place {
    fn wait_before(&self, refusal: Refusal, now: Now) {
        if let Some(waiting) = self.books.open().line.waiting_mut(self.ticket) {
            (waiting.before, waiting.since) = (refusal, now.monotonic);
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
