//! The engine's bounds. Whoever reads configuration fills them in; this file only checks them.

use std::time::Duration;

use crate::admission::AdmissionBounds;
use crate::cost::CostModel;

/// Every bound of one engine. Those of blocks, sequences, requests and tokens are at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Physical blocks of the KV cache. The block size is the model's.
    pub num_kv_blocks: usize,
    /// Sequences that run at the same time.
    pub max_num_seqs: usize,
    /// Tokens one step runs, over all sequences. At least `max_num_seqs`, so that every running stream moves each step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: usize,
    /// Requests that wait for their first step.
    pub max_waiting_requests: usize,
    /// Prompt tokens over all requests that wait for their first step.
    pub max_waiting_tokens: usize,
    /// Prompt tokens a step may carry while other sequences generate: what a long prompt may add to the time between
    /// two tokens of a running stream.
    pub prefill_chunk_tokens: usize,
    /// Prompt tokens whose log-probabilities are wanted that a step may run, over all sequences, because each costs a
    /// whole row of logits in memory.
    pub prompt_logprobs_chunk_tokens: usize,
    /// What prompts may add to a step in which sequences generate: the further time between two tokens of a running stream.
    /// Kept by the cost model and by how much longer steps have taken, up to four times: where they take longer than that, it
    /// is passed. One token of a prompt always runs.
    pub max_added_latency: AddedLatency,
    /// How long a class waits, at most, for a turn while better ones take them all.
    pub class_patience: Duration,
    /// What work costs. `None`: measured at start-up, with the real model.
    pub costs: Option<CostModel>,
    /// What it cost where the model ran before, by [`StepObserver::costs_measured`](crate::StepObserver::costs_measured):
    /// taken in place of the steps that a start would measure with, until as many have run in idle moments.
    pub former_costs: Option<CostModel>,
    /// Seeds the draws of requests that bring no seed of their own.
    pub seed: u64,
}

/// A bound of what prompts add to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddedLatency {
    /// By what the step takes without them, and by how long they have been waiting: `engine/src/pace.rs` says how.
    #[default]
    Paced,
    /// So long, whatever the step takes.
    AtMost(Duration),
}

/// A bound that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The named bound is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// A step could not give every running sequence a token.
    #[error("max_num_batched_tokens ({max_num_batched_tokens}) is below max_num_seqs ({max_num_seqs})")]
    BudgetBelowSequences {
        /// As configured.
        max_num_batched_tokens: usize,
        /// As configured.
        max_num_seqs: usize,
    },
    /// The checkpoint has no positions for sequences this long.
    #[error("max_model_len ({max_model_len}) is above the {max_position} positions of the model")]
    BeyondPositions {
        /// As configured.
        max_model_len: usize,
        /// What the checkpoint allows.
        max_position: usize,
    },
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            num_kv_blocks: 1024,
            max_num_seqs: 64,
            max_num_batched_tokens: 2048,
            max_model_len: 4096,
            max_waiting_requests: 256,
            max_waiting_tokens: 262_144,
            prefill_chunk_tokens: 512,
            prompt_logprobs_chunk_tokens: 64,
            max_added_latency: AddedLatency::default(),
            class_patience: Duration::from_secs(30),
            costs: Some(CostModel::default()),
            former_costs: None,
            seed: 0,
        }
    }
}

impl ConfigError {
    /// Errors with the first of `bounds` that is zero.
    pub(crate) fn refuse_zero(bounds: &[(&'static str, usize)]) -> Result<(), Self> {
        bounds.iter().find(|(_, value)| *value == 0).map_or(Ok(()), |(name, _)| Err(Self::Zero(name)))
    }
}

impl EngineConfig {
    /// Errors name the first bound that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("num_kv_blocks", self.num_kv_blocks),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_model_len", self.max_model_len),
            ("max_waiting_requests", self.max_waiting_requests),
            ("max_waiting_tokens", self.max_waiting_tokens),
            ("prefill_chunk_tokens", self.prefill_chunk_tokens),
            ("prompt_logprobs_chunk_tokens", self.prompt_logprobs_chunk_tokens),
        ];
        ConfigError::refuse_zero(&bounds)?;
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(ConfigError::BudgetBelowSequences {
                max_num_batched_tokens: self.max_num_batched_tokens,
                max_num_seqs: self.max_num_seqs,
            });
        }
        Ok(())
    }

    pub(crate) fn admission(&self) -> AdmissionBounds {
        AdmissionBounds {
            max_waiting_requests: self.max_waiting_requests,
            max_waiting_tokens: self.max_waiting_tokens,
            max_running_requests: self.max_num_seqs,
        }
    }

    /// [`EngineConfig::validate`], and that the model's positions reach `max_model_len`.
    pub(crate) fn validate_for(&self, max_position: usize) -> Result<(), ConfigError> {
        self.validate()?;
        if self.max_model_len > max_position {
            return Err(ConfigError::BeyondPositions { max_model_len: self.max_model_len, max_position });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_at_least_one_and_the_budget_covers_all_sequences() {
        assert_eq!(EngineConfig::default().validate(), Ok(()));
        let zero = EngineConfig { prefill_chunk_tokens: 0, ..EngineConfig::default() };
        assert_eq!(zero.validate(), Err(ConfigError::Zero("prefill_chunk_tokens")));
        let tight = EngineConfig { max_num_batched_tokens: 7, max_num_seqs: 8, ..EngineConfig::default() };
        assert!(matches!(tight.validate(), Err(ConfigError::BudgetBelowSequences { .. })));
        let long = EngineConfig { max_model_len: 4097, ..EngineConfig::default() };
        assert!(matches!(long.validate_for(4096), Err(ConfigError::BeyondPositions { .. })));
    }
}
