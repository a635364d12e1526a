//! What the scheduler decides, and what the rest of a step works through.

use std::time::Duration;

use passerelle_models::BlockCopy;

use crate::cost::CostNs;
use crate::pace::Prompts;
use crate::sequence::{Sequence, SequenceId};

/// One step's decision.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ScheduledBatch {
    /// In order.
    pub(crate) sequences: Vec<ScheduledSequence>,
    /// To be done before the step runs.
    pub(crate) copies: Vec<BlockCopy>,
    /// Tokens of sequences that catch up.
    pub(crate) catch_up_tokens: usize,
    /// Their price.
    pub(crate) catch_up_cost: CostNs,
    /// Sequences that were one token behind and run it, for whose sake others catch up within a bound.
    pub(crate) num_one_behind: usize,
    /// That bound.
    pub(crate) most_added: Duration,
    /// Those that are not done with what they get.
    pub(crate) prompts: Prompts,
    /// Sequences that lost their blocks.
    pub(crate) preemptions: usize,
    /// Prompt tokens of requests whose first step this is.
    pub(crate) started_prompt_tokens: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ScheduledSequence {
    pub(crate) id: SequenceId,
    /// Where it stands among those that run, until the first of them leaves or joins.
    pub(crate) index: usize,
    pub(crate) num_tokens: usize,
    pub(crate) cost: CostNs,
}

/// The sequences of a batch that is about to run, each at its place there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepSequences<'a> {
    running: &'a [Sequence],
    scheduled: &'a [ScheduledSequence],
}

impl ScheduledBatch {
    /// For the next step: nothing, in the memory of this one.
    pub(crate) fn cleared(self) -> Self {
        let Self { mut sequences, mut copies, .. } = self;
        sequences.clear();
        copies.clear();
        Self { sequences, copies, ..Self::default() }
    }
}

impl<'a> StepSequences<'a> {
    pub(crate) fn new(running: &'a [Sequence], batch: &'a ScheduledBatch) -> Self {
        Self { running, scheduled: &batch.sequences }
    }

    pub(crate) fn len(self) -> usize {
        self.scheduled.len()
    }

    pub(crate) fn at(self, place: usize) -> &'a Sequence {
        let ScheduledSequence { id, index, .. } = self.scheduled[place];
        let sequence = &self.running[index];
        debug_assert_eq!(sequence.id, id, "nobody has left or joined since");
        sequence
    }
}
