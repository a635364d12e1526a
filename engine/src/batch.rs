//! What the scheduler decides, and what the rest of a step works through.

use passerelle_models::BlockCopy;

use crate::cost::CostNs;
use crate::sequence::SequenceId;

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
    /// Sequences that lost their blocks.
    pub(crate) preemptions: usize,
    /// Prompt tokens of requests whose first step this is.
    pub(crate) started_prompt_tokens: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ScheduledSequence {
    pub(crate) id: SequenceId,
    pub(crate) num_tokens: usize,
    pub(crate) cost: CostNs,
}
