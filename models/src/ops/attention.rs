//! Attention over the paged cache: `softmax(q k^T * scale) v`, for grouped queries (Ainslie et al., 2023). A query sees
//! the keys up to its own, or, in an encoder, all keys of its sequence.
//!
//! With a window, a query sees the keys less than that many positions away, its own included. With slopes, ALiBi (Press
//! et al., 2022) adds `slope * (key position - query position)` to each score; published formulas add `slope * key
//! position`, which differs by a constant of the row that the softmax takes out, and which loses precision in long
//! sequences.
//!
//! Order of the sums, on the CPU: keys are visited 64 at a time, from absolute positions 0, 64, 128 ... on, in tiles of
//! [`KV_TILE`]. Per visit and query row: the dot products run over `d` in ascending order; the running maximum, the running sum
//! (the visit's terms added pairwise) and the running output follow the online softmax (Milakov and Gimelshein, 2018); values
//! are added in ascending position, one fused multiply-add each. Each span of [`KEY_SPAN`] keys, from absolute positions
//! 0, 512, 1024 ... on, has sums of its own, which are added in ascending order, so that threads may share a long sequence. A
//! row's bits depend on its position and on the cached K/V that it sees, on nothing else. Where K/V are integers, a dot
//! product is multiplied with its key's scale when it is whole, and a weight with its value's scale once it has been added
//! to the sum of weights.
//!
//! Where the compute dtype is bf16 and the CPU has an instruction for it ([`Compute::with_bf16_products`]), queries and
//! weights are rounded to bf16 when they meet a bf16 cache with an even head dimension, and the steps of both sums are
//! pairs of neighbours as in [`linear`](super::linear()): of `d`, and of keys from even positions on. A key whose
//! neighbour is not seen is added alone, by one fused multiply-add. Weights are summed before they are rounded.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use super::cpu::workspace::{Buffer, StepSize, Workspace};
use super::{Compute, Float, KernelSet, Matrix, Op, Operand, PerHead, QueriesView, QueryRows, cpu, int8_row};
use crate::kv_cache::{KV_TILE, KvLayer};
use crate::{KvFormat, ModelError, ModelInput};

/// What a layer's attention computes besides the plain causal product.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionParams {
    /// Multiplies each dot product, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    pub direction: Direction,
    /// A query sees the keys less than this many positions away, its own included; at least 1.
    pub window: Option<usize>,
    /// `[num_heads]`, how fast each query head's scores fall with distance.
    pub alibi_slopes: Option<PerHead>,
    /// Bends a score, times its scale, to less than this: `cap * tanh(score / cap)`, before slopes (Gemma 2's report, 2024).
    pub soft_cap: Option<f32>,
    /// `[num_heads]`: a score of a key that every query sees, with a value of 0 (gpt-oss' model card, 2025).
    pub sinks: Option<PerHead>,
    pub temperature: Option<PositionTemperature>,
}

/// On which side of a query the keys stand that it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Before it, and its own.
    Causal,
    /// Anywhere in its sequence, all of which must be in the cache or in the step.
    Both,
}

/// Sharpens the attention of far queries, as Llama 4 does: a query at `position` is multiplied with
/// `1 + beta * ln(1 + floor(position / interval))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PositionTemperature {
    pub beta: f32,
    /// At least 1.
    pub interval: usize,
}

impl AttentionParams {
    /// Every key up to the query's own, at one scale.
    pub fn causal(scale: f32) -> Self {
        Self {
            scale,
            direction: Direction::Causal,
            window: None,
            alibi_slopes: None,
            soft_cap: None,
            sinks: None,
            temperature: None,
        }
    }

    /// Every key of the sequence, at one scale.
    pub fn bidirectional(scale: f32) -> Self {
        Self { direction: Direction::Both, ..Self::causal(scale) }
    }

    /// The first key that a query at `position` sees.
    #[inline(always)]
    pub(super) fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// One more than the last key that a query at `position` sees, of the `num_keys` of its sequence.
    #[inline(always)]
    pub(super) fn keys_end(&self, position: usize, num_keys: usize) -> usize {
        match (self.direction, self.window) {
            (Direction::Causal, _) => position + 1,
            (Direction::Both, None) => num_keys,
            (Direction::Both, Some(window)) => num_keys.min(position.saturating_add(window)),
        }
    }

    /// The first position whose query sees `key`, looking no further back than its window; `num_keys` if none does.
    #[inline(always)]
    pub(super) fn first_query_of(&self, key: usize, num_keys: usize) -> usize {
        match self.direction {
            _ if key >= num_keys => num_keys,
            Direction::Causal => key,
            Direction::Both => self.first_key(key),
        }
    }

    fn check(&self, num_heads: usize) -> Result<(), ModelError> {
        if self.window == Some(0) || self.temperature.is_some_and(|temperature| temperature.interval == 0) {
            return Err(ModelError::Input("an attention window or temperature interval of 0".into()));
        }
        if self.soft_cap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
            return Err(ModelError::Input("a soft cap that is not above 0".into()));
        }
        for (values, what) in [(&self.alibi_slopes, "slopes"), (&self.sinks, "sinks")] {
            if let Some(values) = values
                && values.len() != num_heads
            {
                return Err(ModelError::Input(format!("{} {what} for {num_heads} query heads", values.len())));
            }
        }
        Ok(())
    }
}

impl PositionTemperature {
    pub(super) fn factor(&self, position: u32) -> f32 {
        1.0 + self.beta * ((1 + position as usize / self.interval) as f32).ln()
    }
}

/// One step's work, cut into chunks of rows: built once a step, used by every layer.
#[derive(Debug)]
pub struct AttentionPlan<'a> {
    input: &'a ModelInput,
    chunks: Buffer<RowChunk>,
    /// The step's integers on the GPU, from their first use on.
    #[cfg(feature = "cuda")]
    on_device: std::sync::OnceLock<std::sync::Arc<super::cuda::device_step::DeviceStep>>,
}

/// What the queries of a step attend to, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionContext<'a> {
    /// The keys and values, those of the step's own tokens included.
    pub(crate) layer: &'a KvLayer,
    pub(crate) plan: &'a AttentionPlan<'a>,
    pub(crate) params: &'a AttentionParams,
}

/// Consecutive tokens of one sequence, which share each read of a K/V tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowChunk {
    pub(super) sequence: usize,
    /// First row of the flat batch.
    pub(super) first_row: usize,
    pub(super) num_rows: usize,
}

/// Keys whose sums are made apart from those of others: see the order of the sums above. Enough that a span takes far longer
/// than its hand-off to a thread and the adding of its sums, few enough that a sequence of 8k keys busies sixteen threads.
pub(super) const KEY_SPAN: usize = 512;

/// Tokens of one sequence that are attended together: enough to reuse a tile of K/V while it stands in the first-level
/// cache, few enough that a long prompt spreads over the threads.
pub(super) const CHUNK_TOKENS: usize = 16;

impl<'a> AttentionPlan<'a> {
    pub fn new(input: &'a ModelInput) -> Self {
        Self::within(&Arc::default(), input)
    }

    /// The same for a step that begins, in memory that the one before it has used.
    pub(crate) fn of_step(compute: &Compute, input: &'a ModelInput) -> Self {
        compute.workspace().begin_step(StepSize { tokens: input.num_tokens(), rows: input.rows_to_sample().len() });
        Self::within(compute.workspace(), input)
    }

    fn within(workspace: &Arc<Workspace>, input: &'a ModelInput) -> Self {
        let mut chunks = workspace.copy_of(Chunks::of(input, CHUNK_TOKENS));
        longest_first(input, &mut chunks);
        Self {
            input,
            chunks,
            #[cfg(feature = "cuda")]
            on_device: std::sync::OnceLock::new(),
        }
    }

    /// As [`Self::new`], where kernels read integers that are on the GPU already, and of `input` only sizes matter.
    #[cfg(feature = "cuda")]
    pub(super) fn with_integers(
        input: &'a ModelInput,
        step: std::sync::Arc<super::cuda::device_step::DeviceStep>,
    ) -> Self {
        Self { on_device: step.into(), ..Self::new(input) }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn on_device(&self, compute: &Compute) -> Result<&super::cuda::device_step::DeviceStep, ModelError> {
        if let Some(step) = self.on_device.get() {
            return Ok(step);
        }
        let words = super::cuda::step::StepWords::new(self);
        let step = super::cuda::device_step::DeviceStep::new(compute.gpu(), words)?;
        Ok(self.on_device.get_or_init(|| step.into()))
    }

    /// The same work in chunks of at most `most_tokens`.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn chunks_of(&self, most_tokens: usize) -> Vec<RowChunk> {
        let mut chunks: Vec<_> = Chunks::of(self.input, most_tokens).collect();
        longest_first(self.input, &mut chunks);
        chunks
    }

    pub(crate) fn input(&self) -> &ModelInput {
        self.input
    }

    pub(super) fn chunks(&self) -> &[RowChunk] {
        &self.chunks
    }
}

/// The chunks of a step in the order of its rows. It knows how many they are, so that a list of them is made at once.
struct Chunks<'a> {
    input: &'a ModelInput,
    most_tokens: usize,
    sequence: usize,
    next_row: usize,
    left: usize,
}

impl<'a> Chunks<'a> {
    fn of(input: &'a ModelInput, most_tokens: usize) -> Self {
        let lengths = input.query_start().windows(2).map(|rows| rows[1] - rows[0]);
        let left = lengths.map(|len| len.div_ceil(most_tokens)).sum();
        Self { input, most_tokens, sequence: 0, next_row: 0, left }
    }
}

impl Iterator for Chunks<'_> {
    type Item = RowChunk;

    fn next(&mut self) -> Option<RowChunk> {
        self.left = self.left.checked_sub(1)?;
        if self.next_row == self.input.query_start()[self.sequence + 1] {
            self.sequence += 1;
        }
        let first_row = self.next_row;
        let num_rows = self.most_tokens.min(self.input.query_start()[self.sequence + 1] - first_row);
        self.next_row += num_rows;
        Some(RowChunk { sequence: self.sequence, first_row, num_rows })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Chunks<'_> {}

/// So that nobody starts a long chunk when the others are done.
fn longest_first(input: &ModelInput, chunks: &mut [RowChunk]) {
    let work = |chunk: &RowChunk| input.positions()[chunk.first_row] as usize * chunk.num_rows;
    chunks.sort_unstable_by_key(|chunk| (std::cmp::Reverse(work(chunk)), chunk.first_row));
}

/// `q [m, num_heads, head_dim] f32` over the K/V of `layer`: `[m, num_heads * head_dim] f32`. The K/V of the step's own
/// tokens must have been stored before. Query head `h` reads K/V head `h / (num_heads / num_kv_heads)`.
///
/// Errors when shapes do not fit, or a block table names a block that the layer does not have.
pub fn paged_attention<Q: QueryRows>(
    compute: &Compute,
    q: &Q,
    layer: &KvLayer,
    plan: &AttentionPlan<'_>,
    params: &AttentionParams,
) -> Result<Q::Attended, ModelError> {
    Q::Attended::of(attended(compute, q.queries()?, AttentionContext { layer, plan, params }, Float::F32)?)
}

/// The same in the wanted form, where the device has it.
pub(crate) fn attended(
    compute: &Compute,
    q: QueriesView<'_>,
    context: AttentionContext<'_>,
    form: Float,
) -> Result<Matrix, ModelError> {
    let AttentionContext { layer, plan, params } = context;
    let _timer = compute.time(Op::Attention);
    let QueriesView { num_tokens: m, num_heads, head_dim, .. } = q;
    let input = plan.input();
    params.check(num_heads)?;
    if m != input.num_tokens() || head_dim != layer.head_dim() || num_heads % layer.num_kv_heads() != 0 {
        let (kv_heads, dim) = (layer.num_kv_heads(), layer.head_dim());
        return Err(ModelError::Input(format!(
            "queries of shape [{m}, {num_heads}, {head_dim}] for {} tokens and {kv_heads} K/V heads of {dim}",
            input.num_tokens()
        )));
    }
    if input.block_size() != layer.block_size() {
        let (input, layer) = (input.block_size(), layer.block_size());
        return Err(ModelError::Input(format!("an input in blocks of {input} for a cache in blocks of {layer}")));
    }
    for sequence in 0..input.num_sequences() {
        let mut blocks = input.block_table(layer.group(), sequence).iter();
        if let Some(block) = blocks.find(|block| block.0 as usize >= layer.num_blocks()) {
            return Err(ModelError::Input(format!("block {} of {}", block.0, layer.num_blocks())));
        }
    }
    match compute.kernels() {
        KernelSet::Reference => Ok(reference(compute, q.rows.tensor()?, layer, input, params)?.into()),
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => {
            Ok(super::cuda::attention::paged_attention(compute, q.rows.tensor()?, layer, plan, params)?.into())
        }
        _ => cpu::attention::paged_attention(compute, q, context, form),
    }
}

fn reference(
    compute: &Compute,
    q: &Tensor,
    layer: &KvLayer,
    input: &ModelInput,
    params: &AttentionParams,
) -> Result<Tensor, ModelError> {
    let (_, num_heads, head_dim) = q.dims3()?;
    let group = num_heads / layer.num_kv_heads();
    let mut outputs = Vec::with_capacity(input.num_sequences());
    for (sequence, rows) in input.query_start().windows(2).enumerate() {
        let (first, len) = (rows[0], rows[1] - rows[0]);
        let positions = &input.positions()[first..first + len];
        let (k, v) = sequence_kv(compute, layer, input, sequence)?;
        let num_keys = k.dim(1)?;
        // [num_kv_heads, group * len, head_dim]: a group's queries meet the K/V head that they share.
        let q = q.narrow(0, first, len)?;
        let q = match &params.temperature {
            Some(temperature) => q.broadcast_mul(&factors(compute, temperature, positions)?)?,
            None => q,
        };
        let q = q.permute((1, 0, 2))?.contiguous()?;
        let q = q.reshape((layer.num_kv_heads(), group * len, head_dim))?;
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * f64::from(params.scale))?;
        let scores = scores.reshape((num_heads, len, num_keys))?;
        let scores = match params.soft_cap.map(f64::from) {
            Some(cap) => ((scores / cap)?.tanh()? * cap)?,
            None => scores,
        };
        let scores = scores.broadcast_add(&mask(compute, params, positions, num_keys)?)?;
        let scores = match &params.alibi_slopes {
            Some(slopes) => (scores + distances(compute, slopes, positions, num_keys)?)?,
            None => scores,
        };
        let weights = weights(compute, &scores, params)?;
        let out = weights.reshape((layer.num_kv_heads(), group * len, num_keys))?.matmul(&v)?;
        let out = out.reshape((num_heads, len, head_dim))?.permute((1, 0, 2))?.contiguous()?;
        outputs.push(out.reshape((len, num_heads * head_dim))?);
    }
    Ok(Tensor::cat(&outputs, 0)?)
}

/// The softmax of `scores [num_heads, len, num_keys]` over the keys, and over the head's sink if there are any.
fn weights(compute: &Compute, scores: &Tensor, params: &AttentionParams) -> Result<Tensor, ModelError> {
    let highest = scores.max_keepdim(D::Minus1)?;
    let Some(sinks) = &params.sinks else {
        let weights = scores.broadcast_sub(&highest)?.exp()?;
        return Ok(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?);
    };
    let sinks = Tensor::new(&**sinks, compute.device())?.reshape((sinks.len(), 1, 1))?;
    let highest = highest.broadcast_maximum(&sinks)?;
    let weights = scores.broadcast_sub(&highest)?.exp()?;
    let sum = (weights.sum_keepdim(D::Minus1)? + sinks.broadcast_sub(&highest)?.exp()?)?;
    Ok(weights.broadcast_div(&sum)?)
}

/// The K and V of one sequence, `[num_kv_heads, num_keys, head_dim] f32` each, gathered through its block table.
fn sequence_kv(
    compute: &Compute,
    layer: &KvLayer,
    input: &ModelInput,
    sequence: usize,
) -> Result<(Tensor, Tensor), ModelError> {
    let blocks: Vec<u32> = input.block_table(layer.group(), sequence).iter().map(|block| block.0).collect();
    let num_keys = input.num_keys(sequence);
    let (num_blocks, num_kv_heads, head_dim) = (blocks.len(), layer.num_kv_heads(), layer.head_dim());
    let (block_size, tiles) = (layer.block_size(), layer.block_size() / KV_TILE);
    let blocks = Tensor::from_vec(blocks, num_blocks, compute.device())?;
    let (k, v) = numbers(layer, &blocks)?;
    let k = k.reshape((num_blocks, num_kv_heads, tiles, head_dim, KV_TILE))?;
    let k = k.permute((1, 0, 2, 4, 3))?.contiguous()?.reshape((num_kv_heads, num_blocks * block_size, head_dim))?;
    let v = v.reshape((num_blocks, num_kv_heads, block_size, layer.padded_head_dim()))?.permute((1, 0, 2, 3))?;
    let v = v
        .contiguous()?
        .reshape((num_kv_heads, num_blocks * block_size, layer.padded_head_dim()))?
        .narrow(2, 0, head_dim)?;
    let f32_of = |x: Tensor| x.narrow(1, 0, num_keys)?.to_dtype(DType::F32)?.contiguous();
    Ok((f32_of(k)?, f32_of(v)?))
}

/// The keys and the values of `blocks`, in the order in which they lie, as floats.
fn numbers(layer: &KvLayer, blocks: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let (k, v) = (layer.k.index_select(blocks, 0)?, layer.v.index_select(blocks, 0)?);
    if layer.format() != KvFormat::Int8 {
        return Ok((k, v));
    }
    let bytes = |x: &Tensor| x.flatten_all()?.to_vec1::<u8>();
    let (head_dim, padded) = (layer.head_dim(), layer.padded_head_dim());
    let k = int8_row::dequantised(&bytes(&k)?, head_dim, |at| at % KV_TILE);
    let v = int8_row::dequantised(&bytes(&v)?, padded, |at| at / padded);
    let tensor = |numbers: Vec<f32>| {
        let len = numbers.len();
        Tensor::from_vec(numbers, len, blocks.device())
    };
    Ok((tensor(k)?, tensor(v)?))
}

/// `[positions.len(), num_keys] f32`: 0 where the query sees the key, minus infinity elsewhere.
fn mask(compute: &Compute, params: &AttentionParams, positions: &[u32], num_keys: usize) -> Result<Tensor, ModelError> {
    let row = |&position: &u32| {
        let seen = params.first_key(position as usize)..params.keys_end(position as usize, num_keys);
        (0..num_keys).map(move |key| if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY })
    };
    let mask: Vec<f32> = positions.iter().flat_map(row).collect();
    Ok(Tensor::from_vec(mask, (positions.len(), num_keys), compute.device())?)
}

/// `[slopes.len(), positions.len(), num_keys] f32`: what each head adds to a score.
fn distances(compute: &Compute, slopes: &[f32], positions: &[u32], num_keys: usize) -> Result<Tensor, ModelError> {
    let mut distances = Vec::with_capacity(slopes.len() * positions.len() * num_keys);
    for slope in slopes {
        for &position in positions {
            distances.extend((0..num_keys).map(|key| slope * (key as f32 - position as f32)));
        }
    }
    Ok(Tensor::from_vec(distances, (slopes.len(), positions.len(), num_keys), compute.device())?)
}

/// `[positions.len(), 1, 1] f32`: what each query is multiplied with.
fn factors(compute: &Compute, temperature: &PositionTemperature, positions: &[u32]) -> Result<Tensor, ModelError> {
    let factors: Vec<f32> = positions.iter().map(|&position| temperature.factor(position)).collect();
    Ok(Tensor::from_vec(factors, (positions.len(), 1, 1), compute.device())?)
}
