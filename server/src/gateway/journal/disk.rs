//! The thread that brings to the disk what the other one has written.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::store::LedgerDisk;
use super::writer::Shared;

/// How far settlements are written, and how far they are on the disk.
#[derive(Default)]
pub(super) struct Settlements {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    written: u64,
    durable: u64,
    /// No more will be written.
    is_closing: bool,
}

impl Settlements {
    pub(super) fn wrote(&self, settlements: u64) {
        if settlements > 0 {
            self.lock().written += settlements;
            self.changed.notify_one();
        }
    }

    pub(super) fn durable(&self) -> u64 {
        self.lock().durable
    }

    pub(super) fn close(&self) {
        self.lock().is_closing = true;
        self.changed.notify_one();
    }

    /// How many are written, a while after the first of them that is not on the disk. `None` at the end.
    fn due(&self, interval: Duration) -> Option<u64> {
        let is_settled = |counts: &mut Counts| counts.written == counts.durable && !counts.is_closing;
        let counts = self.changed.wait_while(self.lock(), is_settled).unwrap_or_else(PoisonError::into_inner);
        let counts = self.pause(counts, interval);
        (counts.written > counts.durable).then_some(counts.written)
    }

    /// Shorter at the end.
    fn pause<'a>(&self, counts: MutexGuard<'a, Counts>, interval: Duration) -> MutexGuard<'a, Counts> {
        let waited = self.changed.wait_timeout_while(counts, interval, |counts| !counts.is_closing);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Syncs until the writer has ended and everything is on the disk, or will not get there.
pub(super) fn run(shared: &Arc<Shared>, mut disk: Box<dyn LedgerDisk>) {
    let (config, settlements) = (shared.config(), shared.settlements());
    while let Some(written) = settlements.due(config.sync_interval) {
        if shared.must_reopen() {
            // The writer is at it, or has ended without.
            if settlements.lock().is_closing {
                tracing::error!("the last settlements were written, but perhaps not to the disk");
                return;
            }
            drop(settlements.pause(settlements.lock(), config.retry_interval));
            continue;
        }
        match disk.sync() {
            Ok(()) => settlements.lock().durable = written,
            Err(error) if settlements.lock().is_closing => {
                tracing::error!(%error, "the last settlements were written, but perhaps not to the disk");
                return;
            }
            Err(error) => {
                shared.fail(&error);
                drop(settlements.pause(settlements.lock(), config.retry_interval));
            }
        }
    }
}
