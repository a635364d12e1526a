//! What entries are called, and which of them are one bill.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::gateway::journal::EntryId;

/// Hands out every number once.
#[derive(Debug)]
pub(super) struct Numbers {
    next: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Number {
    pub(super) id: EntryId,
    /// The first of those that it is on one bill with.
    pub(super) bill: Option<EntryId>,
}

impl Numbers {
    pub(super) fn from(next: EntryId) -> Self {
        Self { next: AtomicU64::new(next.0) }
    }

    /// One after the other. Several are one bill.
    pub(super) fn take(&self, count: usize) -> impl Iterator<Item = Number> + use<> {
        let first = self.next.fetch_add(count as u64, Ordering::Relaxed);
        let bill = (count > 1).then_some(EntryId(first));
        (first..first + count as u64).map(move |id| Number { id: EntryId(id), bill })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_together_is_on_the_bill_of_the_first() {
        let numbers = Numbers::from(EntryId(7));
        let plain = |Number { id, bill }| (id.0, bill.map(|bill: EntryId| bill.0));
        let taken = |count| numbers.take(count).map(plain).collect::<Vec<_>>();
        let (alone, together, next) = (taken(1), taken(2), taken(1));
        assert_eq!(alone, [(7, None)]);
        assert_eq!(together, [(8, Some(8)), (9, Some(8))]);
        assert_eq!(next, [(10, None)]);
    }
}
