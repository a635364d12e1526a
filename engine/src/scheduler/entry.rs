//! Who comes in from the queue, who makes way for it, and who goes out and comes back.

use super::Scheduler;
use super::credit::charge;
use crate::batch::ScheduledBatch;
use crate::catch_up::{CatchUpBudget, Demand};
use crate::kv_cache_manager::Prefixes;
use crate::policy::{Taken, take_out};
use crate::request::Class;
use crate::sequence::Sequence;

/// Prompts that let others by for want of rows in a step: each is taken out of the queue and put back.
const MOST_ASIDE: usize = 8;

impl Scheduler {
    /// Whoever has used up its grant makes room, and a turn out of order is over with it: raised, it would have those of its
    /// class give way that go before it.
    pub(super) fn park(&mut self) {
        for mut sequence in self.running.take_parked() {
            self.cache.release(&mut sequence, Prefixes::Keep);
            sequence.id.class = sequence.share.class;
            self.parked.insert(sequence.id, sequence);
        }
    }

    /// Whoever was granted more waits again, before the younger requests of its share.
    pub(super) fn unpark(&mut self) {
        for sequence in take_out(&mut self.parked, |sequence| !sequence.is_parked()) {
            self.num_resuming += 1;
            self.waiting.push(sequence.share, sequence.id, sequence);
        }
    }

    /// Where streams take every token that a step has, one of class batch leaves its own to a better class that waits.
    pub(super) fn leave_a_token(&mut self, batch: &mut ScheduledBatch) {
        let num_one_behind = self.running.iter().filter(|sequence| sequence.num_remaining() == 1).count();
        if num_one_behind == self.config.max_num_batched_tokens && self.makes_way() {
            self.preempt_last(batch);
        }
    }

    /// In which class the next of the queue will run, if there is a place for it, or one that batch gives up.
    pub(super) fn next_class(&mut self) -> Option<Class> {
        if !self.may_admit() && !self.makes_way() {
            return None;
        }
        self.head()?;
        self.waiting.head_class()
    }

    /// Those up to class `worst`, in order. Nobody overtakes the head, so it cannot starve; one that wants log-probabilities of its
    /// prompt where no row of them is left in the step lets others by, and is the head again in the next.
    pub(super) fn admit_waiting(&mut self, worst: Class, batch: &mut ScheduledBatch, budget: &mut CatchUpBudget) {
        let mut num_aside = 0;
        while let Some(class) = self.next_class().filter(|&class| class <= worst)
            && budget.affords(class)
        {
            if self.hold_head(class) {
                continue;
            }
            if self.head().is_some_and(|head| !budget.has_rows_for(head)) {
                num_aside += 1;
                if num_aside <= MOST_ASIDE && self.set_head_aside() {
                    continue;
                }
                break;
            }
            if self.admit_head(batch).is_none() {
                if !self.makes_way() || !self.would_fit_without_batch() {
                    break;
                }
                self.preempt_last(batch);
                continue;
            }
            let Some(Taken { item: mut sequence, class }) = self.waiting.pop(self.now) else { break };
            sequence.id.class = class;
            self.num_resuming -= usize::from(sequence.is_resuming());
            let others_follow = self.may_admit() && self.rivals_wait(class);
            sequence.num_scheduled = budget.take_first(&sequence, Demand::of(usize::from(others_follow)));
            if sequence.start() {
                batch.started_prompt_tokens += sequence.prompt_len() as u64;
            }
            // Before the next one is chosen.
            charge(&mut self.waiting, &self.costs, &mut sequence);
            self.running.insert(sequence);
        }
    }

    /// Gives the head of the queue its blocks, if there is a place for each of its choices.
    ///
    /// What the running sequences will grow into in the next step stays free: whoever was admitted into these blocks would
    /// lose them right away.
    fn admit_head(&mut self, batch: &mut ScheduledBatch) -> Option<()> {
        let next = |other: &Sequence| self.cache.blocks_to_grow(other) + self.cache.blocks_of_next_step(other);
        let mut spare_blocks: usize = self.running.iter().map(next).sum();
        let places_left = self.config.max_num_seqs - self.running.places_taken();
        let is_alone = self.running.is_empty();
        let (now, cache) = (self.now, &mut self.cache);
        let head = self.waiting.peek(now, |sequence| cache.cached_tokens(sequence))?;
        spare_blocks += if is_alone { 0 } else { cache.blocks_of_next_token(head) };
        if head.choices().len() > places_left { None } else { cache.admit(head, spare_blocks, &mut batch.copies) }
    }

    /// Whether the head may have its places and blocks once all of class batch has given way, which is for nothing otherwise.
    /// Of what batch holds others may hold a part, so that it may turn out not to fit all the same.
    fn would_fit_without_batch(&mut self) -> bool {
        let (now, cache) = (self.now, &self.cache);
        let Some(head) = self.waiting.peek(now, |sequence| cache.cached_tokens(sequence)) else { return false };
        let gives_way = |sequence: &&Sequence| sequence.id.class == Class::Batch;
        let stay = || self.running.iter().filter(|sequence| !gives_way(sequence));
        let places_taken: usize = stay().map(|sequence| sequence.choices().len()).sum();
        let spare: usize = stay().map(|other| cache.blocks_to_grow(other) + cache.blocks_of_next_step(other)).sum();
        let freed: usize = self.running.iter().filter(gives_way).map(|sequence| cache.num_held(sequence)).sum();
        let next_token = if places_taken == 0 { 0 } else { cache.blocks_of_next_token(head) };
        places_taken + head.choices().len() <= self.config.max_num_seqs
            && cache.fewest_to_admit(head) + next_token + spare <= cache.pool().num_free() + freed
    }

    fn head(&mut self) -> Option<&mut Sequence> {
        self.waiting.peek(self.now, |sequence| self.cache.cached_tokens(sequence))
    }

    /// The last of the running is of the class that gives way to the head of the queue, which may have been raised above it.
    fn makes_way(&mut self) -> bool {
        self.running.ends_in_batch()
            && self.head().is_some()
            && self.waiting.head_class().is_some_and(|class| class < Class::Batch)
    }

    fn may_admit(&self) -> bool {
        !self.waiting.is_empty() && self.running.places_taken() < self.config.max_num_seqs
    }

    /// Whether a sequence of this class leaves a part of the step to those that wait: for batch, only batch does.
    fn rivals_wait(&self, class: Class) -> bool {
        self.waiting.best_class().is_some_and(|best| best < Class::Batch || class == Class::Batch)
    }
}
