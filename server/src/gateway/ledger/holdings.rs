//! What one reservation has taken of which counters, so that it settles with those and with no others.

/// A counter of some page. Never given twice: a limit that is taken away and stated again begins another counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CounterId {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

#[derive(Debug, Default)]
pub(super) struct Holdings {
    by_counter: Vec<(CounterId, u64)>,
    motion: Motion,
}

/// Whether what is held may come back before others give something back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Motion {
    #[default]
    Runs,
    /// All that was reserved is generated, and it waits for more.
    StandsStill,
}

impl Holdings {
    /// `None`: it began without this counter.
    pub(super) fn of(&self, counter: CounterId) -> Option<u64> {
        self.find(counter).ok().map(|index| self.by_counter[index].1)
    }

    pub(super) fn add(&mut self, counter: CounterId, amount: u64) {
        match self.find(counter) {
            Ok(index) => self.by_counter[index].1 = self.by_counter[index].1.saturating_add(amount),
            Err(index) => self.by_counter.insert(index, (counter, amount)),
        }
    }

    pub(super) fn remove(&mut self, counter: CounterId) {
        if let Ok(index) = self.find(counter) {
            self.by_counter.remove(index);
        }
    }

    pub(super) fn motion(&self) -> Motion {
        self.motion
    }

    /// `None`: nothing changed.
    pub(super) fn set_motion(&mut self, motion: Motion) -> Option<&Self> {
        let changed = std::mem::replace(&mut self.motion, motion) != motion;
        changed.then_some(&*self)
    }

    fn find(&self, counter: CounterId) -> Result<usize, usize> {
        self.by_counter.binary_search_by_key(&counter, |(id, _)| *id)
    }
}
