#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! Attention over the paged cache, tile by tile.
//!
//! One task is one chunk of a sequence's tokens with one K/V head: `tokens * group` query rows that share every tile they
//! read. Both products are the inner loop of [`tile`]: `scores = q k^T` over the 16 keys of a tile side by side, then
//! `out += weights v` with the 16 keys as depth.

use std::ops::Range;

use candle_core::{CpuStorage, Storage, Tensor};

use super::cache_element::{CacheElement, signed};
use super::instructions::{Instructions, Piece};
use super::lanes::Lanes;
use super::launch::{Kernel, Output, Unwritten, launch};
use super::tile::{self, Factors, with_rows};
use super::vector::{LANES, Vector};
use super::view::Rows;
use crate::kv_cache::{KV_TILE, KvLayer};
use crate::ops::attention::RowChunk;
use crate::ops::{AttentionParams, AttentionPlan, Compute};
use crate::{BlockId, ModelError};

/// Shapes and block tables are checked by the caller.
pub(crate) fn paged_attention(
    compute: &Compute,
    q: &Tensor,
    layer: &KvLayer,
    plan: &AttentionPlan<'_>,
    params: &AttentionParams,
) -> Result<Tensor, ModelError> {
    let (m, num_heads, head_dim) = q.dims3()?;
    let q = Rows::new(q)?;
    let mut out = Unwritten::new(m * num_heads * head_dim);
    let output = out.output();
    let (k_storage, k_layout) = layer.k.storage_and_layout();
    let (v_storage, v_layout) = layer.v.storage_and_layout();
    let (k_start, v_start) = (k_layout.start_offset(), v_layout.start_offset());
    match (&*k_storage, &*v_storage) {
        (Storage::Cpu(CpuStorage::F32(k)), Storage::Cpu(CpuStorage::F32(v))) => {
            run(compute, Attention { q: &q, k: &k[k_start..], v: &v[v_start..], layer, plan, params, out: output });
        }
        (Storage::Cpu(CpuStorage::BF16(k)), Storage::Cpu(CpuStorage::BF16(v))) => {
            run(compute, Attention { q: &q, k: &k[k_start..], v: &v[v_start..], layer, plan, params, out: output });
        }
        (Storage::Cpu(CpuStorage::U8(k)), Storage::Cpu(CpuStorage::U8(v))) => {
            let (k, v) = (signed(&k[k_start..]), signed(&v[v_start..]));
            run(compute, Attention { q: &q, k, v, layer, plan, params, out: output });
        }
        _ => return Err(ModelError::Input("a KV cache of none of its formats in host memory".into())),
    }
    // SAFETY: every token is of one chunk, and every head of one group; their task has written them.
    let out = unsafe { out.written() };
    Ok(Tensor::from_vec(out, (m, num_heads * head_dim), compute.device())?)
}

fn run<E: CacheElement>(compute: &Compute, kernel: Attention<'_, E>) {
    launch(compute, kernel.plan.chunks().len() * kernel.layer.num_kv_heads(), &kernel);
}

struct Attention<'a, E> {
    q: &'a Rows<'a>,
    k: &'a [E],
    v: &'a [E],
    layer: &'a KvLayer,
    plan: &'a AttentionPlan<'a>,
    params: &'a AttentionParams,
    out: Output<f32>,
}

/// The state of one task's query rows; row `token * group + g` is query head `g` of the group.
struct ChunkState {
    /// `[rows, head_dim]`
    q: Vec<f32>,
    /// `[rows, VISIT]`: the scores of the tiles that are visited together, then their weights.
    weights: Vec<f32>,
    /// `[rows, padded_head_dim]`
    out: Vec<f32>,
    /// `[rows]`, of all scores so far.
    max: Vec<f32>,
    /// `[rows]`, of all weights so far.
    sum: Vec<f32>,
}

/// One tile of keys and values of one head; behind each of them the scales of its rows, if it has any.
struct KvTile<'a, E> {
    /// `[head_dim, KV_TILE]`
    k: &'a [E],
    /// `[KV_TILE, padded_head_dim]`
    v: &'a [E],
}

/// Which of a chunk's tokens see a tile, and how much of it. Drawn for causal attention; else the window reaches to both
/// sides, and whoever sees nothing of the tile is as far away on the one side as on the other.
///
/// ```text
///              key of the tile            the tile starts at position 16, the window is 24, the chunk starts at 12
/// position     16 17 .. 30 31
/// 12 .. 15      . .      .  .            not in `tokens`
/// 16            x .      .  .            first of `tokens`
/// 31 .. 39      x x      x  x            `whole`
/// 40            . x      x  x            the window has moved on
/// ```
struct TileView<'a> {
    params: &'a AttentionParams,
    /// Position of the tile's first key.
    start: usize,
    /// Position of the chunk's first token.
    first_position: usize,
    /// Of the whole sequence.
    num_keys: usize,
    /// The chunk's tokens that see something of the tile; never empty.
    tokens: Range<usize>,
    /// Those that see all of it.
    whole: Range<usize>,
}

/// Rows whose running sums for two tiles fit the registers. Those of one tile are too few to hide the latency of the
/// multiply-add: a token alone is read for in half the time.
const MAX_PAIR_ROWS: usize = 3;

/// Keys of two tiles.
const VISIT: usize = 2 * KV_TILE;

impl<E: CacheElement> Kernel for Attention<'_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let kv_head = task % self.layer.num_kv_heads();
        let chunk = self.plan.chunks()[task / self.layer.num_kv_heads()];
        let first_position = self.plan.input().positions()[chunk.first_row] as usize;
        let table = self.plan.input().block_table(self.layer.group(), chunk.sequence);
        let mut state = self.start(chunk, kv_head);
        let num_keys = self.plan.input().num_keys(chunk.sequence);
        let last_position = first_position + chunk.num_rows - 1;
        let num_tiles = self.params.keys_end(last_position, num_keys).div_ceil(KV_TILE);
        let kv_tile = |tile: usize| self.kv_tile(table, kv_head, tile.min(num_tiles - 1) * KV_TILE);
        // A token alone sees something of every tile up to its own.
        let tiles_per_visit = if chunk.num_rows == 1 && self.group() <= MAX_PAIR_ROWS { 2 } else { 1 };
        let mut tile = self.params.first_key(first_position) / KV_TILE;
        while tile < num_tiles {
            let together = tiles_per_visit.min(num_tiles - tile);
            let [kv, second, third] = [kv_tile(tile), kv_tile(tile + 1), kv_tile(tile + 2)];
            // SAFETY: the state and the tiles have the sizes that the layer says; the launch vouches for the instructions.
            unsafe {
                if together == 2 {
                    self.pair_scores::<I>(&mut state, [&kv, &second, &third]);
                }
                for (index, kv) in [[&kv, &second], [&second, &third]].into_iter().enumerate().take(together) {
                    let start = (tile + index) * KV_TILE;
                    let view = TileView::new(start, (first_position, chunk.num_rows), num_keys, self.params);
                    let visit = Visit { kv, view, kv_head, column: index * KV_TILE };
                    if together == 1 {
                        self.scores::<I>(&mut state, &visit);
                    }
                    self.attend::<I>(&mut state, &visit);
                }
            }
            tile += together;
        }
        self.finish(chunk, kv_head, &state);
    }
}

/// One tile in its turn.
struct Visit<'a, E> {
    /// The tile, and the one that will be read after it.
    kv: [&'a KvTile<'a, E>; 2],
    view: TileView<'a>,
    kv_head: usize,
    /// Of the state's weights, where the tile's begin.
    column: usize,
}

impl<'a> TileView<'a> {
    #[inline(always)]
    fn new(
        start: usize,
        (first_position, num_rows): (usize, usize),
        num_keys: usize,
        params: &'a AttentionParams,
    ) -> Self {
        let token_at = |position: usize| position.saturating_sub(first_position).min(num_rows);
        let (seen_until, whole_until) = match params.window {
            Some(window) => (token_at(start + KV_TILE - 1 + window), token_at(start + window)),
            None => (num_rows, num_rows),
        };
        let first_of = |key: usize| token_at(params.first_query_of(key, num_keys)).min(seen_until);
        let whole = if start + KV_TILE <= num_keys { first_of(start + KV_TILE - 1)..whole_until } else { 0..0 };
        Self { params, start, first_position, num_keys, tokens: first_of(start)..seen_until, whole }
    }

    fn position(&self, token: usize) -> usize {
        self.first_position + token
    }

    /// The keys of the tile that a token sees.
    #[inline(always)]
    fn keys(&self, token: usize) -> Range<usize> {
        let position = self.position(token);
        self.params.first_key(position).saturating_sub(self.start)
            ..KV_TILE.min(self.params.keys_end(position, self.num_keys) - self.start)
    }
}

impl<E: CacheElement> Attention<'_, E> {
    fn group(&self) -> usize {
        self.q.width / self.layer.head_dim() / self.layer.num_kv_heads()
    }

    #[inline(always)]
    fn start(&self, chunk: RowChunk, kv_head: usize) -> ChunkState {
        let width = self.group() * self.layer.head_dim();
        let rows = chunk.num_rows * self.group();
        let mut q = Vec::with_capacity(chunk.num_rows * width);
        for row in chunk.first_row..chunk.first_row + chunk.num_rows {
            let heads = &self.q.row(row)[kv_head * width..(kv_head + 1) * width];
            match &self.params.temperature {
                Some(temperature) => {
                    let factor = temperature.factor(self.plan.input().positions()[row]);
                    q.extend(heads.iter().map(|q| q * factor));
                }
                None => q.extend_from_slice(heads),
            }
        }
        ChunkState {
            q,
            weights: vec![0.0; rows * VISIT],
            out: vec![0.0; rows * self.layer.padded_head_dim()],
            max: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
        }
    }

    #[inline(always)]
    fn kv_tile(&self, table: &[BlockId], kv_head: usize, position: usize) -> KvTile<'_, E> {
        let (block_size, padded) = (self.layer.block_size(), self.layer.padded_head_dim());
        let block = table[position / block_size].0 as usize * self.layer.num_kv_heads() + kv_head;
        let tile = (block * block_size + position % block_size) / KV_TILE;
        let [k_len, v_len] = [self.layer.head_dim(), padded].map(|width| KV_TILE * width + E::SCALES_LEN);
        KvTile { k: &self.k[tile * k_len..][..k_len], v: &self.v[tile * v_len..][..v_len] }
    }

    /// Adds one tile, whose dot products are there, to the rows of the tokens that see it.
    ///
    /// # Safety
    /// The state and the tile have the layer's sizes; the CPU has the instructions.
    #[inline(always)]
    unsafe fn attend<I: Instructions>(&self, state: &mut ChunkState, visit: &Visit<'_, E>) {
        let view = &visit.view;
        // SAFETY: the rows are the state's; passed on.
        unsafe {
            for token in view.tokens.clone() {
                self.weigh_token::<I::Vector>(state, visit, token);
            }
            // Only keys that a row sees are added to it: a masked value may be anything, not a number included.
            for token in view.tokens.clone().filter(|token| !view.whole.contains(token)) {
                self.add_values::<I>(state, visit, token..token + 1, view.keys(token));
            }
            if !view.whole.is_empty() {
                self.add_values::<I>(state, visit, view.whole.clone(), 0..KV_TILE);
            }
        }
    }

    /// The state's rows of `tokens`.
    #[inline(always)]
    fn rows_of(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start * self.group()..tokens.end * self.group()
    }

    /// From dot products to weights, for the query heads of one token.
    #[inline(always)]
    unsafe fn weigh_token<V: Vector>(&self, state: &mut ChunkState, visit: &Visit<'_, E>, token: usize) {
        let (group, padded, keys) = (self.group(), self.layer.padded_head_dim(), visit.view.keys(token));
        let k_scales = E::scales(&visit.kv[0].k[KV_TILE * self.layer.head_dim()..]);
        let v_scales = E::scales(&visit.kv[0].v[KV_TILE * padded..]);
        for index in 0..group {
            let row = token * group + index;
            let weights = &mut state.weights[row * VISIT + visit.column..][..KV_TILE];
            multiply_by(weights, k_scales);
            self.finish_scores(weights, &visit.view, token, visit.kv_head * group + index);
            // SAFETY: a tile of scores, of which the token sees some; passed on.
            let factor = unsafe { weigh::<V>(weights, keys.clone(), (&mut state.max[row], &mut state.sum[row])) };
            multiply_by(weights, v_scales);
            if factor != 1.0 {
                for out in &mut state.out[row * padded..(row + 1) * padded] {
                    *out *= factor;
                }
            }
        }
    }

    /// From dot products to scores.
    #[inline(always)]
    fn finish_scores(&self, scores: &mut [f32], view: &TileView<'_>, token: usize, query_head: usize) {
        for score in &mut *scores {
            *score *= self.params.scale;
        }
        if let Some(cap) = self.params.soft_cap {
            for score in &mut *scores {
                *score = cap * (*score / cap).tanh();
            }
        }
        let Some(slopes) = &self.params.alibi_slopes else { return };
        let position = view.position(token) as f32;
        for (key, score) in scores.iter_mut().enumerate() {
            *score += slopes[query_head] * ((view.start + key) as f32 - position);
        }
    }

    /// The dot products of one tile with the rows of the tokens that see it.
    #[inline(always)]
    unsafe fn scores<I: Instructions>(&self, state: &mut ChunkState, visit: &Visit<'_, E>) {
        let rows = self.rows_of(visit.view.tokens.clone());
        for first in rows.clone().step_by(I::TILE_ROWS) {
            let factors = self.score_factors(state, visit.kv, first);
            let to = state.weights[first * VISIT + visit.column..].as_mut_ptr();
            // SAFETY: as many rows of `head_dim` queries and of `KV_TILE` scores; the tile is `head_dim` by `KV_TILE`.
            unsafe {
                let num_rows = I::TILE_ROWS.min(rows.end - first);
                with_rows!(num_rows, I::TILE_ROWS, ROWS => I::apart(Scores::<E, ROWS, 1> { factors, to }));
            }
        }
    }

    /// The dot products of the first two tiles with all rows, at most [`MAX_PAIR_ROWS`].
    #[inline(always)]
    unsafe fn pair_scores<I: Instructions>(&self, state: &mut ChunkState, kv: [&KvTile<'_, E>; 3]) {
        let between = bytes_between(kv[0].k, kv[1].k) / size_of::<E>() as isize;
        let factors = Factors { w_panel_stride: between, ..self.score_factors(state, [kv[0], kv[2]], 0) };
        let to = state.weights.as_mut_ptr();
        // SAFETY: as above; both tiles stand in one cache, `between` elements apart.
        unsafe {
            with_rows!(self.group(), MAX_PAIR_ROWS, ROWS => I::apart(Scores::<E, ROWS, 2> { factors, to }));
        }
    }

    #[inline(always)]
    fn score_factors(&self, state: &ChunkState, kv: [&KvTile<'_, E>; 2], first_row: usize) -> Factors<E> {
        let head_dim = self.layer.head_dim();
        Factors {
            x: state.q[first_row * head_dim..].as_ptr(),
            x_stride: head_dim,
            w: kv[0].k.as_ptr(),
            w_stride: KV_TILE,
            w_panel_stride: 0,
            depth: head_dim,
            prefetch_bytes: bytes_between(kv[0].k, kv[1].k),
        }
    }

    /// Adds the values `keys` of the tile to the rows of `tokens`.
    #[inline(always)]
    unsafe fn add_values<I: Instructions>(
        &self,
        state: &mut ChunkState,
        visit: &Visit<'_, E>,
        tokens: Range<usize>,
        keys: Range<usize>,
    ) {
        let (padded, rows, kv) = (self.layer.padded_head_dim(), self.rows_of(tokens), visit.kv);
        for first in rows.clone().step_by(I::TILE_ROWS) {
            let num_rows = I::TILE_ROWS.min(rows.end - first);
            let mut column = 0;
            while column < padded {
                let factors = Factors {
                    x: state.weights[first * VISIT + visit.column + keys.start..].as_ptr(),
                    x_stride: VISIT,
                    w: kv[0].v[keys.start * padded + column..].as_ptr(),
                    w_stride: padded,
                    w_panel_stride: KV_TILE as isize,
                    depth: keys.len(),
                    prefetch_bytes: bytes_between(kv[0].v, kv[1].v),
                };
                let to = state.out[first * padded + column..].as_mut_ptr();
                let wide = column + 2 * KV_TILE <= padded && num_rows <= MAX_PAIR_ROWS;
                // SAFETY: `num_rows` rows of weights and outputs; columns below `padded`; as many rows of values as keys.
                unsafe {
                    if wide {
                        with_rows!(num_rows, MAX_PAIR_ROWS, ROWS => I::apart(Values::<E, ROWS, 2> { factors, to, stride: padded }));
                    } else {
                        with_rows!(num_rows, I::TILE_ROWS, ROWS => I::apart(Values::<E, ROWS, 1> { factors, to, stride: padded }));
                    }
                }
                column += if wide { 2 * KV_TILE } else { KV_TILE };
            }
        }
    }

    #[inline(always)]
    fn finish(&self, chunk: RowChunk, kv_head: usize, state: &ChunkState) {
        let (group, head_dim, padded) = (self.group(), self.layer.head_dim(), self.layer.padded_head_dim());
        for row in 0..chunk.num_rows * group {
            let start = (chunk.first_row + row / group) * self.q.width + (kv_head * group + row % group) * head_dim;
            // SAFETY: this token's query head, which belongs to this task alone.
            let out = unsafe { self.out.part(start, head_dim) };
            let (factor, sum_of_weights) =
                self.with_sink(kv_head * group + row % group, (state.max[row], state.sum[row]));
            for (out, sum) in out.iter_mut().zip(&state.out[row * padded..]) {
                *out = sum * factor / sum_of_weights;
            }
        }
    }

    /// What the sums of values and the sum of weights are multiplied with and replaced by, once a head's sink is counted.
    #[inline(always)]
    fn with_sink(&self, query_head: usize, (max, sum): (f32, f32)) -> (f32, f32) {
        let Some(sinks) = &self.params.sinks else { return (1.0, sum) };
        let highest = max.max(sinks[query_head]);
        let factor = (max - highest).exp();
        (factor, sum * factor + (sinks[query_head] - highest).exp())
    }
}

/// Dot products by the scales of their keys, or weights by those of their values, where these have any.
#[inline(always)]
fn multiply_by(numbers: &mut [f32], scales: Option<[f32; KV_TILE]>) {
    let Some(scales) = scales else { return };
    for (number, scale) in numbers.iter_mut().zip(scales) {
        *number *= scale;
    }
}

/// From a tile to the next, which the CPU's own prefetch cannot guess: the block table leads there.
#[inline(always)]
fn bytes_between<E>(tile: &[E], next: &[E]) -> isize {
    next.as_ptr().addr().wrapping_sub(tile.as_ptr().addr()) as isize
}

/// Sets `ROWS` rows of scores, those of `TILES` tiles side by side.
struct Scores<E: CacheElement, const ROWS: usize, const TILES: usize> {
    factors: Factors<E>,
    to: *mut f32,
}

impl<E: CacheElement, const ROWS: usize, const TILES: usize> Piece for Scores<E, ROWS, TILES> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        // SAFETY: passed on.
        unsafe {
            let zero = [[I::Panel::splat(0.0); TILES]; ROWS];
            tile::store(tile::multiply::<I, E, ROWS, TILES>(self.factors, zero), self.to, VISIT);
        }
    }
}

/// Adds to `ROWS` rows of outputs, `stride` elements apart, `PANELS` times 16 columns of each.
struct Values<E: CacheElement, const ROWS: usize, const PANELS: usize> {
    factors: Factors<E>,
    to: *mut f32,
    stride: usize,
}

impl<E: CacheElement, const ROWS: usize, const PANELS: usize> Piece for Values<E, ROWS, PANELS> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        // SAFETY: passed on.
        unsafe {
            let sums = tile::load::<I::Panel, ROWS, PANELS>(self.to, self.stride);
            tile::store(tile::multiply::<I, E, ROWS, PANELS>(self.factors, sums), self.to, self.stride);
        }
    }
}

/// Turns a tile's scores into weights, of which those of `keys` count, and brings the row's maximum and sum up to date.
/// Returns the factor by which earlier weights shrink.
///
/// # Safety
/// `weights` holds `KV_TILE` scores; `keys` is not empty; the CPU has `V`'s instructions.
#[inline(always)]
unsafe fn weigh<V: Vector>(weights: &mut [f32], keys: Range<usize>, (max, sum): (&mut f32, &mut f32)) -> f32 {
    let fill_unseen = |weights: &mut [f32], value: f32| {
        if keys.len() < KV_TILE {
            weights[..keys.start].fill(value);
            weights[keys.end..].fill(value);
        }
    };
    fill_unseen(weights, f32::NEG_INFINITY);
    // SAFETY: two vectors in a tile; the caller has the instructions.
    unsafe {
        let (low, high) = (V::load(weights.as_ptr()), V::load(weights[LANES..].as_ptr()));
        let new_max = max.max(low.max(high).max_of_lanes());
        let shift = V::splat(new_max);
        low.sub(shift).exp().store(weights.as_mut_ptr());
        high.sub(shift).exp().store(weights[LANES..].as_mut_ptr());
        fill_unseen(weights, 0.0);
        let (low, high) = (V::load(weights.as_ptr()), V::load(weights[LANES..].as_ptr()));
        // The exponential of 0 is exactly 1.
        let factor = if new_max == *max { 1.0 } else { V::splat(*max - new_max).exp().to_array()[0] };
        *sum = sum.mul_add(factor, low.add(high).sum_of_lanes());
        *max = new_max;
        factor
    }
}
