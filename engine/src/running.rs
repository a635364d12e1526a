//! The sequences that run, in the order of their ids: who goes first stands first, who gives way stands last.

use std::time::Duration;

use crate::request::Class;
use crate::sequence::{Sequence, SequenceId};

#[derive(Debug, Default)]
pub(crate) struct Running(Vec<Sequence>);

impl Running {
    pub(crate) fn insert(&mut self, sequence: Sequence) {
        let index = self.0.partition_point(|other| other.id < sequence.id);
        self.0.insert(index, sequence);
    }

    pub(crate) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.index_of(id).map(|index| &self.0[index])
    }

    pub(crate) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.index_of(id).map(|index| &mut self.0[index])
    }

    pub(crate) fn at_mut(&mut self, index: usize) -> Option<&mut Sequence> {
        self.0.get_mut(index)
    }

    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        self.index_of(id).map(|index| self.0.remove(index))
    }

    pub(crate) fn pop_last(&mut self) -> Option<Sequence> {
        self.0.pop()
    }

    pub(crate) fn take_parked(&mut self) -> impl Iterator<Item = Sequence> {
        self.0.extract_if(.., |sequence| sequence.is_parked())
    }

    /// Whoever got nothing of any step for as long as a class has patience goes before those who left it nothing. One at a
    /// time, then the patience of the others begins anew.
    pub(crate) fn raise_overdue(&mut self, now: Duration, patience: Duration) {
        let is_overdue = |sequence: &Sequence| {
            let is_idle = sequence.idle_since.is_some_and(|since| now.saturating_sub(since) >= patience);
            is_idle && sequence.id.class > Class::Interactive
        };
        let Some(index) = self.0.iter().position(is_overdue) else { return };
        let mut sequence = self.0.remove(index);
        sequence.id.class = sequence.id.class.raised();
        self.insert(sequence);
        for sequence in &mut self.0 {
            sequence.idle_since = sequence.idle_since.map(|_| now);
        }
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Sequence> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Sequence> {
        self.0.iter_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One for every choice, also while a prompt stands for several.
    pub(crate) fn places_taken(&self) -> usize {
        self.0.iter().map(|sequence| sequence.choices().len()).sum()
    }

    /// Who gives way first would give way to any better class.
    pub(crate) fn ends_in_batch(&self) -> bool {
        self.0.last().is_some_and(|last| last.id.class == Class::Batch)
    }

    /// # Panics
    /// If they are not in order, or one has computed more tokens than it has.
    pub(crate) fn check_integrity(&self) {
        assert!(self.0.is_sorted_by(|a, b| a.id < b.id), "running sequences are in order");
        let computed = self.0.iter().all(|sequence| sequence.num_computed <= sequence.tokens().len());
        assert!(computed, "no sequence has computed more tokens than it has");
    }

    fn index_of(&self, id: SequenceId) -> Option<usize> {
        self.0.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }
}
