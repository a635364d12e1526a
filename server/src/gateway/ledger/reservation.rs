//! The ticket of a request that was admitted.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::Usage;

use super::amounts::Amounts;
use super::origins::Origin;
use super::{Books, Now};
use crate::gateway::account::{Account, Caller};
use crate::gateway::journal::{self, EntryEnd, Settlement};

/// Room taken. Settles when dropped.
#[derive(Debug)]
#[must_use = "dropping a reservation settles it"]
pub struct Reservation {
    books: Arc<Books>,
    caller: Arc<Caller>,
    /// The pages on the way from the account to the root.
    slots: Vec<usize>,
    model: Option<Arc<str>>,
    held: Amounts,
    taken_at: Duration,
    used: Usage,
    end: EntryEnd,
    exit: Exit,
    /// The other gateway's reservation that this is for.
    origin: Option<Origin>,
    /// `None` where nothing is written down.
    page: Option<journal::Page>,
}

/// How a reservation leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Settle,
    /// The server never started the work: the request itself is given back too.
    Withdraw,
}

impl Reservation {
    pub(super) fn new(
        books: Arc<Books>,
        (caller, slots): (Arc<Caller>, Vec<usize>),
        (model, held): (Option<Arc<str>>, Amounts),
        (now, page): (Now, Option<journal::Page>),
    ) -> Self {
        let end = if model.is_some() { EntryEnd::Aborted } else { EntryEnd::Answered };
        let (taken_at, used, exit) = (now.monotonic, Usage::default(), Exit::Settle);
        Self { books, caller, slots, model, held, taken_at, used, end, exit, origin: None, page }
    }

    /// Returns once `tokens` generated tokens may be sent, because enough is written down. Cancel safe.
    pub async fn covers(&self, tokens: u32) {
        if let Some(page) = &self.page {
            poll_fn(|context| page.poll_covers(tokens, context)).await;
        }
    }

    /// What was sent so far. Writes a mark down when one is due.
    pub fn mark(&mut self, sent: Usage) {
        if let Some(page) = &mut self.page {
            page.mark(sent);
        }
    }

    /// How it ended; replaces what was said before.
    pub fn end(&mut self, end: EntryEnd) {
        self.end = end;
    }

    /// It is for another gateway, which may ask twice under one reservation and pays once.
    pub fn on_behalf_of(&mut self, origin: Origin) {
        self.origin = Some(origin);
    }

    /// What was really used so far; replaces what was recorded before.
    pub fn record(&mut self, used: Usage) {
        self.used = used;
    }

    pub fn used(&self) -> Usage {
        self.used
    }

    pub fn account(&self) -> &Arc<Account> {
        &self.caller.account
    }

    /// The same as dropping it, said aloud.
    pub fn settle(self) {}

    /// Records a last time and settles.
    pub fn settle_as(mut self, used: Usage) {
        self.record(used);
    }

    /// For a request that the server could not start (no replica, queue full): it consumed nothing, not even itself.
    pub fn withdraw(mut self) {
        self.used = Usage::default();
        self.exit = Exit::Withdraw;
    }

    fn write_down(&self, billed_micros: u64, now: Now) {
        let Some(page) = &self.page else { return };
        match self.exit {
            Exit::Withdraw => page.withdraw(),
            Exit::Settle => {
                let (at, used, end) = (now.wall, self.used, self.end);
                let measured_micros = used.measured_ns / 1000;
                page.settle(Settlement { at, used, billed_micros, measured_micros, end });
            }
        }
    }

    fn used_amounts(&self) -> Amounts {
        match self.exit {
            Exit::Settle => Amounts::of(self.model.as_deref(), self.used, &self.books.parts.tariff),
            Exit::Withdraw => Amounts::default(),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let (Some(origin), Exit::Settle) = (&self.origin, self.exit) {
            self.used = self.books.origins.beyond(origin, self.used);
        }
        let used = self.used_amounts();
        let model = self.model.as_deref();
        let mut pages = self.books.open();
        let now = self.books.now();
        for slot in &self.slots {
            let page = &mut pages.pages[*slot];
            page.settle(&self.held, &used, model, now);
            if self.exit == Exit::Settle {
                page.note_held(now.monotonic.saturating_sub(self.taken_at));
            }
            page.totals.settle(self.used);
        }
        pages.totals.settle(self.used);
        drop(pages);
        self.write_down(used.gpu_micros, now);
    }
}
