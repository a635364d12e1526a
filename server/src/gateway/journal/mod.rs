//! What was reserved and settled, written down so that neither the death of the process nor a loss of power bills anything
//! twice or forgets it.
//!
//! Two promises, kept apart:
//!
//! - *Process death.* A reservation and, every [`MARK_TOKENS`] tokens at most, a mark are written before the tokens that
//!   they cover are sent: a mark at `n` covers the [`MARK_TOKENS`] tokens after it. So whenever the process dies, each live
//!   stream has at most that many tokens unbilled; the next start settles it at its last mark. Written means handed to
//!   the operating system, not yet on the disk.
//! - *Power loss.* Settlements are on the disk a [`JournalConfig::sync_interval`] later, many at once, and count as
//!   durable only then.
//!
//! One thread writes, and another one syncs, so that no stream waits for the disk itself. The hot path hands over what
//! is to be written and goes on; only a stream that has run ahead of its marks waits. A mark wakes nobody: it is
//! written with whatever comes next, a [`JournalConfig::sync_interval`] later at the latest, and at once for a stream
//! that will soon need it. A disk that refuses is tried again every [`JournalConfig::retry_interval`]; meanwhile
//! nothing is forgotten, accounts with a budget are not admitted, their streams wait for
//! [`JournalConfig::longest_stall`] and then end, and accounts without go on.

mod disk;
mod entry;
pub mod export;
mod memory;
mod progress;
mod proof;
mod sqlite;
mod store;
mod writer;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use passerelle_engine::Usage;
use tokio::time::{Sleep, sleep};

pub use entry::{Chain, Counts, Entry, EntryEnd, EntryId, Opening, Settlement, Told, ToldSoFar};
pub use memory::MemoryStore;
pub use progress::Progress;
pub use proof::{Proof, ProofCounts};
pub use sqlite::{SqliteStore, UsageReader, UsageSum, Used, UserSum};
pub use store::{AskedBefore, LedgerDisk, LedgerStore, Record, StoreError};
pub use writer::{JournalConfig, JournalThread};

use writer::{Handed, Shared};

/// Tokens that may be sent after a mark.
pub const MARK_TOKENS: u32 = 16;
/// A new mark is handed over this many tokens after the last one, so that it is written before it is needed.
const MARK_AHEAD_TOKENS: u32 = 8;
/// One that is not written so many tokens after it was handed over is asked for: half of the way to where its stream waits.
const MARK_PATIENCE_TOKENS: u32 = 4;

/// The way to the writing thread. Clones lead to the same one.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

/// One reservation's way to the writing thread.
#[derive(Debug)]
pub struct Page {
    journal: Journal,
    opening: Arc<Opening>,
    progress: Arc<Progress>,
    last_mark: u32,
    trust: Trust,
    /// Since its stream waits for the disk.
    stall: Option<Pin<Box<Sleep>>>,
}

/// What happens to an account's streams while nothing can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// They wait: it has a budget.
    WaitForDisk,
    /// They go on, and are written down later.
    GoOn,
}

/// What an operator wants to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JournalState {
    pub is_failing: bool,
    /// Records that wait to be written.
    pub backlog: usize,
    /// Settlements on the disk since the start.
    pub durable_settlements: u64,
    pub proofs: ProofCounts,
}

/// Nothing can be written down, so nothing is admitted that must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger cannot be written")]
pub struct JournalUnavailable;

impl Journal {
    pub fn state(&self) -> JournalState {
        self.shared.state()
    }

    /// Whether a reservation of such an account may be opened now.
    pub fn admits(&self, trust: Trust) -> Result<(), JournalUnavailable> {
        let state = self.state();
        let is_behind = state.backlog >= self.shared.max_backlog();
        let must_wait = state.is_failing && trust == Trust::WaitForDisk;
        if is_behind || must_wait { Err(JournalUnavailable) } else { Ok(()) }
    }

    pub(super) fn open(&self, opening: Opening, trust: Trust) -> Page {
        let (opening, progress) = (Arc::new(opening), Arc::new(Progress::default()));
        let page = Page { journal: self.clone(), opening, progress, last_mark: 0, trust, stall: None };
        page.hand_over(Record::Open(Arc::clone(&page.opening)));
        page
    }
}

impl Page {
    pub(super) fn id(&self) -> EntryId {
        self.opening.id
    }

    /// Hands over a mark if the last one is some tokens away. At most one is under way.
    pub(super) fn mark(&mut self, used: Usage) {
        let since = used.generated_tokens.saturating_sub(self.last_mark);
        if since < MARK_PATIENCE_TOKENS {
            return;
        }
        match self.progress.has_written(self.last_mark) {
            true if since >= MARK_AHEAD_TOKENS => {
                self.last_mark = used.generated_tokens;
                self.hand_over(Record::Mark { id: self.opening.id, used });
            }
            true => {}
            false => self.journal.shared.ring(),
        }
    }

    /// Ready when `tokens` may be sent, or when that was waited for too long.
    pub(super) fn poll_covers(
        &mut self,
        tokens: u32,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), JournalUnavailable>> {
        if !self.may_send(tokens) {
            self.progress.register(context.waker());
            self.journal.shared.ring();
            if !self.may_send(tokens) {
                let longest = self.journal.shared.longest_stall();
                let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(longest)));
                return stall.as_mut().poll(context).map(|()| match self.trust {
                    Trust::WaitForDisk => Err(JournalUnavailable),
                    // The disk does not even refuse.
                    Trust::GoOn => Ok(()),
                });
            }
        }
        self.stall = None;
        Poll::Ready(Ok(()))
    }

    /// The same for all of what was `used`, which is marked as soon as a mark can be handed over: also while it is
    /// waited for, where an earlier one is still under way.
    pub(super) fn poll_marked(
        &mut self,
        used: Usage,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), JournalUnavailable>> {
        if !self.may_send(used.generated_tokens) {
            // First, so that a mark that is written from here on wakes this one.
            self.progress.register(context.waker());
        }
        self.mark(used);
        self.poll_covers(used.generated_tokens, context)
    }

    fn may_send(&self, tokens: u32) -> bool {
        let goes_on = || self.trust == Trust::GoOn && self.journal.shared.is_failing();
        self.progress.covers(tokens) || goes_on()
    }

    pub(super) fn settle(&self, settlement: Settlement, proof: Proof) {
        let record = Record::Settle(Arc::clone(&self.opening), settlement);
        self.journal.shared.push(Handed { record, progress: None, proof: Some(proof) });
    }

    pub(super) fn withdraw(&self) {
        self.journal.shared.push(Handed { record: Record::Withdraw(self.opening.id), progress: None, proof: None });
    }

    /// Its stream waits for it.
    fn hand_over(&self, record: Record) {
        let progress = Some(Arc::clone(&self.progress));
        self.journal.shared.push(Handed { record, progress, proof: None });
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            sync_interval: Duration::from_millis(50),
            retry_interval: Duration::from_secs(1),
            longest_stall: Duration::from_secs(5),
            max_backlog: 65_536,
        }
    }
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
pub(super) mod tests;
