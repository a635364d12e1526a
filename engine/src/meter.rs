//! What a request has used, counted by the engine and read by whoever pays, without a lock.
//!
//! ```text
//! a choice:  closed (1 bit) | started (1 bit) | unused (30) | generated tokens (32)
//! the time:  closed (1 bit) | nanoseconds (63)
//! ```
//!
//! Nothing is counted into a word that is closed, so whoever closes all of them has read the final figures.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::counted::Counted;
use crate::event::Usage;

#[derive(Debug)]
pub(crate) struct Meter {
    choices: Box<[AtomicU64]>,
    time: AtomicU64,
    granted_tokens: AtomicU32,
    cached_tokens: AtomicU32,
    prompt_tokens: u32,
    failed: AtomicBool,
}

const CLOSED: u64 = 1 << 63;
const STARTED: u64 = 1 << 62;

impl Meter {
    pub(crate) fn new(prompt_tokens: u32, granted_tokens: u32, num_choices: u32) -> Self {
        Self {
            choices: (0..num_choices).map(|_| AtomicU64::new(0)).collect(),
            time: AtomicU64::new(0),
            granted_tokens: AtomicU32::new(granted_tokens),
            cached_tokens: AtomicU32::new(0),
            prompt_tokens,
            failed: AtomicBool::new(false),
        }
    }

    /// The prompt is about to be computed. False, changing nothing, if every choice is closed.
    pub(crate) fn start(&self, cached_tokens: u32) -> bool {
        self.cached_tokens.store(cached_tokens, Ordering::Release);
        // Each of them, not only up to the first that is open.
        self.choices.iter().filter(|word| update(word, |word| word | STARTED)).count() > 0
    }

    /// False, without counting, once the choice is closed.
    pub(crate) fn count_token(&self, choice: u32) -> bool {
        update(&self.choices[choice as usize], |word| word + 1)
    }

    /// False, without counting, once every choice is closed. A worker's word may be any number.
    pub(crate) fn add_time(&self, ns: u64) -> bool {
        update(&self.time, |word| word.saturating_add(ns).min(CLOSED - 1))
    }

    pub(crate) fn is_closed(&self, choice: u32) -> bool {
        self.choices[choice as usize].load(Ordering::Acquire) & CLOSED != 0
    }

    /// Returns what the choice has generated.
    pub(crate) fn close_choice(&self, choice: u32) -> u32 {
        self.choices[choice as usize].fetch_or(CLOSED, Ordering::AcqRel) as u32
    }

    pub(crate) fn close(&self) -> Usage {
        let words = self.choices.iter().map(|word| word.fetch_or(CLOSED, Ordering::AcqRel));
        self.usage_of(words, self.time.fetch_or(CLOSED, Ordering::AcqRel))
    }

    pub(crate) fn usage(&self) -> Usage {
        let words = self.choices.iter().map(|word| word.load(Ordering::Acquire));
        self.usage_of(words, self.time.load(Ordering::Acquire))
    }

    /// True for whoever says so first.
    pub(crate) fn mark_failed(&self) -> bool {
        !self.failed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn grant(&self, more: u32) {
        let add = |granted: u32| Some(granted.saturating_add(more));
        let _ = self.granted_tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    pub(crate) fn granted_tokens(&self) -> u32 {
        self.granted_tokens.load(Ordering::Acquire)
    }

    /// A request that never had a step has used nothing.
    fn usage_of(&self, words: impl Iterator<Item = u64>, time: u64) -> Usage {
        let (started, generated_tokens) =
            words.fold((false, 0), |(started, sum), word| (started || word & STARTED != 0, sum + word as u32));
        if !started {
            return Usage::default();
        }
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.load(Ordering::Acquire),
            generated_tokens,
            measured_ns: time & !CLOSED,
        }
    }
}

impl Counted for Meter {
    fn counted(&self) -> Usage {
        self.usage()
    }
}

/// False, changing nothing, once closed.
fn update(word: &AtomicU64, change: impl Fn(u64) -> u64) -> bool {
    let open = |word: u64| (word & CLOSED == 0).then(|| change(word));
    word.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
}
