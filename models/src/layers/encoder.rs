use candle_core::{DType, Tensor};

use super::attention::Step;
use super::block::{Block, Stream, shown, total};
use super::decoder::LayerObserver;
use super::embeddings::Embeddings;
use super::head::Head;
use super::names::EncoderNames;
use super::norm::Norm;
use super::positions::Positions;
use crate::config::{EncoderSpec, Heads, PipelineSpec};
use crate::encoder_input::SCRATCH_BLOCK;
use crate::ops::{AttentionPlan, Compute, Float, OnProcessors};
use crate::weights::{CheckpointFiles, WeightLoader};
use crate::{Encoder, EncoderInput, KvCache, KvCacheSpec, KvFormat, KvGroup, ModelError, Pulse, Vectors};

/// An encoder assembled from an [`EncoderSpec`], of any family that the spec can describe: also a decoder that is read as
/// one.
#[derive(Debug)]
pub struct TextEncoder {
    compute: Compute,
    vocab_size: usize,
    max_tokens: usize,
    positions: Positions,
    embeddings: Embeddings,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
    head: Head,
    scratch: Scratch,
}

/// The keys and values of one layer, while it runs. Sequences are whole, so no layer needs them later.
#[derive(Debug)]
struct Scratch {
    spec: KvCacheSpec,
    cache: Option<KvCache>,
}

impl TextEncoder {
    pub(crate) fn load(
        loader: &mut WeightLoader<'_>,
        names: &EncoderNames,
        (spec, heads, pipeline): (&EncoderSpec, Heads, &PipelineSpec),
        files: &CheckpointFiles,
    ) -> Result<Self, ModelError> {
        let scratch = Scratch::new(heads);
        scratch.spec.check_on(loader.compute().device().location())?;
        let embeddings = Embeddings::load(loader, names, spec)?;
        let mut positions = Positions::default();
        let mut blocks = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let names = names.block.layer(index);
            blocks.push(Block::load(loader, &names, spec.hidden_size, layer, &mut positions)?);
        }
        let final_norm = spec.final_norm.map(|norm| Norm::load(loader, names.block.final_norm, spec.hidden_size, norm));
        Ok(Self {
            compute: loader.compute().clone(),
            vocab_size: spec.vocab_size,
            max_tokens: spec.max_position,
            positions,
            embeddings,
            blocks,
            final_norm: final_norm.transpose()?,
            head: Head::load(loader, &names.classifier, spec, pipeline, files)?,
            scratch,
        })
    }

    /// Memory that the weights take, in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::size_bytes).sum();
        let norm = self.final_norm.as_ref().map_or(0, Norm::size_bytes);
        self.embeddings.size_bytes() + blocks + norm + self.head.size_bytes()
    }

    /// `[num_tokens, hidden_size]` f32: what is pooled. `observer` sees the stream after each layer, before the last norm.
    pub fn hidden_states(
        &mut self,
        input: &EncoderInput,
        mut observer: Option<LayerObserver<'_>>,
    ) -> Result<Tensor, ModelError> {
        self.check(input)?;
        let plan = AttentionPlan::of_step(&self.compute, input.step());
        let angles = self.positions.angles(&self.compute, &plan)?;
        let step = Step { compute: &self.compute, plan: &plan, angles };
        let cache = self.scratch.holding(&self.compute, input.num_blocks())?;
        let mut stream: Stream = (self.embeddings.forward(&self.compute, input, &plan)?, None);
        for (index, block) in self.blocks.iter().enumerate() {
            stream = block.forward(&step, stream, cache.layer_mut(0))?;
            if let Some(observe) = &mut observer {
                observe(index, &shown(&self.compute, &stream)?)?;
            }
        }
        let hidden = match (&self.final_norm, stream) {
            (Some(norm), (residual, addend)) => norm.forward(&self.compute, residual, addend.as_ref(), Float::F32)?.1,
            (None, stream) => total(&self.compute, stream)?,
        };
        Ok(hidden.into_tensor()?.to_dtype(DType::F32)?)
    }

    fn check(&self, input: &EncoderInput) -> Result<(), ModelError> {
        let step = input.step();
        if step.tokens().iter().any(|&token| token as usize >= self.vocab_size) {
            return Err(ModelError::Input(format!("a token beyond the vocabulary of {}", self.vocab_size)));
        }
        match step.positions().iter().find(|&&position| position as usize >= self.max_tokens) {
            Some(position) => Err(ModelError::Input(format!("position {position} of at most {}", self.max_tokens))),
            None => Ok(()),
        }
    }
}

impl Encoder for TextEncoder {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn width(&self) -> usize {
        self.head.width()
    }

    fn pulse(&self) -> Pulse {
        self.compute.pulse().clone()
    }

    fn enter(&self) -> Option<OnProcessors> {
        Some(self.compute.enter())
    }

    fn forward(&mut self, input: &EncoderInput) -> Result<Vectors, ModelError> {
        let hidden = self.hidden_states(input, None)?;
        self.head.forward(&self.compute, &hidden, input)
    }
}

impl Scratch {
    fn new(Heads { num_kv_heads, head_dim, .. }: Heads) -> Self {
        let (groups, block_size) = (vec![KvGroup::full(1)], SCRATCH_BLOCK);
        let spec = KvCacheSpec { groups, num_kv_heads, head_dim, format: KvFormat::F32, block_size };
        Self { spec, cache: None }
    }

    /// Room for `num_blocks`, kept for the next batch. Batches are bounded by whoever makes them, and so is this.
    fn holding(&mut self, compute: &Compute, num_blocks: usize) -> Result<&mut KvCache, ModelError> {
        // One that is too small makes room for its successor.
        let cache = match self.cache.take().filter(|cache| cache.num_blocks() >= num_blocks) {
            Some(cache) => cache,
            None => KvCache::new(self.spec.clone(), num_blocks, compute.device())?,
        };
        Ok(self.cache.insert(cache))
    }
}
