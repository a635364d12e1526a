//! Who runs in the next step, and how far.
//!
//! There is no prefill and no decode. Every sequence has known tokens and computed tokens, and a step lets the second
//! number catch up with the first: a new prompt is far behind, a running stream one token, a sequence that lost its
//! blocks or found a cached prefix something between.
//!
//! One step's budget:
//!
//! ```text
//! max_num_batched_tokens
//! | one token each for sequences that are one behind | catching up: in order of age, then of the waiting queue |
//!                                                      at most prefill_chunk_tokens if the left part is not empty
//! ```
//!
//! Each sequence that catches up gets at most half of what is left while others want some too, so a long prompt does not
//! hold up a short one; what nobody else could use goes to the oldest.
//!
//! Room for every known token is taken when a sequence is admitted, so only generated tokens can run out of blocks.
//! Then the youngest sequence gives its blocks back and waits at the head of the queue; its tokens are kept and computed
//! again. The oldest never gives way and fits alone, so work always gets done.

use passerelle_models::BlockId;

use crate::catch_up::{CatchUpBudget, Demand};
use crate::config::EngineConfig;
use crate::kv_cache_manager::{KvCacheManager, Prefixes};
use crate::policy::WaitingQueue;
use crate::sequence::{Sequence, SequenceId};

#[derive(Debug)]
pub(crate) struct Scheduler {
    config: EngineConfig,
    /// By age, oldest first.
    running: Vec<Sequence>,
    waiting: WaitingQueue<Sequence>,
    cache: KvCacheManager,
}

/// One step's decision.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ScheduledBatch {
    /// By age, oldest first.
    pub(crate) sequences: Vec<ScheduledSequence>,
    /// Tokens of sequences that catch up.
    pub(crate) catch_up_tokens: usize,
    /// Sequences that lost their blocks.
    pub(crate) preemptions: usize,
    /// Prompt tokens of requests whose first step this is.
    pub(crate) started_prompt_tokens: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ScheduledSequence {
    pub(crate) id: SequenceId,
    pub(crate) num_tokens: usize,
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig, block_size: usize) -> Self {
        let cache = KvCacheManager::new(config.num_kv_blocks, block_size);
        Self { config, running: Vec::new(), waiting: WaitingQueue::new(), cache }
    }

    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push(sequence.share_key, sequence.id, sequence);
    }

    pub(crate) fn schedule(&mut self) -> ScheduledBatch {
        let mut batch = ScheduledBatch::default();
        let mut budget = self.catch_up_budget();
        let catch_up_tokens = budget.tokens;
        self.schedule_running(&mut batch, &mut budget);
        // Blocks that a preemption has just freed belong to the sequence that needed them.
        if batch.preemptions == 0 {
            self.admit_waiting(&mut batch, &mut budget);
        }
        for sequence in &mut self.running {
            sequence.num_scheduled += budget.take(sequence, Demand::Last);
        }
        batch.catch_up_tokens = catch_up_tokens - budget.tokens;
        for sequence in self.running.iter().filter(|sequence| sequence.num_scheduled > 0) {
            self.waiting.charge(sequence.share_key, sequence.num_scheduled);
            batch.sequences.push(ScheduledSequence { id: sequence.id, num_tokens: sequence.num_scheduled });
        }
        batch
    }

    /// The step in flight succeeded for this sequence: what was scheduled is computed.
    pub(crate) fn advance(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        let index = self.index_of(id)?;
        let sequence = &mut self.running[index];
        sequence.num_computed += std::mem::take(&mut sequence.num_scheduled);
        self.cache.register(sequence);
        Some(sequence)
    }

    pub(crate) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.index_of(id).map(|index| &self.running[index])
    }

    /// Takes a running sequence out for good.
    pub(crate) fn remove(&mut self, id: SequenceId, prefixes: Prefixes) -> Option<Sequence> {
        let mut sequence = self.running.remove(self.index_of(id)?);
        self.cache.release(&mut sequence, prefixes);
        self.waiting.leave(sequence.share_key);
        Some(sequence)
    }

    /// Takes out, running or waiting, every sequence that `unwanted` names.
    pub(crate) fn extract(&mut self, unwanted: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut taken = self.waiting.extract(|sequence| unwanted(sequence));
        taken.iter().for_each(|sequence| self.waiting.leave(sequence.share_key));
        let ids: Vec<_> =
            self.running.iter().filter(|sequence| unwanted(sequence)).map(|sequence| sequence.id).collect();
        taken.extend(ids.into_iter().filter_map(|id| self.remove(id, Prefixes::Keep)));
        taken
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn num_preempted(&self) -> usize {
        self.waiting.num_preempted()
    }

    pub(crate) fn cache(&self) -> &KvCacheManager {
        &self.cache
    }

    /// # Panics
    /// If blocks, sequences and their order do not add up.
    pub(crate) fn check_integrity(&self) {
        self.cache.pool().check_integrity(self.running.iter().map(|sequence| -> &[BlockId] { &sequence.block_table }));
        assert!(self.running.is_sorted_by(|a, b| a.id < b.id), "running sequences are in order of age");
        assert!(self.running.len() <= self.config.max_num_seqs, "more sequences run than may");
        let computed = self.running.iter().all(|sequence| sequence.num_computed <= sequence.tokens().len());
        assert!(computed, "no sequence has computed more tokens than it has");
    }

    /// What is left once every sequence that is one token behind has its token.
    fn catch_up_budget(&self) -> CatchUpBudget {
        let num_one_behind = self.running.iter().filter(|sequence| sequence.num_remaining() == 1).count();
        let left = self.config.max_num_batched_tokens - num_one_behind;
        CatchUpBudget {
            tokens: if num_one_behind == 0 { left } else { left.min(self.config.prefill_chunk_tokens) },
            prompt_logprob_rows: self.config.prompt_logprobs_chunk_tokens,
        }
    }

    fn schedule_running(&mut self, batch: &mut ScheduledBatch, budget: &mut CatchUpBudget) {
        let num_behind = self.running.iter().filter(|sequence| sequence.num_remaining() > 1).count();
        let mut num_wanting = num_behind + usize::from(self.may_admit());
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &self.running[index];
            let num_tokens = if sequence.num_remaining() == 1 {
                1
            } else {
                num_wanting -= 1;
                budget.take(sequence, Demand::of(num_wanting))
            };
            if !self.make_room(index, num_tokens, batch) {
                break;
            }
            self.running[index].num_scheduled = num_tokens;
            index += 1;
        }
    }

    /// Preempts from the young end until the sequence at `index` has room. False if it had to go itself.
    fn make_room(&mut self, index: usize, num_tokens: usize, batch: &mut ScheduledBatch) -> bool {
        while let Some(sequence) = self.running.get_mut(index) {
            let end = sequence.num_computed + num_tokens;
            if self.cache.grow(sequence, end).is_some() {
                return true;
            }
            if let Some(mut youngest) = self.running.pop() {
                self.cache.release(&mut youngest, Prefixes::Keep);
                youngest.num_scheduled = 0;
                self.waiting.push_preempted(youngest.id, youngest);
                batch.preemptions += 1;
            }
        }
        false
    }

    fn admit_waiting(&mut self, batch: &mut ScheduledBatch, budget: &mut CatchUpBudget) {
        while self.may_admit() {
            let others_need = self.blocks_of_next_step();
            let Some(head) = self.waiting.peek() else { break };
            let spare_blocks = others_need + usize::from(!self.running.is_empty() && self.cache.is_full(head));
            // Nobody overtakes the head, so it cannot starve.
            if !budget.affords(head) || self.cache.admit(head, spare_blocks).is_none() {
                break;
            }
            let Some(mut sequence) = self.waiting.pop() else { break };
            let others_may_follow = !self.waiting.is_empty() && self.running.len() + 1 < self.config.max_num_seqs;
            sequence.num_scheduled = budget.take(&sequence, Demand::of(usize::from(others_may_follow)));
            if sequence.ticket.leave_queue() && sequence.events.start(sequence.num_computed) {
                batch.started_prompt_tokens += sequence.prompt_len() as u64;
            }
            let index = self.running.partition_point(|other| other.id < sequence.id);
            self.running.insert(index, sequence);
        }
    }

    fn may_admit(&self) -> bool {
        self.running.len() < self.config.max_num_seqs && !self.waiting.is_empty()
    }

    /// What the running sequences will grow into in the next step: whoever is admitted into these blocks loses them
    /// right away.
    fn blocks_of_next_step(&self) -> usize {
        let will_grow = |sequence: &&Sequence| sequence.samples_next() && self.cache.is_full(sequence);
        self.running.iter().filter(will_grow).count()
    }

    fn index_of(&self, id: SequenceId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }
}

#[cfg(test)]
mod tests;
