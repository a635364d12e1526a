#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! Attention over the paged cache, a few tiles at a time ([`visit`]).
//!
//! One task is one chunk of a sequence's tokens with one K/V head: `tokens * group` query rows that share every tile they
//! read. A token alone, which waits for memory, has several heads in a task, so that memory is read nearly in order ([`Visit`]).
//! Where tasks are too few for the threads, each is one span of
//! keys ([`mod@spans`]). Both products are the inner loop of [`tile`](super::tile): `scores = q k^T` over the 16 keys of a tile
//! side by side, then `out += weights v` with the keys of a visit as depth.

mod heads;
mod keys_view;
mod paired;
mod pieces;
mod row_sums;
mod spans;
mod values;
mod visit;

use std::ops::Range;

use candle_core::{CpuStorage, Storage};

use super::buffer::Plain;
use super::cache_element::signed;
use super::instructions::Instructions;
use super::lanes::Lanes;
use super::new_rows::{NewRows, RowOutput, STRETCH};
use super::row_stride::CACHE_LINE;
use super::vector::Vector;
use super::view::Rows;
use crate::ModelError;
use crate::kv_cache::{KV_TILE, KvLayer};
use crate::ops::attention::RowChunk;
use crate::ops::{AttentionContext, AttentionParams, AttentionPlan, Compute, Float, Matrix, QueriesView};
use heads::{HeadStates, HeadSums};
use keys_view::KeysView;
use paired::{Cached, Paired};
use row_sums::RowSums;
use spans::{run, spans};
use visit::{TILES_OF_VISIT, VISIT, Visit};

/// Shapes and block tables are checked by the caller.
pub(crate) fn paged_attention(
    compute: &Compute,
    q: QueriesView<'_>,
    context: AttentionContext<'_>,
    form: Float,
) -> Result<Matrix, ModelError> {
    let AttentionContext { layer, plan, params } = context;
    let num_heads = q.num_heads;
    let mut out = NewRows::new(compute, form, q.num_tokens, num_heads * q.head_dim);
    let q = Rows::of(q.rows)?;
    let group = num_heads / layer.num_kv_heads();
    let step = Step { compute, q: &q, group, layer, plan, params, out: out.output(), heads_at_once: 1 };
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
    Ok(unsafe { out.written() })
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
    /// Query heads of a K/V head.
    group: usize,
    layer: &'a KvLayer,
    plan: &'a AttentionPlan<'a>,
    params: &'a AttentionParams,
    /// `[num_tokens, num_heads * head_dim]`
    out: RowOutput,
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

impl<E: Cached> Attention<'_, E> {
    /// Runs task `task`, and asks for the queries of task `next`, if there is one.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::launch::Kernel::run).
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize, next: Option<usize>) {
        let Some(work) = self.work(task) else { return };
        let num_heads = work.kv_heads.len();
        let len = self.sums_len(work.chunk.num_rows);
        let (num_rows, num_sums) = (work.chunk.num_rows, self.num_sums(work.chunk));
        let mut numbers = self.compute.workspace().unwritten(num_heads * self.numbers_len(num_rows, num_sums));
        let numbers = numbers.output();
        // SAFETY: parts of numbers that live to the end of the task, the states behind the sums of all heads.
        let (mut total, sums, states) = unsafe {
            let sums = |which| HeadSums::of(&numbers, which * num_heads * len, len, self.rows_of(work.chunk));
            let states_len = num_heads * self.state_len(num_rows);
            (sums(0), sums(num_sums - 1), numbers.part(num_sums * num_heads * len, states_len))
        };
        // SAFETY: passed on.
        let mut states = unsafe { self.start::<I::Vector>(&work, states, sums) };
        self.ask_for_outputs::<I::Panel>(&work);
        if let Some(next) = next.and_then(|next| self.work(next)) {
            self.ask_for_queries::<I::Panel>(&next);
        }
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
            // SAFETY: nobody else holds these sums, nor the outputs; passed on.
            unsafe { self.finish::<I::Vector>(work.chunk, kv_head, &total.head(index)) };
        }
    }
}

impl<E: Cached> Attention<'_, E> {
    /// The query heads of a task, as columns of a token's.
    fn columns(&self, work: &Work) -> Range<usize> {
        let width = self.group * self.layer.head_dim();
        work.kv_heads.start * width..work.kv_heads.end * width
    }

    #[inline(always)]
    fn ask_for_outputs<L: Lanes>(&self, work: &Work) {
        for token in 0..work.chunk.num_rows {
            self.out.ask::<L>(work.chunk.first_row + token, self.columns(work));
        }
    }

    #[inline(always)]
    fn ask_for_queries<L: Lanes>(&self, work: &Work) {
        for token in 0..work.chunk.num_rows {
            let queries = &self.q.row(work.chunk.first_row + token)[self.columns(work)];
            for line in queries.chunks(CACHE_LINE / size_of::<f32>()) {
                L::prefetch_to_second_level(line.as_ptr());
            }
        }
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
        (num_tokens * self.group * (self.layer.padded_head_dim() + 2)).next_multiple_of(KV_TILE)
    }

    /// Numbers in which queries and weights of as many tokens lie while they are attended, in whole cache lines.
    fn state_len(&self, num_tokens: usize) -> usize {
        let rows = num_tokens * self.group;
        (rows * self.layer.head_dim()).next_multiple_of(KV_TILE) + rows * VISIT
    }

    /// Numbers of one K/V head of a task that goes through all spans, with so many sums.
    fn numbers_len(&self, num_tokens: usize, num_sums: usize) -> usize {
        num_sums * self.sums_len(num_tokens) + self.state_len(num_tokens)
    }

    /// Those of all spans so far, and those of one, which are the same where it is alone.
    fn num_sums(&self, chunk: RowChunk) -> usize {
        spans(self.tiles(chunk)).take(2).count()
    }

    /// The query rows of a K/V head, and elements of each sum.
    fn rows_of(&self, chunk: RowChunk) -> (usize, usize) {
        (chunk.num_rows * self.group, self.layer.padded_head_dim())
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
        let chunk_at = (self.first_position(*chunk), chunk.num_rows);
        let table = self.plan.input().block_table(self.layer.group(), chunk.sequence);
        let num_keys = self.plan.input().num_keys(chunk.sequence);
        let last_tile = self.tiles(*chunk).end - 1;
        let mut tile = span.start;
        while tile < span.end {
            // A row's sums are made in the same order wherever its window or its chunk begins.
            let first = tile / TILES_OF_VISIT * TILES_OF_VISIT;
            let next = first + TILES_OF_VISIT;
            let keys = first * KV_TILE..next.min(span.end) * KV_TILE;
            let visit = Visit {
                tiles: std::array::from_fn(|index| self.tile_at(table, (first + index).min(last_tile) * KV_TILE)),
                view: KeysView::new(keys, chunk_at, num_keys, self.params),
                kv_heads: kv_heads.clone(),
            };
            // SAFETY: the states and the tiles have the sizes that the layer says; the caller vouches for the rest.
            unsafe { self.attend::<I>(states, &visit) };
            tile = next;
        }
    }

    /// The states of all heads in `numbers`, as many as [`Self::state_len`] says for each.
    ///
    /// # Safety
    /// The CPU must have `V`'s instructions.
    #[inline(always)]
    unsafe fn start<'s, V: Vector>(&self, work: &Work, numbers: &'s mut [f32], sums: HeadSums<'s>) -> HeadStates<'s> {
        let (width, chunk) = (self.group * self.layer.head_dim(), work.chunk);
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
                for q in q.chunks_exact_mut(self.layer.head_dim()) {
                    // SAFETY: passed on.
                    unsafe { E::put_factors::<V>(q) };
                }
            }
            weights.fill(0.0);
        }
        HeadStates { numbers, first_kv_head: work.kv_heads.start, len, weights_start, sums }
    }

    /// # Safety
    /// Nobody else may hold the outputs of this head's queries; the CPU must have `V`'s instructions.
    #[inline(always)]
    unsafe fn finish<V: Vector>(&self, chunk: RowChunk, kv_head: usize, sums: &RowSums<'_>) {
        let (group, head_dim, padded) = (self.group, self.layer.head_dim(), self.layer.padded_head_dim());
        let mut numbers = [0.0; STRETCH];
        for row in 0..chunk.num_rows * group {
            let query_head = kv_head * group + row % group;
            let factor = self.factor_of_sums(query_head, sums.max[row], sums.sum[row]);
            for (index, sums) in sums.out[row * padded..][..head_dim].chunks(STRETCH).enumerate() {
                let numbers = &mut numbers[..sums.len()];
                for (number, sum) in numbers.iter_mut().zip(sums) {
                    *number = sum * factor;
                }
                let (token, column) = (chunk.first_row + row / group, query_head * head_dim + index * STRETCH);
                // SAFETY: passed on.
                unsafe { self.out.write::<V>(token, column, numbers) };
            }
        }
    }

    /// What the sums of values are multiplied with, once a head's sink is counted.
    #[inline(always)]
    fn factor_of_sums(&self, query_head: usize, max: f32, sum: f32) -> f32 {
        let Some(sinks) = &self.params.sinks else { return 1.0 / sum };
        let highest = max.max(sinks[query_head]);
        let factor = (max - highest).exp();
        factor / (sum * factor + (sinks[query_head] - highest).exp())
    }
}
