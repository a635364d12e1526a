//! Who has reserved what.
//!
//! **Fails closed.** A reservation is granted only after every limit of the account was seen to fit; what cannot be
//! checked is refused. The state lives in this process: a restart forgets rates and open reservations, never more.
//!
//! [`Ledger::reserve`] takes all limits or none, in one short critical section, so that any number of concurrent
//! requests admit exactly the room there is; a refused request consumes nothing. The [`Reservation`] is the ticket: it
//! is not `Clone`, [`Reservation::record`] notes what was really generated so far, and dropping it, on whatever way
//! out (finished, client gone, error, panic, shutdown), settles exactly that, once. Tokens reserved and not used go
//! back to the rate; the concurrent slot is free again.

mod page;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::Usage;
use passerelle_engine::clock::Clock;

use super::account::{Account, AccountId};
use super::quota::{Gcra, LimitName};
use page::Page;

/// A cloneable handle; all clones are one ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    books: Arc<Books>,
}

/// What a request might use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub prompt_tokens: u32,
    pub max_output_tokens: u32,
}

/// Room taken. Settles when dropped.
#[derive(Debug)]
#[must_use = "dropping a reservation settles it"]
pub struct Reservation {
    books: Arc<Books>,
    account: Arc<Account>,
    reserved_tokens: u32,
    taken_at: Duration,
    used: Usage,
    exit: Exit,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub limit: LimitName,
    /// The account's name.
    pub scope: String,
    pub limit_value: u32,
    /// How much of the limit is taken now.
    pub current_value: u32,
    /// How much this request asked of it.
    pub asked: u32,
    pub retry: Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// For rates: the first instant, from now, at which this ask would fit. For concurrent requests, whose end nobody
    /// knows: the mean time between two ends, as this account's requests went so far.
    After(Duration),
    /// The ask is larger than the limit.
    Never,
}

/// Counts since start. `settled + open == reservations_taken`, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LedgerTotals {
    pub reservations_taken: u64,
    pub settled: u64,
    pub open: u64,
    pub refused: u64,
    /// Of settled reservations, as the engine reported them.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub generated_tokens: u64,
}

/// For the `x-ratelimit-*` headers; `None` where the account has no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimitState {
    pub requests: Option<WindowState>,
    pub tokens: Option<WindowState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowState {
    pub limit: u32,
    pub remaining: u32,
    /// Until the whole limit is available again.
    pub reset: Duration,
}

/// How a reservation leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Settle,
    /// The server never started the work: the request itself is given back too.
    Withdraw,
}

#[derive(Debug)]
struct Books {
    clock: Arc<dyn Clock>,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    totals: LedgerTotals,
    /// One page an account that ever asked; bounded by the number of keys.
    accounts: HashMap<AccountId, Page>,
}

impl Ledger {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { books: Arc::new(Books { clock, pages: Mutex::default() }) }
    }

    pub fn reserve(&self, account: &Arc<Account>, ask: Ask) -> Result<Reservation, Refusal> {
        let mut pages = self.books.open();
        let now = self.books.clock.now();
        let page = pages.page(account, now);
        if let Some(refusal) = page.refusal(account, ask, now) {
            page.totals.refused += 1;
            pages.totals.refused += 1;
            return Err(refusal);
        }
        let reserved_tokens = ask.total_tokens();
        page.take(now, reserved_tokens);
        page.totals.take();
        pages.totals.take();
        Ok(Reservation {
            books: Arc::clone(&self.books),
            account: Arc::clone(account),
            reserved_tokens,
            taken_at: now,
            used: Usage::default(),
            exit: Exit::Settle,
        })
    }

    /// The largest answer that could ever fit this account's token rate, for requests that state none. `None`: no such
    /// limit.
    pub fn largest_output(&self, account: &Account, prompt_tokens: u32) -> Option<u32> {
        let per_minute = account.limits.get(LimitName::TokensPerMinute)?;
        Some(per_minute.get().saturating_sub(prompt_tokens))
    }

    pub fn headroom(&self, account: &Account) -> RateLimitState {
        let mut pages = self.books.open();
        let now = self.books.clock.now();
        let page = pages.page(account, now);
        let window = |bucket: Option<Gcra>, name| {
            let limit = account.limits.get(name)?.get();
            let bucket = bucket?;
            Some(WindowState { limit, remaining: bucket.remaining(now), reset: bucket.reset(now) })
        };
        RateLimitState {
            requests: window(page.requests, LimitName::RequestsPerMinute),
            tokens: window(page.tokens, LimitName::TokensPerMinute),
        }
    }

    pub fn totals(&self) -> LedgerTotals {
        self.books.open().totals
    }

    /// Zeros for an account that never asked.
    pub fn account_totals(&self, account: &AccountId) -> LedgerTotals {
        self.books.open().accounts.get(account).map(|page| page.totals).unwrap_or_default()
    }
}

impl Ask {
    fn total_tokens(self) -> u32 {
        self.prompt_tokens.saturating_add(self.max_output_tokens)
    }
}

impl Reservation {
    /// What was really used so far; replaces what was recorded before.
    pub fn record(&mut self, used: Usage) {
        self.used = used;
    }

    pub fn used(&self) -> Usage {
        self.used
    }

    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The same as dropping it, said aloud.
    pub fn settle(self) {}

    /// For a request that the server could not start (no replica, queue full): it consumed nothing, not even itself.
    pub fn withdraw(mut self) {
        self.used = Usage::default();
        self.exit = Exit::Withdraw;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut pages = self.books.open();
        let now = self.books.clock.now();
        let page = pages.page(&self.account, now);
        page.settle(self, now);
        page.totals.settle(self.used);
        pages.totals.settle(self.used);
    }
}

impl Books {
    /// A panic elsewhere must not lock every account out: each critical section leaves the pages consistent at every
    /// point where it could panic, so a poisoned lock is only a lock.
    fn open(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    /// The account's page, with the limits that it has today.
    fn page(&mut self, account: &Account, now: Duration) -> &mut Page {
        if !self.accounts.contains_key(&account.id) {
            self.accounts.insert(account.id.clone(), Page::default());
        }
        let page = self.accounts.get_mut(&account.id).expect("the page was inserted above if it was missing");
        page.follow(account, now);
        page
    }
}

impl LedgerTotals {
    fn take(&mut self) {
        self.reservations_taken += 1;
        self.open += 1;
    }

    fn settle(&mut self, used: Usage) {
        self.settled += 1;
        self.open -= 1;
        self.prompt_tokens += u64::from(used.prompt_tokens);
        self.cached_tokens += u64::from(used.cached_tokens);
        self.generated_tokens += u64::from(used.generated_tokens);
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, scope, limit_value, current_value, asked, retry } = self;
        write!(f, "the limit {limit} of '{scope}' is {limit_value}, of which {current_value} are in use; ")?;
        match retry {
            Retry::After(wait) => {
                write!(f, "this request asks for {asked} and would fit in {:.3} s", wait.as_secs_f64())
            }
            Retry::Never => write!(f, "this request asks for {asked}, which can never fit"),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests;
