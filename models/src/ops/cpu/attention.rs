#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! Attention over the paged cache, tile by tile.
//!
//! One task is one chunk of a sequence's tokens with one K/V head: `tokens * group` query rows that share every tile they
//! read. A token alone, which waits for memory, has several heads in a task, tile by tile as they stand in a block: that reads
//! memory in order, about twice as fast as a head's tiles alone. Where tasks are too few for the threads, each is one span of
//! keys ([`mod@spans`]). Both products are the inner loop of [`tile`](super::tile): `scores = q k^T` over the 16 keys of a tile
//! side by side, then `out += weights v` with the 16 keys as depth.

mod heads;
mod paired;
mod pieces;
mod row_sums;
mod spans;
mod tile_view;
mod values;

use std::ops::Range;

use candle_core::{CpuStorage, Storage};

use super::buffer::Plain;
use super::cache_element::signed;
use super::instructions::Instructions;
use super::launch::{Kernel, Output};
use super::tile::{Factors, with_rows};
use super::vector::Vector;
use super::view::Rows;
use crate::kv_cache::{KV_TILE, KvLayer};
use crate::ops::attention::RowChunk;
use crate::ops::{AttentionParams, AttentionPlan, Compute, Float, Matrix, QueriesView};
use crate::{BlockId, ModelError};
use heads::{ChunkState, HeadStates, HeadSums};
use paired::{Cached, Paired};
use pieces::{Scores, multiply_by, weigh};
use row_sums::RowSums;
use spans::{run, spans};
use tile_view::TileView;

/// Shapes and block tables are checked by the caller.
pub(crate) fn paged_attention(
    compute: &Compute,
    q: QueriesView<'_>,
    layer: &KvLayer,
    plan: &AttentionPlan<'_>,
    params: &AttentionParams,
) -> Result<Matrix, ModelError> {
    let (num_tokens, num_heads, width) = (q.num_tokens, q.num_heads, q.num_heads * q.head_dim);
    let q = Rows::of(q.rows)?;
    let mut out = compute.workspace().unwritten(num_tokens * width);
    let step = Step { compute, q: &q, num_heads, layer, plan, params, out: out.output(), heads_at_once: 1 };
    let (k_storage, k_layout) = layer.k.storage_and_layout();
    let (v_storage, v_layout) = layer.v.storage_and_layout();
    let (k_start, v_start) = (k_layout.start_offset(), v_layout.start_offset());
    match (&*k_storage, &*v_storage) {
        (Storage::Cpu(CpuStorage::F32(k)), Storage::Cpu(CpuStorage::F32(v))) => {
            run(compute, Attention { step, k: &k[k_start..], v: &v[v_start..] });
        }
        (Storage::Cpu(CpuStorage::BF16(k)), Storage::Cpu(CpuStorage::BF16(v))) => {
            let (k, v) = (&k[k_start..], &v[v_start..]);
            if compute.factors() == Float::Bf16 && layer.head_dim().is_multiple_of(Paired::ROWS_OF_STEP) {
                run(compute, Attention { step, k: Paired::of(k), v: Paired::of(v) });
            } else {
                run(compute, Attention { step, k, v });
            }
        }
        (Storage::Cpu(CpuStorage::U8(k)), Storage::Cpu(CpuStorage::U8(v))) => {
            let (k, v) = (signed(&k[k_start..]), signed(&v[v_start..]));
            run(compute, Attention { step, k, v });
        }
        _ => return Err(ModelError::Input("a KV cache of none of its formats in host memory".into())),
    }
    // SAFETY: every token is of one chunk, and every head of one group; their task has written them.
    let out = unsafe { out.written() };
    Ok(Matrix::host(out, num_tokens, width))
}

struct Attention<'a, E> {
    step: Step<'a>,
    k: &'a [E],
    v: &'a [E],
}

/// All but the keys and values.
struct Step<'a> {
    compute: &'a Compute,
    q: &'a Rows<'a>,
    num_heads: usize,
    layer: &'a KvLayer,
    plan: &'a AttentionPlan<'a>,
    params: &'a AttentionParams,
    out: Output<f32>,
    /// K/V heads in a task of a token alone.
    heads_at_once: usize,
}

/// What is asked of an [`Attention`] is mostly asked of its step.
impl<'a, E> std::ops::Deref for Attention<'a, E> {
    type Target = Step<'a>;

    fn deref(&self) -> &Step<'a> {
        &self.step
    }
}

// SAFETY: numbers, whatever their bits.
unsafe impl Plain for RowChunk {}

/// What one task works on.
#[derive(Clone)]
struct Work {
    chunk: RowChunk,
    kv_heads: Range<usize>,
}

/// One tile of keys and values of one head; behind each of them the scales of its rows, if it has any.
struct KvTile<'a, E> {
    /// `[head_dim, KV_TILE]`
    k: &'a [E],
    /// `[KV_TILE, padded_head_dim]`
    v: &'a [E],
}

/// Rows whose running sums for two tiles fit the registers. Those of one tile are too few to hide the latency of the
/// multiply-add: a token alone is read for in half the time.
const fn max_pair_rows<I: Instructions>() -> usize {
    if I::TILE_SUMS < 2 * I::TILE_ROWS { I::TILE_SUMS / 2 } else { I::TILE_ROWS }
}

/// Keys of two tiles.
const VISIT: usize = 2 * KV_TILE;

impl<E: Cached> Kernel for Attention<'_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let Some(work) = self.work(task) else { return };
        let num_heads = work.kv_heads.len();
        let len = self.sums_len(work.chunk.num_rows);
        let mut numbers = self.compute.workspace().unwritten(num_heads * self.numbers_len(work.chunk.num_rows));
        let numbers = numbers.output();
        // SAFETY: parts of numbers that live to the end of the task, the states behind twice the sums of all heads.
        let (mut total, sums, states) = unsafe {
            let sums = |first| HeadSums::of(&numbers, first * num_heads * len, len, self.rows_of(work.chunk));
            let states_len = num_heads * self.state_len(work.chunk.num_rows);
            (sums(0), sums(1), numbers.part(2 * num_heads * len, states_len))
        };
        let mut states = self.start(&work, states, sums);
        for (index, span) in spans(self.tiles(work.chunk)).enumerate() {
            // SAFETY: passed on; both sums are of the same rows.
            unsafe {
                self.attend_span::<I>(&mut states, &work, span);
                if index == 0 {
                    std::mem::swap(&mut total, &mut states.sums);
                } else {
                    (0..num_heads).for_each(|head| total.head(head).add::<I::Vector>(&states.sums.head(head)));
                }
            }
        }
        for (index, kv_head) in work.kv_heads.enumerate() {
            // SAFETY: nobody else holds these sums.
            self.finish((work.chunk, kv_head), &unsafe { total.head(index) });
        }
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

impl<E: Cached> Attention<'_, E> {
    fn group(&self) -> usize {
        self.num_heads / self.layer.num_kv_heads()
    }

    fn num_tasks(&self) -> usize {
        self.plan.chunks().len() * self.layer.num_kv_heads()
    }

    /// `None` of a head that the task of one before takes along.
    #[inline(always)]
    fn work(&self, task: usize) -> Option<Work> {
        let num_kv_heads = self.layer.num_kv_heads();
        let (chunk, head) = (self.plan.chunks()[task / num_kv_heads], task % num_kv_heads);
        let at_once = if chunk.num_rows == 1 { self.heads_at_once } else { 1 };
        let kv_heads = head..num_kv_heads.min(head + at_once);
        head.is_multiple_of(at_once).then_some(Work { chunk, kv_heads })
    }

    /// Numbers in which the sums of as many tokens' query heads lie, in whole cache lines.
    fn sums_len(&self, num_tokens: usize) -> usize {
        (num_tokens * self.group() * (self.layer.padded_head_dim() + 2)).next_multiple_of(KV_TILE)
    }

    /// Numbers in which queries and weights of as many tokens lie while they are attended, in whole cache lines.
    fn state_len(&self, num_tokens: usize) -> usize {
        let rows = num_tokens * self.group();
        (rows * self.layer.head_dim()).next_multiple_of(KV_TILE) + rows * VISIT
    }

    /// Numbers of one K/V head of a task that goes through all spans.
    fn numbers_len(&self, num_tokens: usize) -> usize {
        2 * self.sums_len(num_tokens) + self.state_len(num_tokens)
    }

    /// The query rows of a K/V head, and elements of each sum.
    fn rows_of(&self, chunk: RowChunk) -> (usize, usize) {
        (chunk.num_rows * self.group(), self.layer.padded_head_dim())
    }

    fn first_position(&self, chunk: RowChunk) -> usize {
        self.plan.input().positions()[chunk.first_row] as usize
    }

    /// The tiles of which some token of the chunk sees something.
    fn tiles(&self, chunk: RowChunk) -> Range<usize> {
        let first_position = self.first_position(chunk);
        let num_keys = self.plan.input().num_keys(chunk.sequence);
        let keys_end = self.params.keys_end(first_position + chunk.num_rows - 1, num_keys);
        self.params.first_key(first_position) / KV_TILE..keys_end.div_ceil(KV_TILE)
    }

    /// Sets the states' sums to those of one span, whose tiles are named.
    ///
    /// # Safety
    /// The CPU must have the instructions; nobody else may hold the sums.
    #[inline(always)]
    unsafe fn attend_span<I: Instructions>(&self, states: &mut HeadStates<'_>, work: &Work, span: Range<usize>) {
        let Work { chunk, kv_heads } = work;
        // SAFETY: passed on.
        (0..kv_heads.len()).for_each(|head| unsafe { states.sums.head(head).clear() });
        let first_position = self.first_position(*chunk);
        let table = self.plan.input().block_table(self.layer.group(), chunk.sequence);
        let num_keys = self.plan.input().num_keys(chunk.sequence);
        let last_tile = self.tiles(*chunk).end - 1;
        let kv_tile = |tile: usize, kv_head| self.kv_tile(table, kv_head, tile.min(last_tile) * KV_TILE);
        // A token alone sees something of every tile up to its own.
        let tiles_per_visit = if chunk.num_rows == 1 && self.group() <= max_pair_rows::<I>() { 2 } else { 1 };
        let mut tile = span.start;
        while tile < span.end {
            let together = tiles_per_visit.min(span.end - tile);
            for kv_head in kv_heads.clone() {
                let (next_tile, next_head) =
                    if kv_head + 1 < kv_heads.end { (tile, kv_head + 1) } else { (tile + together, kv_heads.start) };
                let tiles = [kv_tile(tile, kv_head), kv_tile(tile + 1, kv_head)];
                let next = [kv_tile(next_tile, next_head), kv_tile(next_tile + 1, next_head)];
                // SAFETY: the states and the tiles have the sizes that the layer says; the caller vouches for the rest.
                unsafe {
                    let mut state = states.head(kv_head - kv_heads.start);
                    if together == 2 {
                        self.pair_scores::<I>(&mut state, [&tiles[0], &tiles[1], &next[0]]);
                    }
                    for (index, kv) in tiles.iter().zip(&next).map(|(kv, next)| [kv, next]).enumerate().take(together) {
                        let start = (tile + index) * KV_TILE;
                        let view = TileView::new(start, (first_position, chunk.num_rows), num_keys, self.params);
                        let visit = Visit { kv, view, kv_head, column: index * KV_TILE };
                        if together == 1 {
                            self.scores::<I>(&mut state, &visit);
                        }
                        self.attend::<I>(&mut state, &visit);
                    }
                }
            }
            tile += together;
        }
    }

    /// The states of all heads in `numbers`, as many as [`Self::state_len`] says for each.
    #[inline(always)]
    fn start<'s>(&self, work: &Work, numbers: &'s mut [f32], sums: HeadSums<'s>) -> HeadStates<'s> {
        let (width, chunk) = (self.group() * self.layer.head_dim(), work.chunk);
        let len = self.state_len(chunk.num_rows);
        let weights_start = (chunk.num_rows * width).next_multiple_of(KV_TILE);
        for (kv_head, state) in work.kv_heads.clone().zip(numbers.chunks_exact_mut(len)) {
            let (q, weights) = state.split_at_mut(weights_start);
            for (token, q) in q.chunks_exact_mut(width).enumerate().take(chunk.num_rows) {
                let row = chunk.first_row + token;
                q.copy_from_slice(&self.q.row(row)[kv_head * width..(kv_head + 1) * width]);
                if let Some(temperature) = &self.params.temperature {
                    let factor = temperature.factor(self.plan.input().positions()[row]);
                    q.iter_mut().for_each(|q| *q *= factor);
                }
                q.chunks_exact_mut(self.layer.head_dim()).for_each(E::put_factors);
            }
            weights.fill(0.0);
        }
        HeadStates { numbers, len, weights_start, sums }
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
    unsafe fn attend<I: Instructions>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_, E>) {
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
    fn rows_of_tokens(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start * self.group()..tokens.end * self.group()
    }

    /// From dot products to weights, for the query heads of one token.
    #[inline(always)]
    unsafe fn weigh_token<V: Vector>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_, E>, token: usize) {
        let (group, padded, keys) = (self.group(), self.layer.padded_head_dim(), visit.view.keys(token));
        let k_scales = E::scales(&visit.kv[0].k[KV_TILE * self.layer.head_dim()..]);
        let v_scales = E::scales(&visit.kv[0].v[KV_TILE * padded..]);
        for index in 0..group {
            let row = token * group + index;
            let scores = &mut state.weights[row * VISIT + visit.column..].as_chunks_mut::<KV_TILE>().0[0];
            multiply_by(scores, k_scales);
            let scale = self.finish_scores(scores, &visit.view, token, visit.kv_head * group + index);
            let sums = (&mut state.sums.max[row], &mut state.sums.sum[row]);
            // SAFETY: the token sees some of the scores; passed on.
            let factor = unsafe {
                let (weights, factor) = weigh::<V>(scores, scale, keys.clone(), sums);
                E::put_weights(weights, v_scales, scores);
                factor
            };
            if factor != 1.0 {
                for out in &mut state.sums.out[row * padded..(row + 1) * padded] {
                    *out *= factor;
                }
            }
        }
    }

    /// From dot products to scores, but for the factor that is returned.
    #[inline(always)]
    fn finish_scores(&self, scores: &mut [f32; KV_TILE], view: &TileView<'_>, token: usize, query_head: usize) -> f32 {
        let params = self.params;
        if params.soft_cap.is_none() && params.alibi_slopes.is_none() {
            return params.scale;
        }
        for score in &mut *scores {
            *score *= params.scale;
        }
        if let Some(cap) = params.soft_cap {
            for score in &mut *scores {
                *score = cap * (*score / cap).tanh();
            }
        }
        if let Some(slopes) = &params.alibi_slopes {
            let position = view.position(token) as f32;
            for (key, score) in scores.iter_mut().enumerate() {
                *score += slopes[query_head] * ((view.start + key) as f32 - position);
            }
        }
        1.0
    }

    /// The dot products of one tile with the rows of the tokens that see it.
    #[inline(always)]
    unsafe fn scores<I: Instructions>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_, E>) {
        let rows = self.rows_of_tokens(visit.view.tokens.clone());
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

    /// The dot products of the first two tiles with all rows, at most [`max_pair_rows`].
    #[inline(always)]
    unsafe fn pair_scores<I: Instructions>(&self, state: &mut ChunkState<'_>, kv: [&KvTile<'_, E>; 3]) {
        let between = elements_between(kv[0].k, kv[1].k);
        let factors = Factors {
            w_panel_stride: between,
            ahead_panel_stride: between,
            ..self.score_factors(state, [kv[0], kv[2]], 0)
        };
        let to = state.weights.as_mut_ptr();
        // SAFETY: as above; both tiles stand in one cache, `between` elements apart.
        unsafe {
            with_rows!(self.group(), max_pair_rows::<I>(), ROWS => I::apart(Scores::<E, ROWS, 2> { factors, to }));
        }
    }

    #[inline(always)]
    fn score_factors(&self, state: &ChunkState<'_>, kv: [&KvTile<'_, E>; 2], first_row: usize) -> Factors<E> {
        let head_dim = self.layer.head_dim();
        Factors {
            x: state.q[first_row * head_dim..].as_ptr().cast(),
            x_stride: head_dim,
            w: kv[0].k.as_ptr(),
            w_stride: E::ROWS_OF_STEP * KV_TILE,
            w_panel_stride: 0,
            depth: head_dim / E::ROWS_OF_STEP,
            ahead: kv[1].k.as_ptr(),
            ahead_stride: E::ROWS_OF_STEP * KV_TILE,
            ahead_panel_stride: 0,
        }
    }

    #[inline(always)]
    fn finish(&self, (chunk, kv_head): (RowChunk, usize), sums: &RowSums<'_>) {
        let (group, head_dim, padded) = (self.group(), self.layer.head_dim(), self.layer.padded_head_dim());
        for row in 0..chunk.num_rows * group {
            let query_head = kv_head * group + row % group;
            let start = ((chunk.first_row + row / group) * self.num_heads + query_head) * head_dim;
            // SAFETY: this token's query head, which belongs to this task alone.
            let out = unsafe { self.out.part(start, head_dim) };
            let (factor, sum_of_weights) = self.with_sink(query_head, (sums.max[row], sums.sum[row]));
            for (out, sum) in out.iter_mut().zip(&sums.out[row * padded..]) {
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

/// From a tile to another of the same cache.
#[inline(always)]
fn elements_between<E>(tile: &[E], other: &[E]) -> isize {
    other.as_ptr().addr().wrapping_sub(tile.as_ptr().addr()) as isize / size_of::<E>() as isize
}
