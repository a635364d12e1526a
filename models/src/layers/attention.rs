use candle_core::Tensor;

use super::linear::Linear;
use super::names::LayerNames;
use crate::config::AttentionSpec;
use crate::kv_cache::KvLayer;
use crate::ops::{self, AttentionParams, AttentionPlan, Compute, RotaryAngles};
use crate::weights::WeightLoader;
use crate::{ModelError, ModelInput};

/// Grouped-query attention over the paged cache.
#[derive(Debug)]
pub(super) struct Attention {
    /// Query, key and value in one product.
    qkv: Linear,
    output: Linear,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    params: AttentionParams,
}

/// What every layer of one step shares.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) compute: &'a Compute,
    pub(super) input: &'a ModelInput,
    pub(super) plan: AttentionPlan<'a>,
    pub(super) angles: RotaryAngles,
}

impl Attention {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &LayerNames<'_>,
        hidden_size: usize,
        spec: &AttentionSpec,
    ) -> Result<Self, ModelError> {
        let (query_size, kv_size) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
        let parts = names.names;
        let qkv = [(parts.query, query_size), (parts.key, kv_size), (parts.value, kv_size)];
        let output = [(parts.attention_output, hidden_size)];
        Ok(Self {
            qkv: Linear::load(loader, names, hidden_size, (&qkv, spec.qkv_bias))?,
            output: Linear::load(loader, names, query_size, (&output, spec.output_bias))?,
            num_heads: spec.num_heads,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            params: AttentionParams { scale: spec.scale },
        })
    }

    /// `[m, hidden]` to `[m, hidden]`. Keys and values go through the cache, also those of this step.
    pub(super) fn forward(&self, step: &Step<'_>, x: &Tensor, cache: &mut KvLayer) -> Result<Tensor, ModelError> {
        let (query_size, kv_size) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let qkv = self.qkv.forward(step.compute, x)?;
        let q = ops::rope(step.compute, &qkv.narrow(1, 0, query_size)?, self.head_dim, &step.angles)?;
        let k = ops::rope(step.compute, &qkv.narrow(1, query_size, kv_size)?, self.head_dim, &step.angles)?;
        let v = qkv.narrow(1, query_size + kv_size, kv_size)?;
        ops::store_kv(step.compute, &k, &v, step.input.slots(), cache)?;
        let attended = ops::paged_attention(step.compute, &q, cache, &step.plan, &self.params)?;
        self.output.forward(step.compute, &attended)
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.qkv.size_bytes() + self.output.size_bytes()
    }
}
