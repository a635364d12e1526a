//! How far one reservation is written down: set by the writing thread, read by the stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use super::MARK_TOKENS;

/// 0: nothing is written. `n + 1`: the reservation, and a mark at `n` tokens.
#[derive(Debug, Default)]
pub struct Progress {
    written: AtomicU64,
    reader: AtomicWaker,
}

impl Progress {
    pub(super) fn wrote(&self, mark: u32) {
        self.written.fetch_max(u64::from(mark) + 1, Ordering::AcqRel);
        self.reader.wake();
    }

    /// Something else changed for whoever waits.
    pub(super) fn wake(&self) {
        self.reader.wake();
    }

    pub(super) fn has_written(&self, mark: u32) -> bool {
        self.written.load(Ordering::Acquire) > u64::from(mark)
    }

    pub(super) fn covers(&self, tokens: u32) -> bool {
        match self.written.load(Ordering::Acquire) {
            0 => false,
            written => u64::from(tokens) < written + u64::from(MARK_TOKENS),
        }
    }

    pub(super) fn register(&self, waker: &Waker) {
        self.reader.register(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_covers_sixteen_tokens_after_it_and_no_seventeenth() {
        let progress = Progress::default();
        assert!(!progress.covers(1), "not even the reservation is written");
        progress.wrote(0);
        assert!(progress.covers(16) && !progress.covers(17));
        progress.wrote(10);
        progress.wrote(4);
        assert!(progress.has_written(10) && progress.covers(26) && !progress.covers(27));
    }
}
