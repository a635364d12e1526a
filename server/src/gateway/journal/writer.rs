//! The thread that writes.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::disk::{self, Settlements};
use super::entry::{EntryId, Settlement};
use super::progress::Progress;
use super::proof::{Proof, Proofs};
use super::store::{LedgerStore, Record, StoreError};
use super::{Journal, JournalState};

#[derive(Debug, Clone, Copy)]
pub struct JournalConfig {
    /// This long after a settlement was written, it is brought to the disk with all others.
    pub sync_interval: Duration,
    /// How often a disk that refused is tried again.
    pub retry_interval: Duration,
    /// How long a stream of an account with a budget waits for a disk that refuses.
    pub longest_stall: Duration,
    /// Records that may wait; while there are more, nothing is admitted. Open reservations add three each at most.
    pub max_backlog: usize,
}

/// Owns the threads. Dropping it writes everything that was handed over, to the disk, and ends them.
#[derive(Debug)]
pub struct JournalThread {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    disk: Option<JoinHandle<()>>,
}

/// What the streams and the threads share.
pub(super) struct Shared {
    config: JournalConfig,
    queue: Mutex<Queue>,
    arrived: Condvar,
    is_failing: AtomicBool,
    /// A sync failed, and the store was not opened again since.
    must_reopen: AtomicBool,
    settlements: Settlements,
    proofs: Proofs,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Handed>,
    /// Taken by the thread and not yet written.
    in_hand: usize,
    /// Somebody waits for what is in it.
    is_rung_for: bool,
    /// The thread waits for [`Shared::arrived`]. Waking somebody who is awake costs as much.
    is_thread_asleep: bool,
    is_closing: bool,
}

pub(super) struct Handed {
    pub(super) record: Record,
    /// Who is told that it is written.
    pub(super) progress: Option<Arc<Progress>>,
    /// Of a settlement.
    pub(super) proof: Option<Proof>,
}

struct Writer {
    shared: Arc<Shared>,
    store: Box<dyn LedgerStore>,
}

/// Records of one transaction.
const MAX_BATCH: usize = 4_096;

impl JournalThread {
    /// `store` has been recovered.
    pub fn start(store: Box<dyn LedgerStore>, config: JournalConfig) -> std::io::Result<(Self, Journal)> {
        let shared = Arc::new(Shared {
            config,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            is_failing: AtomicBool::new(false),
            must_reopen: AtomicBool::new(false),
            settlements: Settlements::default(),
            proofs: Proofs::default(),
        });
        let disk = store.disk();
        let writer = Writer { shared: Arc::clone(&shared), store };
        let mut threads = Self { shared: Arc::clone(&shared), writer: None, disk: None };
        threads.writer = Some(named("ledger").spawn(move || writer.run())?);
        let for_disk = Arc::clone(&shared);
        threads.disk = Some(named("ledger-disk").spawn(move || disk::run(&for_disk, disk))?);
        Ok((threads, Journal { shared }))
    }
}

fn named(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned())
}

impl Drop for JournalThread {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.arrived.notify_one();
        join(self.writer.take());
        self.shared.settlements.close();
        join(self.disk.take());
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the ledger has failed");
    }
}

impl Shared {
    /// A mark waits for what comes after it; everything else is written at once.
    pub(super) fn push(&self, handed: Handed) {
        let may_wait = matches!(handed.record, Record::Mark { .. });
        let mut queue = self.lock();
        queue.waiting.push_back(handed);
        if !may_wait {
            self.wake(queue);
        }
    }

    /// What waits is needed now.
    pub(super) fn ring(&self) {
        let queue = self.lock();
        if !queue.waiting.is_empty() {
            self.wake(queue);
        }
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.is_rung_for = true;
        let was_asleep = mem::take(&mut queue.is_thread_asleep);
        drop(queue);
        if was_asleep {
            self.arrived.notify_one();
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Acquire) || self.must_reopen()
    }

    /// Nothing that was written counts as durable meanwhile, whatever the disk says next: it tells of a failure once.
    pub(super) fn must_reopen(&self) -> bool {
        self.must_reopen.load(Ordering::Acquire)
    }

    /// The disk refused: the writer is to open the store again, also if it has nothing to write.
    pub(super) fn fail(&self, error: &StoreError) {
        self.must_reopen.store(true, Ordering::Release);
        self.note_failure(error);
        self.wake(self.lock());
    }

    fn note_failure(&self, error: &StoreError) {
        if !self.is_failing.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "accounts with a budget are refused until the ledger can be written");
        }
    }

    pub(super) fn config(&self) -> JournalConfig {
        self.config
    }

    pub(super) fn settlements(&self) -> &Settlements {
        &self.settlements
    }

    pub(super) fn longest_stall(&self) -> Duration {
        self.config.longest_stall
    }

    pub(super) fn max_backlog(&self) -> usize {
        self.config.max_backlog
    }

    pub(super) fn state(&self) -> JournalState {
        let queue = self.lock();
        JournalState {
            is_failing: self.is_failing(),
            backlog: queue.waiting.len() + queue.in_hand,
            durable_settlements: self.settlements.durable(),
            proofs: self.proofs.counts(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            let records: Vec<Record> = batch.iter().map(|handed| handed.record.clone()).collect();
            if self.write_until_it_succeeds(&records, &batch) {
                self.wrote(&batch);
            }
            self.shared.lock().in_hand = 0;
        }
        if self.shared.must_reopen()
            && let Err(error) = self.reopen()
        {
            tracing::error!(%error, "the ledger could not be opened again before the end");
        }
    }

    /// What was handed over; nothing when only the store is to be opened again. `None` at the end.
    fn next_batch(&mut self) -> Option<Vec<Handed>> {
        let mut queue = self.shared.lock();
        let mut has_waited = false;
        loop {
            let is_worth_it = !queue.waiting.is_empty() || (self.shared.is_failing() && !queue.is_closing);
            if is_worth_it && (queue.is_rung_for || has_waited || queue.is_closing) {
                let count = queue.waiting.len().min(MAX_BATCH);
                queue.in_hand = count;
                queue.is_rung_for = queue.waiting.len() > count;
                return Some(queue.waiting.drain(..count).collect());
            }
            if queue.is_closing {
                return None;
            }
            queue.is_thread_asleep = true;
            let wait = self.shared.arrived.wait_timeout(queue, self.shared.config.sync_interval);
            let (woken, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.is_thread_asleep = false;
            has_waited = timeout.timed_out();
        }
    }

    /// Tries again until the store takes it. False: the process ends first.
    fn write_until_it_succeeds(&mut self, records: &[Record], batch: &[Handed]) -> bool {
        loop {
            let Err(error) = self.try_write(records) else { return true };
            self.shared.note_failure(&error);
            // Whoever need not wait for the disk goes on.
            batch.iter().filter_map(|handed| handed.progress.as_ref()).for_each(|progress| progress.wake());
            if self.pause() {
                tracing::error!(records = records.len(), "the ledger could not be written before the end");
                return false;
            }
        }
    }

    fn try_write(&mut self, records: &[Record]) -> Result<(), StoreError> {
        if self.shared.is_failing() {
            self.reopen()?;
        }
        self.store.write(records)?;
        // A sync may have failed meanwhile.
        if !self.shared.must_reopen() && self.shared.is_failing.swap(false, Ordering::AcqRel) {
            tracing::info!("the ledger can be written again");
        }
        Ok(())
    }

    /// While it is wanted nothing is synced, so that no failure of a sync falls into it.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let is_wanted = self.shared.must_reopen();
        self.store.reopen()?;
        if is_wanted {
            self.shared.must_reopen.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Until it is time to try again. True if the process is ending.
    fn pause(&self) -> bool {
        let queue = self.shared.lock();
        let is_open = |queue: &mut Queue| !queue.is_closing;
        let waited = self.shared.arrived.wait_timeout_while(queue, self.shared.config.retry_interval, is_open);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.is_closing
    }

    fn wrote(&self, batch: &[Handed]) {
        let mut settlements = 0;
        for Handed { record, progress, .. } in batch {
            match (record, progress) {
                (Record::Open(_), Some(progress)) => progress.wrote(0),
                (Record::Mark { used, .. }, Some(progress)) => progress.wrote(used.generated_tokens),
                (Record::Settle(..), _) => settlements += 1,
                _ => {}
            }
        }
        self.shared.proofs.check(batch.iter().filter_map(Handed::entry));
        self.shared.settlements.wrote(settlements);
    }
}

impl Handed {
    fn entry(&self) -> Option<(EntryId, &Settlement, &Proof)> {
        match (&self.record, &self.proof) {
            (Record::Settle(opening, settlement), Some(proof)) => Some((opening.id, settlement, proof)),
            _ => None,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state()).finish_non_exhaustive()
    }
}
