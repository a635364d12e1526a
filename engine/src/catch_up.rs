//! What one step may spend on sequences that are more than one token behind, and how they share it.

use crate::sequence::Sequence;

/// What is left of one step.
#[derive(Debug)]
pub(crate) struct CatchUpBudget {
    pub(crate) tokens: usize,
    /// Rows of logits for prompt positions. Each costs a whole row in memory.
    pub(crate) prompt_logprob_rows: usize,
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
    /// Whether `sequence` would get anything.
    pub(crate) fn affords(&self, sequence: &Sequence) -> bool {
        self.tokens > 0 && (self.prompt_logprob_rows > 0 || sequence.sampling.prompt_logprobs.is_none())
    }

    /// Takes what `sequence` may run beside what it was given in this step already.
    pub(crate) fn take(&mut self, sequence: &Sequence, demand: Demand) -> usize {
        let wanted = sequence.num_remaining() - sequence.num_scheduled;
        let mut tokens = wanted.min(demand.share_of(self.tokens));
        if sequence.sampling.prompt_logprobs.is_some() {
            tokens = tokens.min(demand.share_of(self.prompt_logprob_rows));
            self.prompt_logprob_rows -= tokens;
        }
        self.tokens -= tokens;
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
