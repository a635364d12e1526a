//! What makes a request fail that did nothing to deserve it, and how many failed by each.

use std::ops::{Add, AddAssign};

/// Why a request failed by no fault of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Logits, or a vector, that are not finite.
    NotFinite,
    /// The model panicked.
    Panic,
    /// The model found no memory, of the host or of a device.
    Memory,
    /// What computes failed in another way.
    Device,
    /// The model refused its input, or answered something other than it was asked.
    Model,
    /// A grammar could not be followed past a token that it had allowed.
    Grammar,
    /// The process that ran the request is gone.
    Worker,
}

/// How many requests failed by each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl Fault {
    /// In the order in which [`FaultCounts::each`] counts them.
    pub const ALL: [Self; 7] =
        [Self::NotFinite, Self::Panic, Self::Memory, Self::Device, Self::Model, Self::Grammar, Self::Worker];

    /// Whether it says something of the model. A grammar is the request's own: whoever found one that its library cannot
    /// follow could put an engine out of service otherwise.
    pub(crate) const fn is_of_model(self) -> bool {
        !matches!(self, Self::Grammar)
    }

    /// One word, for a label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotFinite => "nan",
            Self::Panic => "panic",
            Self::Memory => "memory",
            Self::Device => "device",
            Self::Model => "model",
            Self::Grammar => "grammar",
            Self::Worker => "worker",
        }
    }
}

impl FaultCounts {
    pub fn of(fault: Fault, count: u64) -> Self {
        let mut counts = Self::default();
        counts.0[fault as usize] = count;
        counts
    }

    /// In the order of [`Fault::ALL`]. What is beyond it counts nowhere.
    pub fn from_each(counts: impl IntoIterator<Item = u64>) -> Self {
        let mut all = Self::default();
        all.0.iter_mut().zip(counts).for_each(|(count, of_fault)| *count = of_fault);
        all
    }

    /// In the order of [`Fault::ALL`].
    pub fn each(&self) -> &[u64] {
        &self.0
    }

    pub fn get(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those of [`Fault::is_of_model`].
    pub(crate) fn of_model(&self) -> u64 {
        Fault::ALL.into_iter().filter(|fault| fault.is_of_model()).map(|fault| self.get(fault)).sum()
    }
}

impl Add for FaultCounts {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl AddAssign for FaultCounts {
    fn add_assign(&mut self, more: Self) {
        self.0.iter_mut().zip(more.0).for_each(|(count, more)| *count += more);
    }
}

/// Counts one failure for each.
impl FromIterator<Fault> for FaultCounts {
    fn from_iter<I: IntoIterator<Item = Fault>>(faults: I) -> Self {
        faults.into_iter().fold(Self::default(), |counts, fault| counts + Self::of(fault, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_counted_in_its_own_place() {
        for (index, fault) in Fault::ALL.into_iter().enumerate() {
            let counts = FaultCounts::from_iter([fault, fault]);
            assert_eq!((counts.get(fault), counts.total(), counts.each()[index]), (2, 2, 2), "{fault:?}");
            assert_eq!(FaultCounts::from_each(counts.each().iter().copied()), counts);
        }
    }
}
