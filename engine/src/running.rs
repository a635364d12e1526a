//! The sequences that run, in the order of their ids: who goes first stands first, who gives way stands last.

use std::time::Duration;

use crate::request::Class;
use crate::sequence::{Sequence, SequenceId};

#[derive(Debug, Default)]
pub(crate) struct Running {
    sequences: Vec<Sequence>,
    /// When one was last raised above its class.
    raised_at: Option<Duration>,
}

impl Running {
    pub(crate) fn insert(&mut self, sequence: Sequence) {
        let index = self.sequences.partition_point(|other| other.id < sequence.id);
        self.sequences.insert(index, sequence);
    }

    pub(crate) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.index_of(id).map(|index| &self.sequences[index])
    }

    pub(crate) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.index_of(id).map(|index| &mut self.sequences[index])
    }

    pub(crate) fn at_mut(&mut self, index: usize) -> Option<&mut Sequence> {
        self.sequences.get_mut(index)
    }

    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        self.index_of(id).map(|index| self.sequences.remove(index))
    }

    pub(crate) fn pop_last(&mut self) -> Option<Sequence> {
        self.sequences.pop()
    }

    pub(crate) fn take_parked(&mut self) -> impl Iterator<Item = Sequence> {
        self.sequences.extract_if(.., |sequence| sequence.is_parked())
    }

    /// Whoever catches up and got nothing of any step for as long as a class has patience goes before those who left it
    /// nothing: the one that has waited longest, then nobody for as long again.
    pub(crate) fn raise_overdue(&mut self, now: Duration, patience: Duration) {
        let is_over = |since: Duration| now.saturating_sub(since) >= patience;
        if self.raised_at.is_some_and(|at| !is_over(at)) {
            return;
        }
        let overdue = |(index, sequence): (usize, &Sequence)| {
            // Those one token behind take turns.
            let since = sequence.idle_since.filter(|&since| is_over(since) && sequence.num_remaining() > 1)?;
            (sequence.id.class > Class::Interactive).then_some((since, index))
        };
        // Not the first in order: newcomers of a better class would go before it for ever.
        let Some((_, index)) = self.sequences.iter().enumerate().filter_map(overdue).min() else { return };
        let mut sequence = self.sequences.remove(index);
        sequence.id.class = sequence.id.class.raised();
        sequence.idle_since = Some(now);
        self.insert(sequence);
        self.raised_at = Some(now);
    }

    pub(crate) fn as_slice(&self) -> &[Sequence] {
        &self.sequences
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Sequence> {
        self.sequences.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Sequence> {
        self.sequences.iter_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// One for every choice, also while a prompt stands for several.
    pub(crate) fn places_taken(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.choices().len()).sum()
    }

    /// Who gives way first would give way to any better class.
    pub(crate) fn ends_in_batch(&self) -> bool {
        self.sequences.last().is_some_and(|last| last.id.class == Class::Batch)
    }

    /// # Panics
    /// If they are not in order, or one has computed more tokens than it has.
    pub(crate) fn check_integrity(&self) {
        assert!(self.sequences.is_sorted_by(|a, b| a.id < b.id), "running sequences are in order");
        let computed = self.sequences.iter().all(|sequence| sequence.num_computed <= sequence.tokens().len());
        assert!(computed, "no sequence has computed more tokens than it has");
    }

    fn index_of(&self, id: SequenceId) -> Option<usize> {
        self.sequences.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{request, sequence};
    use crate::request::Request;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A prompt that got nothing of the steps since `since` patiences.
    fn idle(class: Class, arrival: u64, since: u32) -> Sequence {
        let (mut sequence, _stream) = sequence(Request { class, ..request(arrival, &[1, 2, 3]) });
        sequence.idle_since = Some(PATIENCE * since);
        sequence
    }

    #[test]
    fn whoever_has_waited_longest_is_raised_before_newcomers_of_a_better_class() {
        let mut running = Running::default();
        running.insert(idle(Class::Standard, 0, 0));
        running.insert(idle(Class::Batch, 1, 0));
        let classes = |running: &Running| running.iter().map(|one| (one.id.arrival, one.id.class)).collect::<Vec<_>>();
        running.raise_overdue(PATIENCE, PATIENCE);
        assert_eq!(classes(&running), [(0, Class::Interactive), (1, Class::Batch)]);
        running.remove(running.iter().next().unwrap().id);
        running.insert(idle(Class::Standard, 2, 1));
        running.raise_overdue(PATIENCE * 3 / 2, PATIENCE);
        assert_eq!(classes(&running), [(2, Class::Standard), (1, Class::Batch)], "one at a time");
        running.raise_overdue(PATIENCE * 2, PATIENCE);
        assert_eq!(classes(&running), [(1, Class::Standard), (2, Class::Standard)]);
    }
}
