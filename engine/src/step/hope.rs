//! Whether a model still runs anything, asked when all that it was given lately failed.

use passerelle_models::TokenId;
use passerelle_models::input::SequenceInput;

use super::StepLoop;
use crate::logprobs::checked_max;

/// Every vocabulary has it.
const TOKEN: TokenId = 0;

impl StepLoop {
    /// Runs one token of nobody's. What users ask may fail as often as they like: only a model that cannot run this either
    /// will not recover. Where no block is free for it, others still run.
    pub(super) fn model_still_runs(&mut self) -> bool {
        let block = self.scheduler.evict(1);
        if block.is_empty() {
            return true;
        }
        let block_tables = vec![block; self.runner.cache().spec().groups.len()];
        let input = SequenceInput { tokens: &[TOKEN], num_computed: 0, block_tables: &block_tables, sample: &[0] };
        let logits = self.runner.rows(&[input]);
        logits.and_then(|rows| checked_max(rows.row(0))).is_ok()
    }
}
