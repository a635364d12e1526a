//! Acts that happened while the audit log had no room. They are written before the next entry, each with the time at which it
//! happened, so that the chain is whole and says that they came late.

use std::collections::VecDeque;
use std::sync::Arc;

use rusqlite::Transaction;

use super::{Act, audit};
use crate::gateway::quota::UnixSeconds;

/// Further ones are only counted.
const MOST_OWED: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Owed {
    acts: VecDeque<OwedAct>,
    /// The first of those that were only counted, and how many they are.
    counted: Option<(OwedAct, u64)>,
}

#[derive(Debug, Clone)]
pub(super) struct OwedAct {
    at: UnixSeconds,
    actor: Arc<str>,
    name: &'static str,
    subject: String,
    detail: String,
}

impl OwedAct {
    pub(super) fn new(at: UnixSeconds, actor: Arc<str>, name: &'static str, subject: &str, detail: &str) -> Self {
        Self { at, actor, name, subject: subject.to_owned(), detail: format!("{detail} (written later: no room)") }
    }

    fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let act = Act { name: self.name, subject: &self.subject, detail: self.detail.clone() };
        audit::append(transaction, self.at, &self.actor, &act)
    }
}

impl Owed {
    pub(super) fn is_empty(&self) -> bool {
        self.acts.is_empty()
    }

    pub(super) fn add(&mut self, act: OwedAct) {
        if self.acts.len() < MOST_OWED {
            self.acts.push_back(act);
        } else {
            let (first, count) = self.counted.take().unwrap_or((act, 0));
            self.counted = Some((first, count + 1));
        }
    }

    /// Each stays owed until [`Self::clear`], which follows the commit.
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        self.acts.iter().try_for_each(|act| act.write(transaction))?;
        let Some((first, count)) = &self.counted else { return Ok(()) };
        let detail = format!("and {} further acts that nobody could write down", count.saturating_sub(1));
        OwedAct { detail, ..first.clone() }.write(transaction)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
