//! What the engine tells about itself: a snapshot for whoever asks, a report per step for whoever measures.

use std::time::Duration;

use crate::cost::CostModel;
use crate::fault::FaultCounts;

/// A snapshot, taken at the end of a step. Totals only grow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Requests that wait for their first step.
    pub waiting: usize,
    /// Prompt tokens of those.
    pub waiting_tokens: usize,
    /// Sequences that wait to run again: they were preempted, or parked and granted more.
    pub resuming: usize,
    /// Sequences that wait for [`crate::EventStream::grant`].
    pub parked: usize,
    /// Blocks of the KV cache.
    pub total_blocks: usize,
    /// Blocks that no sequence holds, whether they still carry a reusable prefix or not.
    pub free_blocks: usize,
    /// Blocks that can be found by their prefix.
    pub cached_blocks: usize,
    /// Tokens that were looked up in the prefix cache.
    pub prefix_query_tokens_total: u64,
    /// Tokens that were found there.
    pub prefix_hit_tokens_total: u64,
    /// The sum of `prompt_tokens` over every request's [`crate::Usage`].
    pub prompt_tokens_total: u64,
    /// The sum of `generated_tokens` over every request's [`crate::Usage`].
    pub generated_tokens_total: u64,
    /// The sum of `measured_ns` over every request's [`crate::Usage`].
    pub measured_ns_total: u64,
    /// Time of steps beside that: of requests that left during the step.
    pub unclaimed_ns_total: u64,
    /// Sequences that gave their blocks to one before them.
    pub preemptions_total: u64,
    /// Requests that failed by no fault of their own: [`crate::RequestError::is_engine_fault`].
    pub failures_total: u64,
    /// Steps that ran and in which not every sequence failed.
    pub steps_total: u64,
    /// How far apart the shares that wait are, in modelled time over weight: see `engine/src/policy.rs`.
    pub fair_share_gap: Duration,
    /// It is never more than this.
    pub fair_share_bound: Duration,
    /// Three requests failed within the minute that ends here, on the engine's clock. May lie in the past.
    pub distrusted_until: Option<Duration>,
    /// When the present step began, on the engine's clock, its turn taken. `None` between steps and while idle.
    pub step_started: Option<Duration>,
    /// When the last step ended, on the engine's clock.
    pub last_step_end: Option<Duration>,
}

/// One step, as measured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepReport {
    /// From taking the turn to the last token.
    pub duration: Duration,
    /// Sequences in the batch. 0 if there was nothing to run.
    pub num_sequences: usize,
    /// Tokens run to catch up: prompts, and answers that are recomputed after a preemption.
    pub prompt_tokens: usize,
    /// Tokens delivered to requests.
    pub generated_tokens: usize,
    /// Sequences preempted while scheduling.
    pub preemptions: usize,
    /// Requests that failed by no fault of their own.
    pub failures: FaultCounts,
    /// Sequences that hold blocks, after the step.
    pub running: usize,
    /// Requests that wait for their first step, and sequences that wait to run again, preempted or granted more: after the
    /// step.
    pub waiting: usize,
    /// How far apart the shares that wait are, after the step.
    pub fair_share_gap: Duration,
    /// It is never more than this.
    pub fair_share_bound: Duration,
    /// Blocks that no sequence holds, after the step.
    pub free_blocks: usize,
    /// Blocks of the KV cache.
    pub total_blocks: usize,
    /// Tokens looked up in the prefix cache during the step.
    pub prefix_query_tokens: u64,
    /// Tokens found there during the step.
    pub prefix_hit_tokens: u64,
}

/// Hears every step, on the engine's thread; must not block.
pub trait StepObserver: Send + Sync {
    /// Called once after each step that ran something or ended a request; the last reader may leave an engine with
    /// nothing to run.
    fn step(&self, report: &StepReport);

    /// What the step brought is with its readers.
    fn concluded(&self) {}

    /// What work costs, once every kind of step was measured as often as makes it worth keeping. In an idle moment.
    fn costs_measured(&self, _costs: &CostModel) {}
}

/// Measures nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullObserver;

impl StepObserver for NullObserver {
    fn step(&self, _: &StepReport) {}
}
