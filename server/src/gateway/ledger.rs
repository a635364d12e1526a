//! Who has reserved what.
//!
//! **Fails closed.** A reservation is granted only after every limit on the way from the account to the root was seen to
//! fit; what cannot be checked is refused. Rates and what is held live in this process: a restart forgets them. What was
//! used is written down by the [`super::journal`], and budgets begin with what it holds.
//!
//! [`Ledger::reserve`] takes all limits or none, in one short critical section, so that any number of concurrent
//! requests admit exactly the room there is; a refused request consumes nothing. The [`Reservation`] is the ticket: it
//! is not `Clone`, [`Reservation::record`] notes what was really generated so far, and dropping it, on whatever way
//! out (finished, client gone, error, panic, shutdown), settles exactly that, once. What was reserved and not used goes
//! back; the concurrent slot is free again.
//!
//! Of an answer that our own engine generates only a part is reserved at first, and [`Reservation::extend`] takes the next
//! one while it grows, before it is generated: nothing is ever used that was not reserved, and a request holds one part
//! more than it uses, however large its `max_tokens` is.

mod amounts;
mod counter;
mod headroom;
mod holdings;
mod line;
mod numbers;
mod origins;
mod page;
mod pages;
mod refusal;
mod reservation;
mod totals;
mod unpriced;
mod wall;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use std::{fmt, mem};

use passerelle_engine::clock::Clock;
use tokio::sync::Notify;

use super::account::{AccountPath, Caller};
use super::journal;
use super::journal::{AskedBefore, EntryId, Journal, JournalUnavailable, Opening, Trust};
use super::quota::{Calendar, LimitName, Percent, Unit, UnixSeconds};
use super::tariff::{Hours, Tariff};
use amounts::{Amounts, Demand};
use counter::HeldIs;
use line::Ticket;
use numbers::{Number, Numbers};
pub(super) use origins::Origins;
use page::{CounterSource, Trial};
use pages::{Applicant, Asked, Pages};
use reservation::Taken;
pub use wall::ClockBounds;
use wall::{Reading, Wall};

pub use amounts::{Ask, Reserve};
pub use headroom::{LimitState, RateLimitState, WindowState};
pub use line::{LineBounds, NoTurn};
pub use origins::PeerReservation;
pub use refusal::{Refusal, Retry};
pub use reservation::{Denied, Reservation};
pub use totals::{LedgerFigures, LedgerTotals};
pub use unpriced::Unpriced;

/// A cloneable handle; all clones are one ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    books: Arc<Books>,
}

/// What a ledger is made of.
#[derive(Debug)]
pub struct LedgerParts {
    pub clock: Arc<dyn Clock>,
    /// Where days and months begin.
    pub calendar: Calendar,
    pub tariff: Arc<Tariff>,
    pub spent: Box<dyn Spent>,
    pub in_parts: PartBounds,
    /// Accounts that have their answers reserved whole, and so have those below them: what has begun is neither parked nor
    /// ended by a limit.
    pub reserve_whole: Vec<AccountPath>,
    pub line: LineBounds,
    /// How far a grant may be overrun, in the class `batch`.
    pub overrun: Percent,
    pub clock_bounds: ClockBounds,
    /// Reservations of other gateways that are remembered, so that what asks twice pays once.
    pub max_origins: NonZeroUsize,
    /// Where what engines here are billed for is added up.
    pub hours: Option<Arc<Hours>>,
    /// `None`: nothing outlives the process.
    pub journal: Option<JournalParts>,
}

/// How answers are reserved in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartBounds {
    /// Output tokens of an answer that are reserved at a time.
    pub tokens: NonZeroU32,
    /// A rate that has no room for the next part, or a budget whose rest others hold, is waited for so long; then the
    /// answer ends.
    pub longest_park: Duration,
}

/// Where reservations are written down.
#[derive(Debug)]
pub struct JournalParts {
    pub journal: Journal,
    pub next_id: EntryId,
    /// The latest instant in it. Time does not go back before it.
    pub latest: UnixSeconds,
    /// What other gateways are billed already: whoever of them asks again is not billed again.
    pub asked_before: Vec<AskedBefore>,
    /// The version of this program, and by model what runs it: they stand in every entry.
    pub binary: Arc<str>,
    pub models: BTreeMap<String, ModelFacts>,
}

#[derive(Debug, Clone)]
pub struct ModelFacts {
    pub digest: Arc<str>,
    pub partition: Arc<str>,
}

/// Why an account is not admitted, whatever its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LedgerClosed {
    #[error(transparent)]
    Unwritable(#[from] JournalUnavailable),
    /// Nobody knows which day it is.
    #[error("the wall clock leapt ahead")]
    ClockLeapt,
}

/// What was settled of a budget before this process, or before the budget was stated.
pub trait Spent: Send + Sync + fmt::Debug {
    /// By `account` and everything below it, of `model` or of all, from the first instant to before the last one.
    fn used(&self, account: &AccountPath, unit: Unit, model: Option<&str>, window: (UnixSeconds, UnixSeconds)) -> u64;
}

/// For a ledger without a past.
#[derive(Debug, Clone, Copy)]
pub struct NothingSpent;

/// One instant on both clocks. The wall clock never goes back: a window that is over stays over.
#[derive(Debug, Clone, Copy)]
struct Now {
    monotonic: Duration,
    wall: UnixSeconds,
}

#[derive(Debug)]
struct Books {
    parts: LedgerParts,
    wall: Wall,
    numbers: Numbers,
    /// Of the journal's models, and of those that came later.
    facts: RwLock<BTreeMap<String, ModelFacts>>,
    origins: Origins,
    pages: Mutex<Pages>,
    /// For whoever waits in line: something came free, or the line moved.
    gave_back: Notify,
}

/// How somebody asks.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Of whoever waits already.
    ticket: Option<Ticket>,
    /// For how long it would wait.
    patience: Duration,
}

impl Ledger {
    pub fn new(mut parts: LedgerParts) -> Self {
        let taken = |part: &mut JournalParts| (mem::take(&mut part.models), mem::take(&mut part.asked_before));
        let (facts, asked_before) = parts.journal.as_mut().map(taken).unwrap_or_default();
        let (next_id, latest) =
            parts.journal.as_ref().map_or((EntryId(1), UnixSeconds(0)), |part| (part.next_id, part.latest));
        let wall = Wall::new(latest, parts.reading(), parts.clock_bounds);
        let (numbers, origins) = (Numbers::from(next_id), Origins::new(parts.max_origins, asked_before));
        let (pages, gave_back, facts) = (Mutex::default(), Notify::new(), RwLock::new(facts));
        Self { books: Arc::new(Books { parts, wall, numbers, facts, origins, pages, gave_back }) }
    }

    /// In universal time, with nothing spent before and nothing that costs GPU time.
    pub fn without_past(clock: Arc<dyn Clock>) -> Self {
        Self::new(LedgerParts::without_past(clock))
    }

    /// At once or not at all, and not before anybody who waits for the same room. [`Ledger::reserve_in_turn`] waits.
    pub fn reserve(&self, caller: &Arc<Caller>, ask: &Ask) -> Result<Reservation, Refusal> {
        self.reserve_further(caller, ask).map_err(|refusal| self.told(caller, ask, refusal))
    }

    /// The same for one more prompt of a request that holds room already: a budget that this room keeps it out of will not
    /// come back by itself.
    pub fn reserve_further(&self, caller: &Arc<Caller>, ask: &Ask) -> Result<Reservation, Refusal> {
        let at_once = Turn { ticket: None, patience: Duration::ZERO };
        self.take(caller, ask, at_once).inspect_err(|_| self.books.open().count_refusal(&caller.account))
    }

    /// Several requests that stand or fall together: all of them in one critical section, or none, so that nobody is
    /// kept out by a part of what is then given back.
    pub fn reserve_together(&self, caller: &Arc<Caller>, asks: &[Ask]) -> Result<Vec<Reservation>, Refusal> {
        let mut pages = self.books.open();
        let now = self.books.now();
        let mut taken: Vec<Taken> = Vec::with_capacity(asks.len());
        for ask in asks {
            match self.admit(&mut pages, (caller, ask), (None, now)) {
                Ok(one) => taken.push(one),
                Err(refusal) => {
                    taken.iter().zip(asks).for_each(|(taken, ask)| pages.give_back(taken, ask.model.as_deref(), now));
                    pages.count_refusal(&caller.account);
                    drop(pages);
                    return Err(if taken.is_empty() { self.told(caller, ask, refusal) } else { refusal });
                }
            }
        }
        let trial = Trial { overrun: self.books.parts.overrun, patience: Duration::ZERO };
        taken.iter_mut().zip(asks).for_each(|(taken, ask)| pages.rehearse(taken, ask.model.as_deref(), trial, now));
        drop(pages);
        let numbered = taken.into_iter().zip(asks).zip(self.books.numbers.take(asks.len()));
        Ok(numbered.map(|((taken, ask), number)| self.reservation(taken, ask, number, now)).collect())
    }

    /// A refusal is counted by whoever does not wait.
    fn take(&self, caller: &Arc<Caller>, ask: &Ask, Turn { ticket, patience }: Turn) -> Result<Reservation, Refusal> {
        let mut pages = self.books.open();
        let now = self.books.now();
        let mut taken = self.admit(&mut pages, (caller, ask), (ticket, now))?;
        let trial = Trial { overrun: self.books.parts.overrun, patience };
        pages.rehearse(&mut taken, ask.model.as_deref(), trial, now);
        drop(pages);
        let number = self.books.numbers.take(1).next().expect("one was taken");
        Ok(self.reservation(taken, ask, number, now))
    }

    /// As whoever asked is told it. What keeps an ask out of a budget may be held by requests that run: then it may fit when
    /// they have ended, and not only when the window has.
    fn told(&self, caller: &Caller, ask: &Ask, refusal: Refusal) -> Refusal {
        if !matches!(refusal.limit, LimitName::Budget(..)) || refusal.retry == Retry::Never {
            return refusal;
        }
        let (_, demand) = self.demand(caller, ask);
        let mut pages = self.books.open();
        let now = self.books.now();
        let slots = pages.slots(&caller.account, now, self.books.counter_source());
        let applicant = Applicant { account: &caller.account, slots: &slots, ticket: None };
        let asked = Asked { demand: &demand, model: ask.model.as_deref() };
        match pages.refusal_if(applicant, asked, now, HeldIs::ComingBack) {
            // It came back meanwhile.
            None => Refusal { retry: Retry::After(Duration::ZERO), ..refusal },
            Some(sooner) if sooner.retry < refusal.retry => sooner,
            Some(_) => refusal,
        }
    }

    fn admit(
        &self,
        pages: &mut Pages,
        (caller, ask): (&Arc<Caller>, &Ask),
        (ticket, now): (Option<Ticket>, Now),
    ) -> Result<Taken, Refusal> {
        let (first_part, demand) = self.demand(caller, ask);
        let slots = pages.slots(&caller.account, now, self.books.counter_source());
        let applicant = Applicant { account: &caller.account, slots: &slots, ticket };
        let asked = Asked { demand: &demand, model: ask.model.as_deref() };
        let demand = pages.in_turn(applicant, asked, self.books.parts.overrun, now)?;
        let holdings = pages.admit(&slots, Asked { demand: &demand, ..asked }, now);
        Ok(Taken { caller: Arc::clone(caller), slots, demand, first_part, holdings })
    }

    /// Output of each answer in the first part of what is asked, and what that takes.
    fn demand(&self, caller: &Caller, ask: &Ask) -> (u32, Demand) {
        let LedgerParts { in_parts, reserve_whole, tariff, .. } = &self.books.parts;
        let is_whole = reserve_whole.iter().any(|named| caller.account.path.is_within(named));
        let first_part = if is_whole { ask.max_output_tokens } else { ask.first_part(in_parts.tokens.get()) };
        (first_part, ask.demand(first_part, tariff))
    }

    fn reservation(&self, taken: Taken, ask: &Ask, number: Number, now: Now) -> Reservation {
        let page = self.books.open_page(&taken.caller, ask, number, now);
        Reservation::new(Arc::clone(&self.books), taken, ask, now, page)
    }

    /// Whether reservations of this caller can be written down and dated. Those that bind a budget must be; the others
    /// may go on.
    pub fn available_to(&self, caller: &Caller) -> Result<(), LedgerClosed> {
        let parts = &self.books.parts;
        if trust(caller) == Trust::WaitForDisk && self.books.wall.has_leapt(parts.reading()) {
            return Err(LedgerClosed::ClockLeapt);
        }
        Ok(parts.journal.as_ref().map_or(Ok(()), |parts| parts.journal.admits(trust(caller)))?)
    }

    /// An operator says that the wall clock is right, though it leapt. Whether it had.
    pub fn accept_clock(&self) -> bool {
        self.books.wall.accept(self.books.parts.reading())
    }

    /// Where days and months begin.
    pub fn calendar(&self) -> &Calendar {
        &self.books.parts.calendar
    }

    /// By the clock that windows follow.
    pub fn today(&self) -> UnixSeconds {
        self.books.now().wall
    }

    /// What entries say of a model from now on.
    pub fn know(&self, model: &str, facts: ModelFacts) {
        self.books.facts.write().unwrap_or_else(PoisonError::into_inner).insert(model.to_owned(), facts);
    }

    pub fn tariff(&self) -> &Tariff {
        &self.books.parts.tariff
    }

    /// The first limit that asks together exceed by itself, so that they could never run at once.
    pub fn never_fit(&self, caller: &Caller, asks: &[Ask]) -> Option<Refusal> {
        let tariff = &self.books.parts.tariff;
        let model = asks.first()?.model.as_deref();
        let sum = asks.iter().fold(Amounts::default(), |sum, ask| sum.plus(&ask.amounts(tariff)));
        let shared = caller.account.limits().filter(|(_, limit)| limit.covers(model) && limit.is_shared());
        let (node, limit) = shared.into_iter().find(|(_, limit)| sum.of_limit(limit) > limit.value().get())?;
        Some(Refusal {
            limit: limit.name(),
            scope: node.path.clone(),
            model: limit.model.clone(),
            limit_value: limit.value().get(),
            current_value: 0,
            asked: sum.of_limit(limit),
            window: None,
            retry: Retry::Never,
        })
    }

    pub fn figures(&self) -> LedgerFigures {
        let journal = self.books.parts.journal.as_ref().map(|parts| parts.journal.state());
        let pages = self.books.open();
        LedgerFigures {
            totals: pages.totals,
            in_line: pages.line.len(),
            proofs: journal.map(|journal| journal.proofs).unwrap_or_default(),
        }
    }

    pub fn totals(&self) -> LedgerTotals {
        self.books.open().totals
    }

    /// Zeros for an account that never asked.
    pub fn account_totals(&self, account: &AccountPath) -> LedgerTotals {
        let pages = self.books.open();
        pages.slots.get(account).map(|slot| pages.pages[*slot].totals).unwrap_or_default()
    }
}

impl LedgerParts {
    /// In universal time, with nothing spent before, nothing that costs GPU time, and nothing that outlives the process.
    pub fn without_past(clock: Arc<dyn Clock>) -> Self {
        let (calendar, tariff) = (Calendar::utc(), Arc::new(Tariff::free()));
        Self {
            clock,
            calendar,
            tariff,
            spent: Box::new(NothingSpent),
            in_parts: PartBounds::default(),
            reserve_whole: Vec::new(),
            line: LineBounds::default(),
            overrun: Percent::NONE,
            clock_bounds: ClockBounds::default(),
            max_origins: NonZeroUsize::new(65_536).expect("it is not 0"),
            hours: None,
            journal: None,
        }
    }

    fn reading(&self) -> Reading {
        Reading { monotonic: self.clock.now(), wall: self.clock.wall() }
    }
}

impl Default for PartBounds {
    fn default() -> Self {
        Self { tokens: NonZeroU32::new(64).expect("64 is not 0"), longest_park: Duration::from_secs(60) }
    }
}

impl Spent for NothingSpent {
    fn used(&self, _: &AccountPath, _: Unit, _: Option<&str>, _: (UnixSeconds, UnixSeconds)) -> u64 {
        0
    }
}

impl Books {
    /// A panic elsewhere must not lock every account out: each critical section leaves the pages consistent at every
    /// point where it could panic, so a poisoned lock is only a lock.
    fn open(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        let reading = self.parts.reading();
        Now { monotonic: reading.monotonic, wall: self.wall.now(reading) }
    }

    fn open_page(&self, caller: &Caller, ask: &Ask, number: Number, now: Now) -> Option<journal::Page> {
        let parts = self.parts.journal.as_ref()?;
        let known = self.facts.read().unwrap_or_else(PoisonError::into_inner);
        let facts = ask.model.as_deref().and_then(|model| known.get(model));
        let fact = |of: fn(&ModelFacts) -> &Arc<str>| facts.map(of).cloned().unwrap_or_default();
        let opening = Opening {
            id: number.id,
            account: caller.account.path.clone(),
            key: caller.via.label().into(),
            model: ask.model.clone().unwrap_or_default(),
            model_digest: fact(|facts| &facts.digest),
            partition: fact(|facts| &facts.partition),
            tariff: Arc::clone(&self.parts.tariff.version),
            binary: Arc::clone(&parts.binary),
            at: now.wall,
            prompt_tokens: ask.prompt_tokens,
            answers: ask.num_answers,
            attribution: ask.attribution.clone(),
            bill: number.bill,
        };
        Some(parts.journal.open(opening, trust(caller)))
    }

    fn counter_source(&self) -> CounterSource<'_> {
        CounterSource { calendar: &self.parts.calendar, spent: self.parts.spent.as_ref() }
    }
}

fn trust(caller: &Caller) -> Trust {
    let has_budget = caller.account.limits().any(|(_, limit)| limit.is_budget());
    if has_budget { Trust::WaitForDisk } else { Trust::GoOn }
}

#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod extend_tests;
#[cfg(test)]
mod line_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_tests;
#[cfg(test)]
mod trial_tests;
