//! What one step may spend on sequences that are more than one token behind, and how they share it.

use crate::config::EngineConfig;
use crate::cost::{CostModel, CostNs};
use crate::sequence::Sequence;

/// What is left of one step.
#[derive(Debug)]
pub(crate) struct CatchUpBudget {
    pub(crate) tokens: usize,
    /// By the cost model. A step whose time is used up by less than a token still takes one, so that prompts get on.
    pub(crate) time: CostNs,
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
    /// Others too: this one gets half of what is left at most, so that no prompt, however long, shuts the rest out.
    Contended,
}

impl CatchUpBudget {
    /// What is left once every sequence that is one token behind has its token. Beside those, `time` may be spent.
    pub(crate) fn of_step(config: &EngineConfig, costs: CostModel, (num_one_behind, time): (usize, CostNs)) -> Self {
        let left = config.max_num_batched_tokens - num_one_behind;
        let (tokens, time) = match num_one_behind {
            0 => (left, CostNs::MAX >> 1),
            _ => (left.min(config.prefill_chunk_tokens), time),
        };
        let prompt_logprob_rows = config.prompt_logprobs_chunk_tokens;
        Self { tokens, time, costs, prompt_logprob_rows, is_untouched: true }
    }

    /// Whether `sequence` would get anything.
    pub(crate) fn affords(&self, sequence: &Sequence) -> bool {
        let has_time = self.is_untouched || self.costs.tokens_within(0, self.time) > 0;
        self.tokens > 0 && has_time && (self.prompt_logprob_rows > 0 || sequence.sampling.prompt_logprobs.is_none())
    }

    /// Takes what `sequence` may run beside what it was given in this step already.
    pub(crate) fn take(&mut self, sequence: &Sequence, demand: Demand) -> usize {
        let wanted = sequence.num_remaining() - sequence.num_scheduled;
        if wanted == 0 {
            return 0;
        }
        let start = sequence.num_computed + sequence.num_scheduled;
        let in_time = self.costs.tokens_within(start, demand.share_of(self.time as usize) as CostNs);
        let least = usize::from(self.is_untouched);
        let mut tokens = wanted.min(demand.share_of(self.tokens)).min(in_time.max(least));
        if sequence.sampling.prompt_logprobs.is_some() {
            tokens = tokens.min(demand.share_of(self.prompt_logprob_rows));
            self.prompt_logprob_rows -= tokens;
        }
        if tokens > 0 {
            self.is_untouched = false;
            self.tokens -= tokens;
            self.time = self.time.saturating_sub(self.costs.of_tokens(start, tokens));
        }
        tokens
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
