//! What one reservation has taken of which counters, so that it settles with those and with no others.

/// A counter of some page. Never given twice: a limit that is taken away and stated again begins another counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CounterId {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

/// By counter.
#[derive(Debug, Default)]
pub(super) struct Holdings(Vec<(CounterId, u64)>);

impl Holdings {
    /// `None`: it began without this counter.
    pub(super) fn of(&self, counter: CounterId) -> Option<u64> {
        self.find(counter).ok().map(|index| self.0[index].1)
    }

    pub(super) fn add(&mut self, counter: CounterId, amount: u64) {
        match self.find(counter) {
            Ok(index) => self.0[index].1 = self.0[index].1.saturating_add(amount),
            Err(index) => self.0.insert(index, (counter, amount)),
        }
    }

    pub(super) fn remove(&mut self, counter: CounterId) {
        if let Ok(index) = self.find(counter) {
            self.0.remove(index);
        }
    }

    fn find(&self, counter: CounterId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&counter, |(id, _)| *id)
    }
}
