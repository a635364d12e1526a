use candle_core::{DType, Device, Tensor};

use crate::ModelError;

/// What the cache of one model looks like. Every layer is of one kind so far (full attention); windows and recurrent
/// state become further groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheSpec {
    pub num_layers: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub dtype: DType,
    /// Tokens per block. A multiple of the attention's KV tile, so that a tile never spans two blocks.
    pub block_size: usize,
}

impl KvCacheSpec {
    /// Bytes of K and V, over all layers, that one block takes.
    pub fn block_bytes(&self) -> usize {
        2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.size_in_bytes() * self.block_size
    }
}

/// The physical cache: per layer, K and V as `[num_blocks, block_size, num_kv_heads, head_dim]`.
#[derive(Debug)]
pub struct KvCache {
    spec: KvCacheSpec,
    num_blocks: usize,
    layers: Vec<KvLayer>,
}

/// One layer's blocks.
#[derive(Debug)]
pub struct KvLayer {
    pub k: Tensor,
    pub v: Tensor,
}

impl KvCache {
    pub fn new(spec: KvCacheSpec, num_blocks: usize, device: &Device) -> Result<Self, ModelError> {
        let shape = (num_blocks, spec.block_size, spec.num_kv_heads, spec.head_dim);
        let layers = (0..spec.num_layers)
            .map(|_| {
                Ok(KvLayer {
                    k: Tensor::zeros(shape, spec.dtype, device)?,
                    v: Tensor::zeros(shape, spec.dtype, device)?,
                })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self { spec, num_blocks, layers })
    }

    pub fn spec(&self) -> &KvCacheSpec {
        &self.spec
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    pub fn layer_mut(&mut self, layer: usize) -> &mut KvLayer {
        &mut self.layers[layer]
    }
}
