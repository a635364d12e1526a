//! What one step may spend on sequences that are more than one token behind, and how they share it.

use crate::config::EngineConfig;
use crate::cost::{CostModel, CostNs};
use crate::request::Class;
use crate::scheduler::StreamsOfStep;
use crate::sequence::Sequence;

/// Halves and sums of it are still times.
pub(crate) const UNBOUNDED: CostNs = CostNs::MAX >> 1;

/// What is left of one step.
#[derive(Debug)]
pub(crate) struct CatchUpBudget {
    pub(crate) tokens: usize,
    /// By the cost model. A step whose time is used up by less than a token still takes one, so that prompts get on.
    pub(crate) time: CostNs,
    /// What batch may take of it. `None`: not even a token.
    pub(crate) batch_time: Option<CostNs>,
    pub(crate) costs: CostModel,
    /// Rows of logits for prompt positions. Each costs a whole row in memory.
    pub(crate) prompt_logprob_rows: usize,
    /// Nobody took anything yet.
    pub(crate) is_untouched: bool,
}

/// Who wants a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nobody after this sequence.
    Last,
    /// Others too: this one gets half of what is left at most, so that no prompt, however long, shuts the rest out, unless it is
    /// done with what is left of a short step.
    Contended,
}

impl CatchUpBudget {
    /// What is left once the streams that move have their token. Beside those that are protected, `time` may be spent.
    pub(crate) fn of_step(config: &EngineConfig, costs: CostModel, streams: &StreamsOfStep, time: CostNs) -> Self {
        let (left, batch_time) = (config.max_num_batched_tokens - streams.moving.count, streams.batch_time);
        let (tokens, time) = match streams.num_protected {
            0 => (left, UNBOUNDED),
            _ => (left.min(config.prefill_chunk_tokens), time),
        };
        let prompt_logprob_rows = config.prompt_logprobs_chunk_tokens;
        Self { tokens, time, batch_time, costs, prompt_logprob_rows, is_untouched: true }
    }

    /// Whether anybody would get anything in `class`.
    pub(crate) fn affords(&self, class: Class) -> bool {
        let in_time = |time| self.is_untouched || self.costs.tokens_within(0, time) > 0;
        self.tokens > 0 && self.time_for(class).is_some_and(in_time)
    }

    /// Whether a row of log-probabilities is left for `sequence`, if it wants any.
    pub(crate) fn has_rows_for(&self, sequence: &Sequence) -> bool {
        self.prompt_logprob_rows > 0 || sequence.sampling.prompt_logprobs.is_none()
    }

    /// Takes what `sequence` may run that was just let in because one like it was afforded: at least one token.
    pub(crate) fn take_first(&mut self, sequence: &Sequence, demand: Demand) -> usize {
        self.take_at_least(1, sequence, demand)
    }

    /// Takes what `sequence` may run beside what it was given in this step already.
    pub(crate) fn take(&mut self, sequence: &Sequence, demand: Demand) -> usize {
        self.take_at_least(usize::from(self.is_untouched), sequence, demand)
    }

    fn take_at_least(&mut self, least: usize, sequence: &Sequence, demand: Demand) -> usize {
        let wanted = sequence.num_remaining() - sequence.num_scheduled;
        let Some(time) = self.time_for(sequence.id.class).filter(|_| wanted > 0) else { return 0 };
        let start = sequence.num_computed + sequence.num_scheduled;
        let is_enough = self.is_enough_for(sequence, wanted, time);
        let demand = if is_enough { Demand::Last } else { demand };
        let in_time = self.costs.tokens_within(start, demand.share_of(time as usize) as CostNs);
        let in_time = if is_enough { wanted } else { in_time };
        let mut tokens = wanted.min(demand.share_of(self.tokens)).min(in_time.max(least));
        if sequence.sampling.prompt_logprobs.is_some() {
            tokens = tokens.min(demand.share_of(self.prompt_logprob_rows));
            self.prompt_logprob_rows -= tokens;
        }
        if tokens > 0 {
            self.is_untouched = false;
            self.tokens -= tokens;
            let cost = self.costs.of_tokens(start, tokens);
            self.time = self.time.saturating_sub(cost);
            // Beside prompts of better ones, batch may take as long again.
            self.batch_time = self.batch_time.map(|time| match sequence.id.class {
                Class::Batch => time.saturating_sub(cost),
                Class::Standard | Class::Interactive => time.saturating_add(cost),
            });
        }
        tokens
    }

    /// Then the sequence is out of the others' way after this step, which is short where streams are protected: where
    /// none is, those behind it would wait for as many tokens as a step has.
    fn is_enough_for(&self, sequence: &Sequence, wanted: usize, time: CostNs) -> bool {
        let start = sequence.num_computed + sequence.num_scheduled;
        let has_rows = sequence.sampling.prompt_logprobs.is_none() || wanted <= self.prompt_logprob_rows;
        // What is left where time has no bound is far above any that has.
        let is_short = time < UNBOUNDED / 2;
        is_short && wanted <= self.tokens && self.costs.of_tokens(start, wanted) <= time && has_rows
    }

    fn time_for(&self, class: Class) -> Option<CostNs> {
        if class == Class::Batch { self.batch_time.map(|time| time.min(self.time)) } else { Some(self.time) }
    }
}

impl Demand {
    pub(crate) fn of(num_others: usize) -> Self {
        if num_others == 0 { Self::Last } else { Self::Contended }
    }

    /// At least 1 if anything is left.
    fn share_of(self, left: usize) -> usize {
        match self {
            Self::Last => left,
            Self::Contended => left.div_ceil(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{request, sequence};

    #[test]
    fn who_is_let_in_runs_a_token_however_much_it_attends() {
        let costs = CostModel {
            prompt_token_ns: 10.0,
            generated_token_ns: 10.0,
            context_token_ns: 1.0,
            prompt_context_token_ns: 1.0,
            lone_token_ns: 10.0,
        };
        let (tokens, time, batch_time, prompt_logprob_rows) = (8, 12, Some(UNBOUNDED), 0);
        let mut budget = CatchUpBudget { tokens, time, batch_time, costs, prompt_logprob_rows, is_untouched: false };
        let (mut sequence, _stream) = sequence(request(0, &[0; 100]));
        assert!(budget.affords(sequence.id.class), "there is time for a token that attends itself");
        sequence.num_computed = 90;
        assert_eq!(budget.take(&sequence, Demand::Last), 0);
        assert_eq!(budget.take_first(&sequence, Demand::Last), 1);
        assert_eq!((budget.tokens, budget.time), (7, 0));
    }

    #[test]
    fn a_prompt_that_is_done_with_what_is_left_gets_all_of_it_and_any_other_half() {
        let costs = CostModel { prompt_token_ns: 10.0, prompt_context_token_ns: 0.0, ..CostModel::default() };
        let budget = || CatchUpBudget {
            tokens: 100,
            time: 300,
            batch_time: Some(UNBOUNDED),
            costs,
            prompt_logprob_rows: 0,
            is_untouched: true,
        };
        for (num_tokens, expected) in [(30, 30), (31, 15), (90, 15)] {
            let (sequence, _stream) = sequence(request(0, &vec![0; num_tokens]));
            assert_eq!(budget().take(&sequence, Demand::Contended), expected, "of {num_tokens}");
            assert_eq!(budget().take(&sequence, Demand::Last), 30, "of {num_tokens}");
        }
        let (mut sequence, _stream) = sequence(request(0, &[0; 30]));
        let mut few_tokens = CatchUpBudget { tokens: 29, ..budget() };
        assert_eq!(few_tokens.take(&sequence, Demand::Contended), 15, "in half of the time");
        let mut no_stream = CatchUpBudget { tokens: 40, time: UNBOUNDED, ..budget() };
        assert_eq!(no_stream.take(&sequence, Demand::Contended), 20, "where nobody generates");
        sequence.sampling.prompt_logprobs = Some(1);
        let mut few_rows = CatchUpBudget { prompt_logprob_rows: 29, ..budget() };
        assert_eq!(few_rows.take(&sequence, Demand::Contended), 15);
        let mut rows = CatchUpBudget { prompt_logprob_rows: 30, ..budget() };
        assert_eq!(rows.take(&sequence, Demand::Contended), 30);
    }
}
