//! How far a run is, for whoever watches it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::figures::ms;
use crate::record::{Ending, ErrorKind, Record};
use crate::report::LATE_MS;

#[derive(Debug, Default)]
pub struct Progress {
    prepared: AtomicU64,
    sent: AtomicU64,
    ended: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    tokens: AtomicU64,
    late: AtomicU64,
    out_of_files: AtomicU64,
}

/// Counts at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Requests whose prompts are made.
    pub prepared: u64,
    pub sent: u64,
    pub in_flight: u64,
    pub refused: u64,
    pub failed: u64,
    /// Output tokens of the requests that ended.
    pub tokens: u64,
    /// Requests that left more than [`LATE_MS`] after their time.
    pub late: u64,
    /// Requests for which the generator could open no connection.
    pub out_of_files: u64,
}

impl Progress {
    pub fn count_prepared(&self) {
        self.prepared.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_ended(&self, record: &Record) {
        self.tokens.fetch_add(record.output_tokens(), Ordering::Relaxed);
        self.late.fetch_add(u64::from(ms(record.lateness()) > LATE_MS), Ordering::Relaxed);
        match record.ending {
            Ending::Refused { .. } => self.refused.fetch_add(1, Ordering::Relaxed),
            Ending::Failed(_) => self.failed.fetch_add(1, Ordering::Relaxed),
            Ending::Finished | Ending::Left | Ending::RefusedAsExpected { .. } | Ending::Interrupted => 0,
        };
        let is_out_of_files = record.ending == Ending::Failed(ErrorKind::OutOfFiles);
        self.out_of_files.fetch_add(is_out_of_files.into(), Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        let ended = self.ended.load(Ordering::Relaxed);
        let sent = self.sent.load(Ordering::Relaxed);
        Counts {
            prepared: self.prepared.load(Ordering::Relaxed),
            sent,
            in_flight: sent.saturating_sub(ended),
            refused: self.refused.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            tokens: self.tokens.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            out_of_files: self.out_of_files.load(Ordering::Relaxed),
        }
    }
}
