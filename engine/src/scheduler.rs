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
//! | one token each for sequences that are one behind | catching up: in order, then of the waiting queue |
//!                                                      at most prefill_chunk_tokens, and no more than runs within
//!                                                      max_added_latency, if the left part is not empty
//! ```
//!
//! The order is that of [`SequenceId`]: the better class, then age. Each sequence that catches up gets at most half of
//! what is left while others want some too, so a long prompt does not hold up a short one; what nobody else could use
//! goes to the first.
//!
//! Room for every known token is taken when a sequence is admitted, so only generated tokens can run out of blocks.
//! Then the last sequence gives its blocks back and waits at the head of the queue; its tokens are kept and computed
//! again. The first never gives way and fits alone, so work always gets done. Batch sequences give way to a better
//! class that waits.
//!
//! A sequence that has generated what was granted to it is parked: it keeps its tokens and its age, but neither blocks
//! nor a place among the running, so it holds up nobody. Its cached prefix makes its return cheap.

use std::collections::BTreeMap;
use std::time::Duration;

use passerelle_models::BlockId;

use crate::batch::{ScheduledBatch, ScheduledSequence};
use crate::catch_up::{CatchUpBudget, Demand};
use crate::config::EngineConfig;
use crate::cost::{CostModel, CostNs};
use crate::event_stream::EventSender;
use crate::kv_cache_manager::{KvCacheManager, Prefixes};
use crate::policy::{Taken, WaitingQueue, take_out};
use crate::request::Class;
use crate::sequence::{Sequence, SequenceId};

#[derive(Debug)]
pub(crate) struct Scheduler {
    config: EngineConfig,
    costs: CostModel,
    /// No two credits that wait are further apart, see [`crate::policy`].
    fairness_bound: CostNs,
    /// When the present step began.
    now: Duration,
    /// In order.
    running: Vec<Sequence>,
    /// Each needs a grant.
    parked: BTreeMap<SequenceId, Sequence>,
    waiting: WaitingQueue<Sequence>,
    cache: KvCacheManager,
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig, costs: CostModel, block_size: usize) -> Self {
        let cache = KvCacheManager::new(config.num_kv_blocks, block_size);
        let quantum = costs.of_tokens(0, config.max_num_batched_tokens);
        let waiting = WaitingQueue::new(quantum, config.class_patience);
        // As `policy` derives it.
        let places = config.max_num_seqs as CostNs;
        let fairness_bound = quantum.saturating_add(places.saturating_mul(costs.of_sequence(config.max_model_len)));
        let now = Duration::ZERO;
        Self { config, costs, fairness_bound, now, running: Vec::new(), parked: BTreeMap::new(), waiting, cache }
    }

    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.enter(sequence.share);
        if sequence.is_parked() {
            // It waits for its reader and not for the engine.
            sequence.ticket.leave_queue();
            self.parked.insert(sequence.id, sequence);
        } else {
            self.waiting.push(sequence.share, sequence.id, sequence);
        }
    }

    pub(crate) fn schedule(&mut self, now: Duration) -> ScheduledBatch {
        self.now = now;
        let mut batch = ScheduledBatch::default();
        self.park();
        self.unpark();
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
        batch.sequences.reserve(self.running.len());
        for sequence in self.running.iter_mut().filter(|sequence| sequence.num_scheduled > 0) {
            let cost = self.costs.of_tokens(sequence.num_computed, sequence.num_scheduled);
            batch.sequences.push(ScheduledSequence { id: sequence.id, num_tokens: sequence.num_scheduled, cost });
            charge(&mut self.waiting, &self.costs, sequence);
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

    /// The prompt of several choices is computed: a sequence for a further one, which shares the blocks. Their places
    /// were kept when the prompt was admitted.
    pub(crate) fn fork(&mut self, id: SequenceId, events: EventSender) -> Option<SequenceId> {
        let index = self.index_of(id)?;
        let mut fork = self.running[index].fork(events);
        self.cache.share(&self.running[index], &mut fork);
        self.waiting.enter(fork.share);
        let fork_id = fork.id;
        self.insert_running(fork);
        Some(fork_id)
    }

    pub(crate) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.index_of(id).map(|index| &self.running[index])
    }

    pub(crate) fn sequence_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.index_of(id).map(|index| &mut self.running[index])
    }

    /// Takes a running sequence out for good.
    pub(crate) fn remove(&mut self, id: SequenceId, prefixes: Prefixes) -> Option<Sequence> {
        let mut sequence = self.running.remove(self.index_of(id)?);
        self.cache.release(&mut sequence, prefixes);
        self.waiting.leave(sequence.share);
        Some(sequence)
    }

    /// Takes out, wherever it is, every sequence that `unwanted` names.
    pub(crate) fn extract(&mut self, unwanted: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut taken = self.waiting.extract(|sequence| unwanted(sequence));
        taken.extend(take_out(&mut self.parked, |sequence| unwanted(sequence)));
        taken.iter().for_each(|sequence| self.waiting.leave(sequence.share));
        let ids: Vec<_> =
            self.running.iter().filter(|sequence| unwanted(sequence)).map(|sequence| sequence.id).collect();
        taken.extend(ids.into_iter().filter_map(|id| self.remove(id, Prefixes::Keep)));
        taken
    }

    /// A step would find something to run.
    pub(crate) fn has_work(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty() || self.parked.values().any(|parked| !parked.is_parked())
    }

    /// Nothing runs, waits or is parked.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.parked.is_empty()
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn num_parked(&self) -> usize {
        self.parked.len()
    }

    pub(crate) fn num_preempted(&self) -> usize {
        self.waiting.num_preempted()
    }

    /// How far the shares that wait have drifted apart, and how far they can.
    pub(crate) fn fairness(&self) -> (CostNs, CostNs) {
        (self.waiting.widest_gap(), self.fairness_bound)
    }

    pub(crate) fn cache(&self) -> &KvCacheManager {
        &self.cache
    }

    /// # Panics
    /// If blocks, sequences and their order do not add up.
    pub(crate) fn check_integrity(&self) {
        self.cache.pool().check_integrity(self.running.iter().map(|sequence| -> &[BlockId] { &sequence.block_table }));
        assert!(self.running.is_sorted_by(|a, b| a.id < b.id), "running sequences are in order");
        assert!(self.places_taken() <= self.config.max_num_seqs, "more sequences run than may");
        let computed = self.running.iter().all(|sequence| sequence.num_computed <= sequence.tokens().len());
        assert!(computed, "no sequence has computed more tokens than it has");
        assert!(self.waiting.widest_gap() <= self.fairness_bound, "the shares have drifted too far apart");
        assert!(
            self.parked.values().all(|sequence| sequence.block_table.is_empty()),
            "parked sequences hold no blocks"
        );
    }

    /// What is left once every sequence that is one token behind has its token.
    fn catch_up_budget(&self) -> CatchUpBudget {
        let num_one_behind = self.running.iter().filter(|sequence| sequence.num_remaining() == 1).count();
        let left = self.config.max_num_batched_tokens - num_one_behind;
        CatchUpBudget {
            tokens: if num_one_behind == 0 { left } else { left.min(self.config.prefill_chunk_tokens) },
            time: if num_one_behind == 0 {
                CostNs::MAX >> 1
            } else {
                self.config.max_added_latency.as_nanos() as CostNs
            },
            costs: self.costs,
            prompt_logprob_rows: self.config.prompt_logprobs_chunk_tokens,
            is_untouched: true,
        }
    }

    /// Whoever has used up its grant makes room.
    fn park(&mut self) {
        for mut sequence in self.running.extract_if(.., |sequence| sequence.is_parked()) {
            self.cache.release(&mut sequence, Prefixes::Keep);
            self.parked.insert(sequence.id, sequence);
        }
    }

    /// Whoever was granted more waits again, before the younger requests of its share.
    fn unpark(&mut self) {
        for sequence in take_out(&mut self.parked, |sequence| !sequence.is_parked()).into_iter().rev() {
            self.waiting.push_again(sequence.share, sequence.id, sequence);
        }
    }

    fn schedule_running(&mut self, batch: &mut ScheduledBatch, budget: &mut CatchUpBudget) {
        let num_behind = self.running.iter().filter(|sequence| sequence.num_remaining() > 1).count();
        let mut num_wanting = num_behind + usize::from(self.may_admit());
        let waits_before_batch = self.waiting.best_class().is_some_and(|class| class < Class::Batch);
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &self.running[index];
            let num_tokens = if sequence.num_remaining() == 1 {
                1
            } else {
                num_wanting -= 1;
                // A batch catches up with what is left in the end.
                let is_last = sequence.id.class == Class::Batch && waits_before_batch;
                if is_last { 0 } else { budget.take(sequence, Demand::of(num_wanting)) }
            };
            if !self.make_room(index, num_tokens, batch) {
                break;
            }
            self.running[index].num_scheduled = num_tokens;
            index += 1;
        }
    }

    /// Preempts from the end until the sequence at `index` has room. False if it had to go itself.
    fn make_room(&mut self, index: usize, num_tokens: usize, batch: &mut ScheduledBatch) -> bool {
        while let Some(sequence) = self.running.get_mut(index) {
            let end = sequence.num_computed + num_tokens;
            if self.cache.grow(sequence, end, &mut batch.copies).is_some() {
                return true;
            }
            self.preempt_last(batch);
        }
        false
    }

    fn preempt_last(&mut self, batch: &mut ScheduledBatch) {
        let Some(mut last) = self.running.pop() else { return };
        self.cache.release(&mut last, Prefixes::Keep);
        last.num_scheduled = 0;
        self.waiting.push_preempted(last.share, last.id, last);
        batch.preemptions += 1;
    }

    fn admit_waiting(&mut self, batch: &mut ScheduledBatch, budget: &mut CatchUpBudget) {
        // Nobody overtakes the head, so it cannot starve. It is chosen only when there may be a place for it.
        while (self.may_admit() || self.ends_in_batch()) && self.head().is_some_and(|head| budget.affords(head)) {
            if self.admit_head().is_none() {
                if !self.makes_way() {
                    break;
                }
                self.preempt_last(batch);
                continue;
            }
            let Some(Taken { item: mut sequence, is_out_of_order }) = self.waiting.pop(self.now) else { break };
            if is_out_of_order {
                // Or it would give way again at once.
                sequence.id.class = sequence.id.class.raised();
            }
            let others_may_follow = !self.waiting.is_empty() && self.places_taken() < self.config.max_num_seqs;
            sequence.num_scheduled = budget.take(&sequence, Demand::of(usize::from(others_may_follow)));
            if sequence.start() {
                batch.started_prompt_tokens += sequence.prompt_len() as u64;
            }
            // Before the next one is chosen.
            charge(&mut self.waiting, &self.costs, &mut sequence);
            self.insert_running(sequence);
        }
    }

    /// Gives the head of the queue its blocks, if there is a place for each of its choices.
    ///
    /// What the running sequences will grow into in the next step stays free: whoever was admitted into these blocks would
    /// lose them right away.
    fn admit_head(&mut self) -> Option<()> {
        let mut spare_blocks: usize = self.running.iter().map(|other| self.cache.blocks_of_next_step(other)).sum();
        let places_left = self.config.max_num_seqs - self.places_taken();
        let is_alone = self.running.is_empty();
        let (now, cache) = (self.now, &mut self.cache);
        let head = self.waiting.peek(now, |sequence| cache.cached_tokens(sequence))?;
        spare_blocks += usize::from(!is_alone && cache.is_full(head));
        if head.choices().len() > places_left { None } else { cache.admit(head, spare_blocks) }
    }

    fn head(&mut self) -> Option<&mut Sequence> {
        self.waiting.peek(self.now, |sequence| self.cache.cached_tokens(sequence))
    }

    /// The last of the running is of the class that gives way to the head of the queue.
    fn makes_way(&mut self) -> bool {
        let head_is_better = self.head().is_some_and(|head| head.id.class < Class::Batch);
        head_is_better && self.ends_in_batch()
    }

    fn ends_in_batch(&self) -> bool {
        self.running.last().is_some_and(|last| last.id.class == Class::Batch)
    }

    fn insert_running(&mut self, sequence: Sequence) {
        let index = self.running.partition_point(|other| other.id < sequence.id);
        self.running.insert(index, sequence);
    }

    /// One for every choice, also while a prompt stands for several.
    fn places_taken(&self) -> usize {
        self.running.iter().map(|sequence| sequence.choices().len()).sum()
    }

    fn may_admit(&self) -> bool {
        !self.waiting.is_empty() && self.places_taken() < self.config.max_num_seqs
    }

    fn index_of(&self, id: SequenceId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }
}

/// Takes the price of what a sequence computes for the first time from its share's credit.
fn charge(waiting: &mut WaitingQueue<Sequence>, costs: &CostModel, sequence: &mut Sequence) {
    if let Some(unpaid) = sequence.charge_scheduled() {
        let price = costs.of_tokens(unpaid.start, unpaid.len());
        waiting.charge(sequence.share, sequence.share_weight, price);
    }
}

#[cfg(test)]
mod fairness;
#[cfg(test)]
mod tests;
