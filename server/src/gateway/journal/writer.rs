//! The thread that writes.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use passerelle_engine::clock::Clock;

use super::progress::Progress;
use super::store::{Durability, LedgerStore, Record, StoreError};
use super::{Journal, JournalState};

#[derive(Debug, Clone, Copy)]
pub struct JournalConfig {
    /// Settlements are on the disk this long after they were made.
    pub sync_interval: Duration,
    /// How often a disk that refused is tried again.
    pub retry_interval: Duration,
    /// How long a stream of an account with a budget waits for a disk that refuses.
    pub longest_stall: Duration,
    /// Records that may wait; while there are more, nothing is admitted. Open reservations add three each at most.
    pub max_backlog: usize,
}

/// Owns the thread. Dropping it writes everything that was handed over, to the disk, and ends the thread.
#[derive(Debug)]
pub struct JournalThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the streams and the thread share.
pub(super) struct Shared {
    config: JournalConfig,
    queue: Mutex<Queue>,
    arrived: Condvar,
    is_failing: AtomicBool,
    durable_settlements: AtomicU64,
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

struct Handed {
    record: Record,
    /// Who is told that it is written.
    progress: Option<Arc<Progress>>,
}

struct Writer {
    shared: Arc<Shared>,
    store: Box<dyn LedgerStore>,
    clock: Arc<dyn Clock>,
    /// Settlements that are written and not yet on the disk, and since when.
    unsynced: u64,
    unsynced_since: Duration,
}

/// Records of one transaction.
const MAX_BATCH: usize = 4_096;

impl JournalThread {
    /// `store` has been recovered.
    pub fn start(
        store: Box<dyn LedgerStore>,
        config: JournalConfig,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<(Self, Journal)> {
        let shared = Arc::new(Shared {
            config,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            is_failing: AtomicBool::new(false),
            durable_settlements: AtomicU64::new(0),
        });
        let unsynced_since = clock.now();
        let writer = Writer { shared: Arc::clone(&shared), store, clock, unsynced: 0, unsynced_since };
        let thread = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || writer.run())?;
        Ok((Self { shared: Arc::clone(&shared), thread: Some(thread) }, Journal { shared }))
    }
}

impl Drop for JournalThread {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.arrived.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger's thread has failed");
        }
    }
}

impl Shared {
    /// A mark waits for what comes after it; everything else is written at once.
    pub(super) fn push(&self, record: Record, progress: Option<Arc<Progress>>) {
        let may_wait = matches!(record, Record::Mark { .. });
        let mut queue = self.lock();
        queue.waiting.push_back(Handed { record, progress });
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
        self.is_failing.load(Ordering::Acquire)
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
            durable_settlements: self.durable_settlements.load(Ordering::Acquire),
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
            let durability = self.durability(&batch);
            if self.write_until_it_succeeds(&records, durability, &batch) {
                self.wrote(&batch, durability);
            }
            self.shared.lock().in_hand = 0;
        }
        let synced = self.unsynced == 0 || self.store.write(&[], Durability::Power).is_ok();
        if !synced {
            tracing::error!("the last settlements were written, but perhaps not to the disk");
        }
    }

    /// The oldest settlement that waits for the disk takes everything with it when its time has come, also if nothing else
    /// is to be written.
    fn durability(&self, batch: &[Handed]) -> Durability {
        let waited = self.clock.now().saturating_sub(self.unsynced_since);
        let is_due = self.unsynced > 0 && waited >= self.shared.config.sync_interval;
        if is_due || batch.is_empty() { Durability::Power } else { Durability::Process }
    }

    /// What was handed over; nothing when it is time for the disk. `None` at the end.
    fn next_batch(&mut self) -> Option<Vec<Handed>> {
        let mut queue = self.shared.lock();
        let mut has_waited = false;
        loop {
            if !queue.waiting.is_empty() && (queue.is_rung_for || has_waited || queue.is_closing) {
                let count = queue.waiting.len().min(MAX_BATCH);
                queue.in_hand = count;
                queue.is_rung_for = queue.waiting.len() > count;
                return Some(queue.waiting.drain(..count).collect());
            }
            if queue.is_closing {
                return None;
            }
            if has_waited && self.unsynced > 0 {
                return Some(Vec::new());
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
    fn write_until_it_succeeds(&mut self, records: &[Record], durability: Durability, batch: &[Handed]) -> bool {
        loop {
            let Err(error) = self.try_write(records, durability) else { return true };
            if !self.shared.is_failing.swap(true, Ordering::AcqRel) {
                tracing::error!(%error, "accounts with a budget are refused until the ledger can be written");
            }
            // Whoever need not wait for the disk goes on.
            batch.iter().filter_map(|handed| handed.progress.as_ref()).for_each(|progress| progress.wake());
            if self.pause() {
                tracing::error!(records = records.len(), "the ledger could not be written before the end");
                return false;
            }
        }
    }

    fn try_write(&mut self, records: &[Record], durability: Durability) -> Result<(), StoreError> {
        if self.shared.is_failing() {
            self.store.reopen()?;
        }
        self.store.write(records, durability)?;
        if self.shared.is_failing.swap(false, Ordering::AcqRel) {
            tracing::info!("the ledger can be written again");
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

    fn wrote(&mut self, batch: &[Handed], durability: Durability) {
        let before = self.unsynced;
        for Handed { record, progress } in batch {
            match (record, progress) {
                (Record::Open(_), Some(progress)) => progress.wrote(0),
                (Record::Mark { used, .. }, Some(progress)) => progress.wrote(used.generated_tokens),
                (Record::Settle(..), _) => self.unsynced += 1,
                _ => {}
            }
        }
        if durability == Durability::Power {
            self.shared.durable_settlements.fetch_add(self.unsynced, Ordering::AcqRel);
            self.unsynced = 0;
        } else if before == 0 {
            self.unsynced_since = self.clock.now();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state()).finish_non_exhaustive()
    }
}
