use candle_core::Tensor;

use super::attention::Step;
use super::block::{Block, Stream, shown};
use super::names::WeightNames;
use super::norm::Norm;
use super::positions::Positions;
use crate::config::{DecoderSpec, OutputHead};
use crate::ops::{self, AttentionPlan, Compute, Float, Matrix, PackedWeight, Replays, RowQuestion};
use crate::weights::{MatrixPart, WeightLoader};
use crate::{Activations, CausalLm, KvCache, KvCacheSpec, Logits, ModelError, ModelInput, Pulse, StoredDtype};

/// A decoder assembled from a [`DecoderSpec`], of any family that the spec can describe.
#[derive(Debug)]
pub struct Decoder {
    compute: Compute,
    vocab_size: usize,
    input_vocab_size: usize,
    max_position: usize,
    kv_cache_spec: KvCacheSpec,
    activations: Activations,
    positions: Positions,
    embedding: PackedWeight,
    embedding_norm: Option<Norm>,
    layers: Vec<Block>,
    final_norm: Norm,
    /// `None` when the embedding table is also the output head.
    output_head: Option<PackedWeight>,
    replays: Replays,
}

/// Looks at the residual stream after each layer: the layer's index and `[num_tokens, hidden_size]` f32.
pub type LayerObserver<'a> = &'a mut dyn FnMut(usize, &Tensor) -> Result<(), ModelError>;

impl Decoder {
    pub(crate) fn load(
        loader: &mut WeightLoader<'_>,
        names: &WeightNames,
        spec: &DecoderSpec,
        kv_cache_spec: KvCacheSpec,
    ) -> Result<Self, ModelError> {
        let table = |name: &str, rows| [MatrixPart::whole(format!("{name}.weight"), rows)];
        let embedding = loader.matrix(spec.hidden_size, &table(names.embedding, spec.input_vocab_size))?;
        let embedding_norm = spec
            .embedding_norm
            .map(|norm| Norm::load(loader, names.embedding_norm, spec.hidden_size, norm))
            .transpose()?;
        let mut positions = Positions::default();
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            layers.push(Block::load(loader, &names.layer(index), spec.hidden_size, layer, &mut positions)?);
        }
        let final_norm = Norm::load(loader, names.final_norm, spec.hidden_size, spec.final_norm)?;
        let output_head = match spec.output_head {
            OutputHead::Tied => None,
            OutputHead::Separate => Some(loader.matrix(spec.hidden_size, &table(names.output_head, spec.vocab_size))?),
        };
        Ok(Self {
            compute: loader.compute().clone(),
            vocab_size: spec.vocab_size,
            input_vocab_size: spec.input_vocab_size,
            max_position: spec.max_position,
            kv_cache_spec,
            activations: Activations::of_layers(&spec.layers, spec.hidden_size, spec.vocab_size),
            positions,
            embedding,
            embedding_norm,
            layers,
            final_norm,
            output_head,
            replays: Replays::default(),
        })
    }

    /// Memory that the weights take, in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        let head = self.output_head.as_ref().map_or(0, PackedWeight::size_bytes);
        let layers: usize = self.layers.iter().map(Block::size_bytes).sum();
        let embedding_norm = self.embedding_norm.as_ref().map_or(0, Norm::size_bytes);
        self.embedding.size_bytes() + embedding_norm + layers + self.final_norm.size_bytes() + head
    }

    /// The same, most of whose weights are held as `held`.
    pub(crate) fn with_most_weights(self, held: StoredDtype) -> Self {
        Self { activations: self.activations.rounded_to(self.compute.rounded_unit(held)), ..self }
    }

    /// What its steps hold beside weights and KV cache.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// As [`CausalLm::forward`], showing the residual stream after every layer to `observer`. The stream is added up for
    /// it, so this is slower; the logits are the same.
    pub fn forward_observed(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        observer: LayerObserver<'_>,
    ) -> Result<Logits, ModelError> {
        self.check(input)?;
        let rows = self.run(&AttentionPlan::of_step(&self.compute, input), cache, Some(observer))?;
        self.logits(rows)
    }

    /// The logits of [`CausalLm::forward`], where they were computed.
    pub(crate) fn replayed(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Matrix, ModelError> {
        self.check(input)?;
        let forward = |plan: &AttentionPlan<'_>, cache: &mut KvCache| self.run(plan, cache, None);
        self.replays.run(&self.compute, input, cache, &forward)
    }

    /// The same of a step that is never replayed.
    pub(crate) fn launched(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Matrix, ModelError> {
        self.check(input)?;
        self.run(&AttentionPlan::of_step(&self.compute, input), cache, None)
    }

    /// Where it runs.
    pub(crate) fn compute(&self) -> &Compute {
        &self.compute
    }

    /// Steps that were replayed from a recording, on devices where steps are.
    pub fn num_replays(&self) -> u64 {
        self.replays.count()
    }

    fn check(&self, input: &ModelInput) -> Result<(), ModelError> {
        if input.tokens().iter().any(|&token| token as usize >= self.input_vocab_size) {
            return Err(ModelError::Input(format!("a token beyond the vocabulary of {}", self.input_vocab_size)));
        }
        if let Some(position) = input.positions().iter().find(|&&position| position as usize >= self.max_position) {
            return Err(ModelError::Input(format!("position {position} of at most {}", self.max_position)));
        }
        if input.block_size() != self.kv_cache_spec.block_size {
            let (found, expected) = (input.block_size(), self.kv_cache_spec.block_size);
            return Err(ModelError::Input(format!("blocks of {found} tokens, the cache has {expected}")));
        }
        if input.num_groups() != self.kv_cache_spec.groups.len() {
            let (found, expected) = (input.num_groups(), self.kv_cache_spec.groups.len());
            return Err(ModelError::Input(format!("{found} block tables a sequence, the cache has {expected} groups")));
        }
        Ok(())
    }

    /// The logits of the sampled rows, where they were computed.
    fn run(
        &self,
        plan: &AttentionPlan<'_>,
        cache: &mut KvCache,
        observer: Option<LayerObserver<'_>>,
    ) -> Result<Matrix, ModelError> {
        match self.sampled(plan, cache, observer)? {
            Some(sampled) => ops::linear(&self.compute, &sampled, self.head(), None),
            None => Ok(Matrix::none(self.vocab_size)),
        }
    }

    /// What the head takes of each sampled row, if there are any. Only these go through the last norm.
    fn sampled(
        &self,
        plan: &AttentionPlan<'_>,
        cache: &mut KvCache,
        mut observer: Option<LayerObserver<'_>>,
    ) -> Result<Option<Matrix>, ModelError> {
        let angles = self.positions.angles(&self.compute, plan)?;
        let step = Step { compute: &self.compute, plan, angles };
        let mut stream = (self.embed(plan)?, None);
        for (index, layer) in self.layers.iter().enumerate() {
            stream = layer.forward(&step, stream, cache.layer_mut(index))?;
            if let Some(observe) = &mut observer {
                observe(index, &shown(&self.compute, &stream)?)?;
            }
        }
        let (residual, addend): Stream = stream;
        if plan.input().rows_to_sample().is_empty() {
            return Ok(None);
        }
        let residual = ops::sampled_rows(&self.compute, residual, plan)?;
        let addend = addend.map(|addend| ops::sampled_rows(&self.compute, addend, plan)).transpose()?;
        let (_, normed) = self.final_norm.forward(&self.compute, residual, addend.as_ref(), Float::F32)?;
        Ok(Some(normed))
    }

    fn embed(&self, plan: &AttentionPlan<'_>) -> Result<Matrix, ModelError> {
        let embedded = ops::embedding_of_step(&self.compute, &self.embedding, plan)?;
        match &self.embedding_norm {
            Some(norm) => norm.apply(&self.compute, &embedded),
            None => Ok(embedded),
        }
    }

    fn head(&self) -> &PackedWeight {
        self.output_head.as_ref().unwrap_or(&self.embedding)
    }

    fn logits(&self, rows: Matrix) -> Result<Logits, ModelError> {
        match rows.num_rows() {
            0 => Ok(Logits::new(self.vocab_size, Vec::new())),
            _ => Logits::left_by(&self.compute, rows),
        }
    }
}

impl CausalLm for Decoder {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn input_vocab_size(&self) -> usize {
        self.input_vocab_size
    }

    fn max_position(&self) -> usize {
        self.max_position
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.kv_cache_spec.clone()
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        KvCache::new(self.kv_cache_spec.clone(), num_blocks, self.compute.device())?.on_host(self.compute.host())
    }

    fn pulse(&self) -> Pulse {
        self.compute.pulse().clone()
    }

    fn enter(&self) -> Option<ops::OnProcessors> {
        Some(self.compute.enter())
    }

    fn forward(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        self.logits(self.replayed(input, cache)?)
    }

    fn forward_asked(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        questions: &[Option<RowQuestion>],
    ) -> Result<Logits, ModelError> {
        if !self.compute.is_host() {
            return self.forward(input, cache);
        }
        self.check(input)?;
        let plan = AttentionPlan::of_step(&self.compute, input);
        let Some(sampled) = self.sampled(&plan, cache, None)? else {
            return self.logits(Matrix::none(self.vocab_size));
        };
        match ops::asked_linear(&self.compute, &sampled, self.head(), questions)? {
            Some(rows) => Ok(Logits::Asked(rows)),
            None => self.logits(ops::linear(&self.compute, &sampled, self.head(), None)?),
        }
    }
}
