use passerelle_models::{CausalLm, KvCache, KvCacheSpec, Logits, ModelError, ModelInput};

use super::{full_kv_cache, new_kv_cache};

/// Costs nothing, so that what a step takes is the engine's own: answers every row alike.
#[derive(Debug, Clone)]
pub struct FreeModel {
    row: Vec<f32>,
}

impl FreeModel {
    /// `row` holds a logit for each token of the vocabulary.
    pub fn new(row: Vec<f32>) -> Self {
        Self { row }
    }
}

impl CausalLm for FreeModel {
    fn vocab_size(&self) -> usize {
        self.row.len()
    }

    fn input_vocab_size(&self) -> usize {
        self.row.len()
    }

    fn max_position(&self) -> usize {
        1 << 20
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        full_kv_cache(16)
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        new_kv_cache(self.kv_cache_spec(), num_blocks)
    }

    fn forward(&self, input: &ModelInput, _: &mut KvCache) -> Result<Logits, ModelError> {
        Ok(Logits::new(self.row.len(), self.row.repeat(input.rows_to_sample().len())))
    }
}
