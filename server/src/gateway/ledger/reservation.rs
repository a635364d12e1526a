//! The ticket of a request that was admitted.

use std::future::poll_fn;
use std::mem;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::Usage;

use super::amounts::{Amounts, Ask, Demand, Stage};
use super::counter::{ASK_AGAIN, HeldIs};
use super::holdings::{Holdings, Motion};
use super::origins::PeerReservation;
use super::pages::{Applicant, Asked};
use super::{Books, Now, Refusal, Retry};
use crate::gateway::account::{Account, Caller, ServiceClass};
use crate::gateway::journal::{self, Counts, EntryEnd, EntryId, JournalUnavailable, Settlement, Told, ToldSoFar};
use crate::gateway::quota::Percent;

/// Room taken. Settles when dropped.
#[derive(Debug)]
#[must_use = "dropping a reservation settles it"]
pub struct Reservation {
    books: Arc<Books>,
    caller: Arc<Caller>,
    /// The pages on the way from the account to the root.
    slots: Vec<usize>,
    model: Option<Arc<str>>,
    num_answers: NonZeroU32,
    held: Amounts,
    /// Of it, what was taken of each counter.
    holdings: Holdings,
    output: Output,
    class: ServiceClass,
    taken_at: Duration,
    used: Usage,
    end: EntryEnd,
    told: ToldSoFar,
    exit: Exit,
    /// The other gateway's reservation that this is for.
    origin: Option<PeerReservation>,
    counts: Counts,
    place: Place,
    proof: journal::Proof,
    /// `None` where nothing is written down.
    page: Option<journal::Page>,
}

/// What was taken for a request.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) caller: Arc<Caller>,
    pub(super) slots: Vec<usize>,
    pub(super) demand: Demand,
    /// Output of each answer in it.
    pub(super) first_part: u32,
    pub(super) holdings: Holdings,
}

/// How far the answers are reserved.
#[derive(Debug)]
struct Output {
    prompt_tokens: u32,
    /// Of all answers.
    reserved_tokens: u32,
    /// Of each answer, at first; `None`: all that it may be.
    first_part: Option<u32>,
    /// Since when there is no room for the next part.
    parked_since: Option<Duration>,
}

/// Why an answer cannot be extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// A rate has no room, or others hold the rest of a budget and may give of it back: ask again so much later.
    Later(Duration),
    /// A budget is used up, or there was no room for longer than is waited for. Nothing follows.
    Spent,
}

/// Whose time a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// An engine's of this server.
    Here,
    Elsewhere,
}

/// How a reservation leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Settle,
    /// The server never started the work: the request itself is given back too.
    Withdraw,
}

impl Reservation {
    pub(super) fn new(books: Arc<Books>, taken: Taken, ask: &Ask, now: Now, page: Option<journal::Page>) -> Self {
        let Taken { caller, slots, demand: Demand { now: held, overrun, .. }, first_part, holdings } = taken;
        let output = Output {
            prompt_tokens: ask.input_tokens(),
            reserved_tokens: first_part.saturating_mul(ask.num_answers.get()),
            first_part: (first_part < ask.max_output_tokens).then_some(first_part),
            parked_since: None,
        };
        // What a grant does not cover takes what the others leave.
        let class = if overrun == Percent::NONE { ask.class } else { ServiceClass::Batch };
        let model = ask.model.clone();
        let end = if model.is_some() { EntryEnd::Aborted } else { EntryEnd::Answered };
        let (taken_at, used, exit) = (now.monotonic, Usage::default(), Exit::Settle);
        Self {
            books,
            caller,
            slots,
            model,
            num_answers: ask.num_answers,
            held,
            holdings,
            output,
            class,
            taken_at,
            used,
            end,
            told: ToldSoFar::default(),
            exit,
            origin: None,
            counts: Counts::One,
            place: Place::Elsewhere,
            proof: journal::Proof::default(),
            page,
        }
    }

    /// How urgent it is: as it was asked, or what is left to an account that has used up its grant.
    pub fn class(&self) -> ServiceClass {
        self.class
    }

    /// What each answer may have before [`Reservation::extend`] takes more. `None`: all that it may be.
    pub fn first_part(&self) -> Option<u32> {
        self.output.first_part
    }

    /// Takes room for up to `most` further tokens of each of `num_answers`, which may then be generated: as many as a
    /// budget still has, by halves. A refusal takes nothing.
    ///
    /// By the limits that later requests follow too: one that was lowered meanwhile may end an answer. Beyond a
    /// grant only batch goes on, since whatever runs there is to be that.
    pub fn extend(&mut self, num_answers: u32, most: u32) -> Result<u32, Denied> {
        let books = Arc::clone(&self.books);
        let (account, model) = (&self.caller.account, self.model.as_deref());
        let mut pages = books.open();
        let now = books.now();
        self.slots.iter().for_each(|slot| pages.pages[*slot].roll(now, &books.parts.calendar));
        let applicant = Applicant { account, slots: &self.slots, ticket: None };
        let overrun = if self.class == ServiceClass::Batch { books.parts.overrun } else { Percent::NONE };
        let mut tokens = most;
        loop {
            let generated_tokens = self.output.reserved_tokens.saturating_add(num_answers.saturating_mul(tokens));
            let used = Usage { prompt_tokens: self.output.prompt_tokens, generated_tokens, ..Usage::default() };
            let whole = Amounts::of(model, self.num_answers, used, &books.parts.tariff);
            let more = whole.in_class(self.class).beyond(&self.held);
            let demand = Demand { now: more, stage: Stage::Further, overrun };
            let asked = Asked { demand: &demand, model };
            match pages.refusal(applicant, asked, now) {
                None => {
                    pages.set_motion(&self.slots, &mut self.holdings, Motion::Runs);
                    pages.take(&self.slots, asked, now, &mut self.holdings);
                    for slot in &self.slots {
                        let page = &mut pages.pages[*slot];
                        page.rehearse_further(asked, books.parts.overrun, now, &mut self.holdings);
                    }
                    self.held = self.held.plus(&more);
                    self.output.reserved_tokens = generated_tokens;
                    self.output.parked_since = None;
                    return Ok(tokens);
                }
                Some(refusal) if !refusal.limit.is_rate() && tokens > 1 => tokens /= 2,
                Some(refusal) => {
                    let awaited = HeldIs::Awaited(&self.holdings);
                    let refusal = pages.refusal_if(applicant, asked, now, awaited).unwrap_or(refusal);
                    let denied = self.denied(&refusal, now);
                    // It ends: whoever waits may have what it does not use.
                    if denied == Denied::Spent {
                        pages.set_motion(&self.slots, &mut self.holdings, Motion::Runs);
                    }
                    return Err(denied);
                }
            }
        }
    }

    /// It was told to wait, and has generated all that was reserved: of two that wait for each other, none gets anything
    /// before one ends, so neither counts on what the other holds. Or it is over, and settles only with others. What is
    /// reserved next, or its end, undoes this.
    pub fn stands_still(&mut self) {
        self.books.open().set_motion(&self.slots, &mut self.holdings, Motion::StandsStill);
    }

    /// A rate has room sooner or later; a window that is about to begin is worth the wait too.
    fn denied(&mut self, refusal: &Refusal, now: Now) -> Denied {
        /// Where nobody knows exactly when something comes free.
        const LEAST_WAIT: Duration = Duration::from_millis(10);
        let since = *self.output.parked_since.get_or_insert(now.monotonic);
        let left = (since + self.books.parts.in_parts.longest_park).saturating_sub(now.monotonic);
        match refusal.retry {
            Retry::After(wait) if !left.is_zero() && (wait <= left.max(ASK_AGAIN) || refusal.limit.is_rate()) => {
                Denied::Later(wait.max(LEAST_WAIT).min(left))
            }
            Retry::After(_) | Retry::Spent | Retry::Never => Denied::Spent,
        }
    }

    /// Returns once `tokens` generated tokens may be sent, because enough is written down. Cancel safe.
    pub async fn covers(&mut self, tokens: u32) -> Result<(), JournalUnavailable> {
        match &mut self.page {
            Some(page) => poll_fn(|context| page.poll_covers(tokens, context)).await,
            None => Ok(()),
        }
    }

    /// The same for all that was recorded, which is marked first: one event may hold more tokens than lie between two marks.
    pub async fn covers_recorded(&mut self) -> Result<(), JournalUnavailable> {
        let used = self.used;
        match &mut self.page {
            Some(page) => poll_fn(|context| page.poll_marked(used, context)).await,
            None => Ok(()),
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

    /// What the gateway that ran it says of it.
    pub fn told(&mut self, told: Told) {
        self.told.set(told);
    }

    /// What that gateway has said, and will have.
    pub fn told_so_far(&self) -> ToldSoFar {
        self.told.clone()
    }

    /// An engine of this server has taken it: what it is billed is this server's time.
    pub fn here(mut self) -> Self {
        self.place = Place::Here;
        self
    }

    /// What its entry must add up to.
    pub fn proof(&mut self) -> &mut journal::Proof {
        &mut self.proof
    }

    /// It is for another gateway, which may ask twice under one reservation and pays once.
    pub fn on_behalf_of(&mut self, origin: PeerReservation) {
        self.origin = Some(origin);
    }

    /// What was really used so far; replaces what was recorded before.
    pub fn record(&mut self, used: Usage) {
        self.used = used;
    }

    pub fn used(&self) -> Usage {
        self.used
    }

    /// Its entry in the ledger. `None` where nothing is written down.
    pub fn entry(&self) -> Option<EntryId> {
        self.page.as_ref().map(journal::Page::id)
    }

    pub fn account(&self) -> &Arc<Account> {
        &self.caller.account
    }

    /// The same as dropping it, said aloud.
    #[cfg(test)]
    pub(super) fn settle(self) {}

    /// Records a last time and settles.
    #[cfg(test)]
    pub(crate) fn settle_as(mut self, used: Usage) {
        self.record(used);
    }

    /// For a request that the server could not start (no replica, queue full): it consumed nothing, not even itself.
    pub fn withdraw(mut self) {
        self.used = Usage::default();
        self.exit = Exit::Withdraw;
    }

    fn write_down(&mut self, billed_micros: u64, now: Now) {
        let Some(page) = &self.page else { return };
        match self.exit {
            Exit::Withdraw => page.withdraw(),
            Exit::Settle => {
                let (at, used, end, told) = (now.wall, self.used, self.end, self.told.get());
                let measured_micros = used.measured_ns / 1000;
                let counts = self.counts;
                let settlement = Settlement { at, used, billed_micros, measured_micros, end, told, counts };
                page.settle(settlement, mem::take(&mut self.proof));
            }
        }
    }

    fn used_amounts(&self) -> Amounts {
        match self.exit {
            Exit::Settle => {
                let ran = Amounts::of(self.model.as_deref(), self.num_answers, self.used, &self.books.parts.tariff);
                Amounts { requests: self.counts.requests(), ..ran }
            }
            Exit::Withdraw => Amounts::default(),
        }
    }
}

/// What of `used` is not in `part`.
fn without(used: Usage, part: Usage) -> Usage {
    Usage {
        prompt_tokens: used.prompt_tokens - part.prompt_tokens,
        generated_tokens: used.generated_tokens - part.generated_tokens,
        ..Usage::default()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let (Some(origin), Exit::Settle) = (&self.origin, self.exit) {
            let price = self.books.pricing(self.model.as_deref(), self.num_answers);
            let used = self.used;
            (self.used, self.counts) = self.books.origins.bill(origin, used, price);
            self.proof.leave_out(without(used, self.used));
        }
        let used = self.used_amounts();
        let model = self.model.as_deref();
        let mut pages = self.books.open();
        let now = self.books.now();
        pages.set_motion(&self.slots, &mut self.holdings, Motion::Runs);
        for slot in &self.slots {
            let page = &mut pages.pages[*slot];
            page.settle(&self.holdings, [&self.held, &used], model, now);
            if self.exit == Exit::Settle {
                page.note_held(now.monotonic.saturating_sub(self.taken_at));
            }
            page.totals.settle(self.used);
        }
        pages.totals.settle(self.used);
        let somebody_waits = !pages.line.is_empty();
        drop(pages);
        if somebody_waits {
            self.books.gave_back.notify_waiters();
        }
        if let (Place::Here, Some(hours)) = (self.place, &self.books.parts.hours) {
            hours.billed(self.model.as_deref().unwrap_or_default(), used.gpu_micros);
        }
        self.write_down(used.gpu_micros, now);
    }
}
