use candle_core::{DType, Tensor};

use super::attention::{Attention, Step};
use super::mlp::Mlp;
use super::names::{LayerNames, WeightNames};
use super::norm::Norm;
use crate::config::{DecoderSpec, LayerSpec, MixerSpec, NormPlacement, OutputHead, PositionSpec};
use crate::kv_cache::KvLayer;
use crate::ops::{self, AttentionPlan, Compute, PackedWeight, RotaryEmbedding};
use crate::weights::{MatrixPart, WeightLoader};
use crate::{CausalLm, KvCache, KvCacheSpec, Logits, ModelError, ModelInput};

/// A decoder assembled from a [`DecoderSpec`], of any family that the spec can describe.
#[derive(Debug)]
pub struct Decoder {
    compute: Compute,
    vocab_size: usize,
    max_position: usize,
    kv_cache_spec: KvCacheSpec,
    rotary: RotaryEmbedding,
    embedding: PackedWeight,
    layers: Vec<DecoderLayer>,
    final_norm: Norm,
    /// `None` when the embedding table is also the output head.
    output_head: Option<PackedWeight>,
}

/// Looks at the residual stream after each layer: the layer's index and `[num_tokens, hidden_size]` f32.
pub type LayerObserver<'a> = &'a mut dyn FnMut(usize, &Tensor) -> Result<(), ModelError>;

#[derive(Debug)]
struct DecoderLayer {
    mixer_norm: Norm,
    attention: Attention,
    ffn_norm: Norm,
    mlp: Mlp,
}

impl Decoder {
    pub(crate) fn load(
        loader: &mut WeightLoader<'_>,
        names: &WeightNames,
        spec: &DecoderSpec,
        kv: (DType, usize),
    ) -> Result<Self, ModelError> {
        let table = |name: &str| [MatrixPart { name: format!("{name}.weight"), rows: spec.vocab_size }];
        let embedding = loader.matrix(spec.hidden_size, &table(names.embedding))?;
        let layers = spec
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| DecoderLayer::load(loader, &names.layer(index), spec.hidden_size, layer))
            .collect::<Result<_, _>>()?;
        let final_norm = MatrixPart { name: format!("{}.weight", names.final_norm), rows: spec.hidden_size };
        let final_norm = Norm::load(loader, final_norm, spec.final_norm)?;
        let output_head = match spec.output_head {
            OutputHead::Tied => None,
            OutputHead::Separate => Some(loader.matrix(spec.hidden_size, &table(names.output_head))?),
        };
        let attention = spec.attention();
        let PositionSpec::Rope(rope) = &attention.position;
        let (dtype, block_size) = kv;
        Ok(Self {
            compute: loader.compute().clone(),
            vocab_size: spec.vocab_size,
            max_position: spec.max_position,
            kv_cache_spec: KvCacheSpec {
                num_layers: spec.layers.len(),
                num_kv_heads: attention.num_kv_heads,
                head_dim: attention.head_dim,
                dtype,
                block_size,
            },
            rotary: RotaryEmbedding::new(rope.inv_freq(), rope.attention_scaling()),
            embedding,
            layers,
            final_norm,
            output_head,
        })
    }

    /// Memory that the weights take, in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        let head = self.output_head.as_ref().map_or(0, PackedWeight::size_bytes);
        let layers: usize = self.layers.iter().map(DecoderLayer::size_bytes).sum();
        self.embedding.size_bytes() + layers + self.final_norm.size_bytes() + head
    }

    /// As [`CausalLm::forward`], showing the residual stream after every layer to `observer`. The stream is added up for
    /// it, so this is slower; the logits are the same.
    pub fn forward_observed(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        observer: LayerObserver<'_>,
    ) -> Result<Logits, ModelError> {
        self.run(input, cache, Some(observer))
    }

    fn check(&self, input: &ModelInput) -> Result<(), ModelError> {
        if let Some(token) = input.tokens().iter().find(|&&token| token as usize >= self.vocab_size) {
            return Err(ModelError::Input(format!("token {token} of a vocabulary of {}", self.vocab_size)));
        }
        if let Some(position) = input.positions().iter().find(|&&position| position as usize >= self.max_position) {
            return Err(ModelError::Input(format!("position {position} of at most {}", self.max_position)));
        }
        if input.block_size() != self.kv_cache_spec.block_size {
            let (found, expected) = (input.block_size(), self.kv_cache_spec.block_size);
            return Err(ModelError::Input(format!("blocks of {found} tokens, the cache has {expected}")));
        }
        Ok(())
    }

    fn run(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        mut observer: Option<LayerObserver<'_>>,
    ) -> Result<Logits, ModelError> {
        self.check(input)?;
        let step = Step {
            compute: &self.compute,
            input,
            plan: AttentionPlan::new(input),
            angles: self.rotary.angles(&self.compute, input.positions())?,
        };
        let mut residual = ops::embedding(&self.compute, &self.embedding, input.tokens())?;
        let mut addend = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let (stream, output) = layer.forward(&step, (residual, addend), cache.layer_mut(index))?;
            if let Some(observe) = &mut observer {
                observe(index, &(&stream + &output)?)?;
            }
            (residual, addend) = (stream, Some(output));
        }
        self.logits(input, residual, addend)
    }

    /// Only the sampled rows go through the last norm and the head.
    fn logits(&self, input: &ModelInput, residual: Tensor, addend: Option<Tensor>) -> Result<Logits, ModelError> {
        let rows = input.rows_to_sample();
        if rows.is_empty() {
            return Ok(Logits::new(self.vocab_size, Vec::new()));
        }
        let residual = ops::gather_rows(&self.compute, &residual, rows)?;
        let addend = addend.map(|addend| ops::gather_rows(&self.compute, &addend, rows)).transpose()?;
        let (_, normed) = self.final_norm.forward(&self.compute, residual, addend.as_ref())?;
        let head = self.output_head.as_ref().unwrap_or(&self.embedding);
        let logits = ops::linear(&self.compute, &normed, head, None)?;
        Ok(Logits::new(self.vocab_size, logits.flatten_all()?.to_vec1()?))
    }
}

impl CausalLm for Decoder {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn input_vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_position(&self) -> usize {
        self.max_position
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.kv_cache_spec
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        KvCache::new(self.kv_cache_spec, num_blocks, self.compute.device())
    }

    fn forward(&mut self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        self.run(input, cache, None)
    }
}

impl DecoderLayer {
    fn load(
        loader: &mut WeightLoader<'_>,
        names: &LayerNames<'_>,
        hidden_size: usize,
        spec: &LayerSpec,
    ) -> Result<Self, ModelError> {
        let LayerSpec { mixer: MixerSpec::Attention(attention), ffn, norm, placement: NormPlacement::Pre } = spec;
        let mixer_norm = names.weight(names.names.mixer_norm, hidden_size);
        let ffn_norm = names.weight(names.names.ffn_norm, hidden_size);
        Ok(Self {
            mixer_norm: Norm::load(loader, mixer_norm, *norm)?,
            attention: Attention::load(loader, names, hidden_size, attention)?,
            ffn_norm: Norm::load(loader, ffn_norm, *norm)?,
            mlp: Mlp::load(loader, names, hidden_size, ffn)?,
        })
    }

    /// Takes and returns the residual stream as two addends, so that each addition is done by the norm that follows it.
    fn forward(
        &self,
        step: &Step<'_>,
        (residual, addend): (Tensor, Option<Tensor>),
        cache: &mut KvLayer,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let (residual, normed) = self.mixer_norm.forward(step.compute, residual, addend.as_ref())?;
        let attended = self.attention.forward(step, &normed, cache)?;
        let (residual, normed) = self.ffn_norm.forward(step.compute, residual, Some(&attended))?;
        Ok((residual, self.mlp.forward(step.compute, &normed)?))
    }

    fn size_bytes(&self) -> usize {
        let norms = self.mixer_norm.size_bytes() + self.ffn_norm.size_bytes();
        norms + self.attention.size_bytes() + self.mlp.size_bytes()
    }
}
