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
//!   those of batch in turns, beside better ones        at most prefill_chunk_tokens, and no more than runs within
//!   ([`streams`])                                       max_added_latency, by default what [`Pace`] says of the left part,
//!                                                       if that is not empty ([`Overrun`])
//! ```
//!
//! The order is that of [`SequenceId`]: the better class, then age. Each sequence that catches up gets at most half of
//! what is left while others want some too, so a long prompt does not hold up a short one, unless what is left beside
//! streams is all that it needs; what nobody else could use goes to the first. Batch catches up with what better classes
//! leave, and whoever got nothing for `class_patience` is raised above its class.
//!
//! Room for every known token is taken when a sequence is admitted (behind a window, for as much as a step may run), so
//! it is generated tokens that run out of blocks. Then the last sequence gives its blocks back and waits at the head of
//! the queue; its tokens are kept and computed again. The first never gives way and fits alone, so work always gets done.
//! Batch sequences give their blocks, places and tokens to a better class that waits ([`entry`]).
//!
//! A sequence that has generated what was granted to it is parked: it keeps its tokens and its age, but neither blocks
//! nor a place among the running, so it holds up nobody. Its cached prefix makes its return cheap. A new one
//! whose beginning is just being computed for another waits for that beside the queue ([`held`]).

use std::collections::BTreeMap;
use std::time::Duration;

use passerelle_models::{BlockId, KvCacheSpec};

use crate::batch::{ScheduledBatch, ScheduledSequence, StepSequences};
use crate::catch_up::{CatchUpBudget, Demand};
use crate::config::EngineConfig;
use crate::cost::{CostModel, CostNs};
use crate::event_stream::EventSender;
use crate::kv_cache_manager::{KvCacheManager, Prefixes};
use crate::overrun::Overrun;
use crate::pace::{Pace, Prompts};
use crate::policy::{Waiting, WaitingQueue, take_out};
use crate::request::Class;
use crate::running::Running;
use crate::sequence::{Sequence, SequenceId};
use credit::{charge, queue};
pub(crate) use streams::StreamsOfStep;
use streams::Turn;

mod credit;
mod entry;
mod held;
mod streams;

#[derive(Debug)]
pub(crate) struct Scheduler {
    config: EngineConfig,
    costs: CostModel,
    overrun: Overrun,
    pace: Pace,
    /// In which better ones than batch generated.
    steps_of_better: u64,
    /// Of the last step that gave any; kept for its memory.
    turns: Vec<Turn>,
    /// Kept for its memory, too.
    former_batch: ScheduledBatch,
    /// No two credits that wait are further apart, see [`crate::policy`].
    fairness_bound: CostNs,
    /// When the present step began.
    now: Duration,
    running: Running,
    /// Each needs a grant.
    parked: BTreeMap<SequenceId, Sequence>,
    waiting: WaitingQueue<Sequence>,
    /// Each waits for what another is computing, or for the next step's rows of log-probabilities.
    held: Vec<Waiting<Sequence>>,
    /// Of those that wait, the ones that ran or were parked before.
    num_resuming: usize,
    cache: KvCacheManager,
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig, costs: CostModel, kv_cache: KvCacheSpec) -> Self {
        let cache = KvCacheManager::new(config.num_kv_blocks, kv_cache, config.max_num_batched_tokens);
        let (waiting, fairness_bound) = queue(&config, &costs);
        let (now, running, parked) = (Duration::ZERO, Running::default(), BTreeMap::new());
        let (steps_of_better, turns, former_batch, held, num_resuming) = Default::default();
        Self {
            config,
            costs,
            overrun: Overrun::new(costs),
            pace: Pace::default(),
            steps_of_better,
            turns,
            former_batch,
            fairness_bound,
            now,
            running,
            parked,
            waiting,
            held,
            num_resuming,
            cache,
        }
    }

    /// From now on. Nothing may be inside: credits in other prices would mean nothing.
    pub(crate) fn set_costs(&mut self, costs: CostModel) {
        assert!(self.is_empty(), "prices change while sequences are inside");
        (self.waiting, self.fairness_bound) = queue(&self.config, &costs);
        self.costs = costs;
        // Its ratios are to the former prices.
        self.overrun = Overrun::new(costs);
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
        let mut batch = std::mem::take(&mut self.former_batch).cleared();
        self.park();
        self.unpark();
        self.return_held();
        self.running.raise_overdue(now, self.config.class_patience);
        self.leave_a_token(&mut batch);
        let streams = self.schedule_streams();
        if streams.num_protected > 0 {
            batch.num_one_behind = streams.moving.count;
        }
        let alone = Duration::from_nanos(self.overrun.of_streams(streams.moving));
        batch.most_added = self.pace.added(self.config.max_added_latency, alone);
        let time = self.overrun.budget(batch.most_added);
        let mut budget = CatchUpBudget::of_step(&self.config, self.costs, &streams, time);
        let catch_up_tokens = budget.tokens;
        self.hand_out(&mut batch, &mut budget);
        self.let_somebody_move(&mut batch);
        batch.catch_up_tokens = catch_up_tokens - budget.tokens;
        batch.prompts = self.prompts_left(streams.worst_protected);
        self.conclude(&mut batch);
        batch
    }

    /// The step that ran `batch` took so long, which the next ones reckon with.
    pub(crate) fn note_duration(&mut self, batch: &ScheduledBatch, took: Duration) {
        self.overrun.note(batch, took);
        if batch.num_one_behind > 0 {
            self.pace.note(took, batch.prompts);
        }
    }

    /// What was scheduled last, while nobody has left or joined since.
    pub(crate) fn sequences_of<'a>(&'a self, batch: &'a ScheduledBatch) -> StepSequences<'a> {
        StepSequences::new(self.running.as_slice(), batch)
    }

    /// The step is over: the next batch stands in the memory of this one.
    pub(crate) fn take_back(&mut self, batch: ScheduledBatch) {
        self.former_batch = batch;
    }

    /// The step in flight succeeded for this sequence: what was scheduled is computed.
    pub(crate) fn advance(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        let sequence = self.running.get_mut(id)?;
        self.cache.advance(sequence);
        Some(sequence)
    }

    /// The prompt of several choices is computed: a sequence for a further one, which shares the blocks. Their places
    /// were kept when the prompt was admitted.
    pub(crate) fn fork(&mut self, id: SequenceId, events: EventSender) -> Option<SequenceId> {
        let parent = self.running.get(id)?;
        let mut fork = parent.fork(events);
        self.cache.share(parent, &mut fork);
        self.waiting.enter(fork.share);
        let fork_id = fork.id;
        self.running.insert(fork);
        Some(fork_id)
    }

    pub(crate) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.get(id)
    }

    pub(crate) fn sequence_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.get_mut(id)
    }

    /// Takes a running sequence out for good.
    pub(crate) fn remove(&mut self, id: SequenceId, prefixes: Prefixes) -> Option<Sequence> {
        let mut sequence = self.running.remove(id)?;
        self.cache.release(&mut sequence, prefixes);
        self.waiting.leave(sequence.share);
        Some(sequence)
    }

    /// Takes out, wherever it is, every sequence that `unwanted` names.
    pub(crate) fn extract(&mut self, unwanted: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut taken = self.waiting.extract(|sequence| unwanted(sequence));
        for aside in self.held.extract_if(.., |aside| unwanted(&aside.item)) {
            self.waiting.forget_aside(aside.item.share);
            taken.push(aside.item);
        }
        self.num_resuming -= taken.iter().filter(|sequence| sequence.is_resuming()).count();
        taken.extend(take_out(&mut self.parked, |sequence| unwanted(sequence)));
        taken.iter().for_each(|sequence| self.waiting.leave(sequence.share));
        let ids: Vec<_> =
            self.running.iter().filter(|sequence| unwanted(sequence)).map(|sequence| sequence.id).collect();
        taken.extend(ids.into_iter().filter_map(|id| self.remove(id, Prefixes::Keep)));
        taken
    }

    /// A step would find something to run.
    pub(crate) fn has_work(&self) -> bool {
        let wait = || !self.waiting.is_empty() || !self.held.is_empty();
        !self.running.is_empty() || wait() || self.parked.values().any(|parked| !parked.is_parked())
    }

    /// Nothing runs, waits or is parked.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.held.is_empty() && self.parked.is_empty()
    }

    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn num_parked(&self) -> usize {
        self.parked.len()
    }

    /// Those that wait to run again: they were preempted, or parked and granted more.
    pub(crate) fn num_resuming(&self) -> usize {
        self.num_resuming
    }

    /// How far the shares that wait have drifted apart, and how far they can.
    pub(crate) fn fairness(&self) -> (CostNs, CostNs) {
        (self.waiting.widest_gap(), self.fairness_bound)
    }

    pub(crate) fn cache(&self) -> &KvCacheManager {
        &self.cache
    }

    /// Blocks for steps that nobody asked for: see [`KvCacheManager::evict`].
    pub(crate) fn evict(&mut self, num_blocks: usize) -> Vec<BlockId> {
        self.cache.evict(num_blocks)
    }

    /// # Panics
    /// If blocks, sequences and their order do not add up.
    pub(crate) fn check_integrity(&self) {
        self.cache.check_integrity(self.running.iter());
        self.running.check_integrity();
        assert!(self.running.places_taken() <= self.config.max_num_seqs, "more sequences run than may");
        assert!(self.waiting.widest_gap() <= self.fairness_bound, "the shares have drifted too far apart");
        let waiting = self.waiting.iter().chain(self.held.iter().map(|aside| &aside.item));
        let num_resuming = waiting.filter(|sequence| sequence.is_resuming()).count();
        assert_eq!(self.num_resuming, num_resuming, "who waits to run again is miscounted");
        let mut outside = self.parked.values().chain(self.held.iter().map(|aside| &aside.item));
        assert!(outside.all(|sequence| sequence.block_tables.is_empty()), "who does not run holds no blocks");
    }

    /// Every sequence gets its part of the step, the better classes before batch.
    fn hand_out(&mut self, batch: &mut ScheduledBatch, budget: &mut CatchUpBudget) {
        let next = self.next_class();
        let best = self.classes_behind().chain(next).min();
        let worst = if best.is_some_and(|best| best < Class::Batch) { Class::Standard } else { Class::Batch };
        // Blocks that a preemption has just freed belong to the sequence that needed them.
        let preemptions = batch.preemptions;
        self.schedule_running(worst, batch, budget);
        if batch.preemptions == preemptions {
            self.admit_waiting(worst, batch, budget);
        }
        self.give_the_rest(budget);
        if worst < Class::Batch && batch.preemptions == preemptions {
            self.admit_waiting(Class::Batch, batch, budget);
            self.give_the_rest(budget);
        }
    }

    fn give_the_rest(&mut self, budget: &mut CatchUpBudget) {
        for sequence in self.running.iter_mut().filter(|sequence| sequence.num_remaining() > 1) {
            sequence.num_scheduled += budget.take(sequence, Demand::Last);
        }
    }

    /// Those up to class `worst` catch up, and whoever runs has room.
    fn schedule_running(&mut self, worst: Class, batch: &mut ScheduledBatch, budget: &mut CatchUpBudget) {
        let next = self.next_class();
        let mut num_wanting = self.classes_behind().chain(next).filter(|&class| class <= worst).count();
        let mut index = 0;
        while let Some(sequence) = self.running.at_mut(index) {
            let is_stream = sequence.num_remaining() == 1;
            if !is_stream && sequence.id.class <= worst {
                num_wanting -= 1;
                sequence.num_scheduled = budget.take(sequence, Demand::of(num_wanting));
            }
            let has_a_turn = !is_stream || sequence.num_scheduled > 0;
            if has_a_turn && !self.make_room(index, batch) {
                break;
            }
            index += 1;
        }
    }

    /// Puts a price to what runs, and notes who goes on and who does not.
    fn conclude(&mut self, batch: &mut ScheduledBatch) {
        batch.sequences.reserve(self.running.len());
        let mut best_behind: Option<Class> = None;
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.num_scheduled == 0 {
                sequence.idle_since = sequence.idle_since.or(Some(self.now));
                continue;
            }
            sequence.idle_since = None;
            let cost = self.costs.of_tokens(sequence.num_computed, sequence.num_scheduled);
            if sequence.num_remaining() > 1 {
                batch.catch_up_cost += cost;
                // By its own class: in a turn out of order it goes before nobody of that.
                let class = sequence.share.class;
                best_behind = Some(best_behind.map_or(class, |best| best.min(class)));
            }
            batch.sequences.push(ScheduledSequence {
                id: sequence.id,
                index,
                num_tokens: sequence.num_scheduled,
                cost,
            });
            charge(&mut self.waiting, &self.costs, sequence);
        }
        if let Some(class) = best_behind {
            self.waiting.note_turn(class, self.now);
        }
    }

    /// What the step leaves undone of those up to class `worst`.
    fn prompts_left(&mut self, worst: Class) -> Prompts {
        let next = self.next_class();
        let behind = self.running.iter().filter(|sequence| sequence.num_remaining() > 1);
        let left = behind.filter(|sequence| sequence.num_scheduled < sequence.num_remaining());
        let classes = left.map(|sequence| sequence.id.class).chain(next);
        if classes.filter(|&class| class <= worst).count() > 1 { Prompts::Wait } else { Prompts::Pass }
    }

    /// Of those that run and are more than a token behind.
    fn classes_behind(&self) -> impl Iterator<Item = Class> {
        self.running.iter().filter(|sequence| sequence.num_remaining() > 1).map(|sequence| sequence.id.class)
    }

    /// Preempts from the end until the sequence at `index` has room. False if it had to go itself.
    fn make_room(&mut self, index: usize, batch: &mut ScheduledBatch) -> bool {
        while let Some(sequence) = self.running.at_mut(index) {
            if self.cache.grow(sequence, &mut batch.copies).is_some() {
                return true;
            }
            self.preempt_last(batch);
        }
        false
    }

    fn preempt_last(&mut self, batch: &mut ScheduledBatch) {
        let Some(mut last) = self.running.pop_last() else { return };
        self.cache.preempt(&mut last, &mut batch.copies);
        (last.num_scheduled, last.idle_since) = (0, None);
        self.num_resuming += 1;
        self.waiting.push_preempted(last.share, last.id, last);
        batch.preemptions += 1;
    }
}

#[cfg(test)]
mod fairness;
#[cfg(test)]
mod tests;
