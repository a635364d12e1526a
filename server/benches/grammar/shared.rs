//! One model for two engines: whatever its memory is like, both meet the same.

use std::sync::Arc;

use passerelle_models::ops::{OnProcessors, RowQuestion};
use passerelle_models::{BlockCopy, CausalLm, KvCache, KvCacheSpec, Logits, ModelError, ModelInput, Pulse};

#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<dyn CausalLm>);

impl CausalLm for Shared {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn input_vocab_size(&self) -> usize {
        self.0.input_vocab_size()
    }

    fn max_position(&self) -> usize {
        self.0.max_position()
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.0.kv_cache_spec()
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.0.new_kv_cache(num_blocks)
    }

    fn pulse(&self) -> Pulse {
        self.0.pulse()
    }

    fn enter(&self) -> Option<OnProcessors> {
        self.0.enter()
    }

    fn copy_blocks(&self, copies: &[BlockCopy], cache: &mut KvCache) -> Result<(), ModelError> {
        self.0.copy_blocks(copies, cache)
    }

    fn forward(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        self.0.forward(input, cache)
    }

    fn forward_asked(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        questions: &[Option<RowQuestion>],
    ) -> Result<Logits, ModelError> {
        self.0.forward_asked(input, cache, questions)
    }
}
