#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! What rows make of the keys that they meet in one visit.

use std::ops::Range;

use super::super::instructions::Instructions;
use super::super::tile::{Factors, with_rows};
use super::super::vector::Sixteen;
use super::Attention;
use super::heads::ChunkState;
use super::keys_view::KeysView;
use super::paired::Cached;
use super::pieces::{Scores, multiply_by, weigh};
use crate::BlockId;
use crate::kv_cache::KV_TILE;

/// Tiles that are visited together: enough that what is done once for each row and visit, reductions and the scaling of its
/// sums, takes little beside the products.
pub(super) const TILES_OF_VISIT: usize = 4;

/// Their keys.
pub(super) const VISIT: usize = TILES_OF_VISIT * KV_TILE;

/// One tile of keys and values of one head; behind each of them the scales of its rows, if it has any.
pub(super) struct KvTile<'a, E> {
    /// `[head_dim, KV_TILE]`
    pub(super) k: &'a [E],
    /// `[KV_TILE, padded_head_dim]`
    pub(super) v: &'a [E],
}

/// Some tiles in their turn; the first stands at a multiple of as many.
pub(super) struct Visit<'a, E> {
    /// Each tile, and the one that will be read in its place after it. Of those beyond the view no number counts.
    pub(super) kv: [[KvTile<'a, E>; 2]; TILES_OF_VISIT],
    /// Of all of them.
    pub(super) view: KeysView<'a>,
    pub(super) kv_head: usize,
}

impl<'a, E> Visit<'a, E> {
    fn num_tiles(&self) -> usize {
        self.view.num_keys() / KV_TILE
    }

    /// Of one tile.
    #[inline(always)]
    pub(super) fn view_of(&self, tile: usize) -> KeysView<'a> {
        self.view.part(tile * KV_TILE..(tile + 1) * KV_TILE)
    }
}

/// Rows whose running sums for two tiles fit the registers. Those of one tile are too few to hide the latency of the
/// multiply-add: a token alone is read for in half the time.
pub(super) const fn max_pair_rows<I: Instructions>() -> usize {
    if I::TILE_SUMS < 2 * I::TILE_ROWS { I::TILE_SUMS / 2 } else { I::TILE_ROWS }
}

impl<E: Cached> Attention<'_, E> {
    #[inline(always)]
    pub(super) fn kv_tile(&self, table: &[BlockId], kv_head: usize, position: usize) -> KvTile<'_, E> {
        let (block_size, padded) = (self.layer.block_size(), self.layer.padded_head_dim());
        let block = table[position / block_size].0 as usize * self.layer.num_kv_heads() + kv_head;
        let tile = (block * block_size + position % block_size) / KV_TILE;
        let [k_len, v_len] = [self.layer.head_dim(), padded].map(|width| KV_TILE * width + E::SCALES_LEN);
        KvTile { k: &self.k[tile * k_len..][..k_len], v: &self.v[tile * v_len..][..v_len] }
    }

    /// The state's rows of `tokens`.
    #[inline(always)]
    pub(super) fn rows_of_tokens(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start * self.group()..tokens.end * self.group()
    }

    /// Adds what is visited to the rows of the tokens that see some of it.
    ///
    /// # Safety
    /// The state and the tiles have the layer's sizes; the CPU has the instructions.
    #[inline(always)]
    pub(super) unsafe fn attend<I: Instructions>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_, E>) {
        let tokens = visit.view.tokens.clone();
        // SAFETY: the rows are the state's; passed on.
        unsafe {
            for tile in (0..visit.num_tiles()).step_by(2) {
                self.scores::<I>(state, visit, tile);
            }
            for token in tokens.clone() {
                self.weigh_token::<I::Panel>(state, visit, token);
            }
            let is_whole = |tile| visit.view_of(tile).whole == tokens;
            let mut tile = 0;
            while tile < visit.num_tiles() {
                let whole = (tile..visit.num_tiles()).take_while(|&tile| is_whole(tile)).count();
                if whole > 0 {
                    self.add_tiles::<I>(state, visit, tokens.clone(), tile..tile + whole);
                } else {
                    self.add_seen::<I>(state, visit, tile);
                }
                tile += whole.max(1);
            }
        }
    }

    /// Only keys that a row sees are added to it: a masked value may be anything, not a number included.
    #[inline(always)]
    unsafe fn add_seen<I: Instructions>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_, E>, tile: usize) {
        let view = visit.view_of(tile);
        // SAFETY: passed on.
        unsafe {
            for token in view.tokens.clone().filter(|token| !view.whole.contains(token)) {
                self.add_values::<I>(state, visit, token, (tile, view.keys(token)));
            }
            if !view.whole.is_empty() {
                self.add_tiles::<I>(state, visit, view.whole, tile..tile + 1);
            }
        }
    }

    /// From dot products to weights, for the query heads of one token.
    #[inline(always)]
    unsafe fn weigh_token<P: Sixteen>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_, E>, token: usize) {
        let (group, padded, keys) = (self.group(), self.layer.padded_head_dim(), visit.view.keys(token));
        for index in 0..group {
            let row = token * group + index;
            let scores = &mut state.weights.as_chunks_mut::<VISIT>().0[row];
            // Beyond the tiles that the token sees there may be weights of the visit before, which are masked first of all.
            let scale = self.finish_scores(scores, visit, token, visit.kv_head * group + index);
            let sums = (&mut state.sums.max[row], &mut state.sums.sum[row]);
            // SAFETY: the token sees some of the scores; passed on.
            let factor = unsafe {
                let (weights, factor) = weigh::<P>(scores, scale, keys.clone(), sums);
                let places = scores.chunks_exact_mut(KV_TILE / E::ROWS_OF_STEP);
                for ((to, weights), [tile, _]) in places.zip(weights).zip(&visit.kv) {
                    E::put_weights(weights, E::scales(&tile.v[KV_TILE * padded..]), to);
                }
                factor
            };
            if factor != 1.0 {
                for out in state.sums.out[row * padded..(row + 1) * padded].as_chunks_mut::<KV_TILE>().0 {
                    // SAFETY: as many numbers as there are lanes; passed on.
                    unsafe { P::load(out.as_ptr()).mul(P::splat(factor)).store(out.as_mut_ptr()) };
                }
            }
        }
    }

    /// From dot products to scores, but for the factor that is returned.
    #[inline(always)]
    fn finish_scores(&self, scores: &mut [f32; VISIT], visit: &Visit<'_, E>, token: usize, query_head: usize) -> f32 {
        for (scores, [tile, _]) in scores.as_chunks_mut().0.iter_mut().zip(&visit.kv) {
            multiply_by(scores, E::scales(&tile.k[KV_TILE * self.layer.head_dim()..]));
        }
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
            let position = visit.view.position(token) as f32;
            for (key, score) in scores.iter_mut().enumerate() {
                *score += slopes[query_head] * ((visit.view.start() + key) as f32 - position);
            }
        }
        1.0
    }

    /// The dot products of a tile, and of the one behind it if there is one, with the rows of the tokens that see some of them.
    #[inline(always)]
    unsafe fn scores<I: Instructions>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_, E>, tile: usize) {
        let end = visit.num_tiles().min(tile + 2);
        let rows = self.rows_of_tokens(visit.view.part(tile * KV_TILE..end * KV_TILE).tokens);
        let mut first = rows.start;
        while first < rows.end {
            let num_rows = I::TILE_ROWS.min(rows.end - first);
            let weights = state.weights[first * VISIT..].as_mut_ptr();
            let to = |tile: usize| weights.wrapping_add(tile * KV_TILE);
            // SAFETY: as many rows of `head_dim` queries and of scores; a tile is `head_dim` by `KV_TILE`; both stand in one
            // cache, as far apart as the factors say.
            unsafe {
                if tile + 1 < end && num_rows <= max_pair_rows::<I>() {
                    let (factors, to) = (self.score_factors(state, visit, (first, tile)), to(tile));
                    with_rows!(num_rows, max_pair_rows::<I>(), ROWS => I::apart(Scores::<E, ROWS, 2> { factors, to }));
                } else {
                    for tile in tile..end {
                        let (factors, to) = (self.score_factors(state, visit, (first, tile)), to(tile));
                        with_rows!(num_rows, I::TILE_ROWS, ROWS => I::apart(Scores::<E, ROWS, 1> { factors, to }));
                    }
                }
            }
            first += num_rows;
        }
    }

    #[inline(always)]
    fn score_factors(
        &self,
        state: &ChunkState<'_>,
        visit: &Visit<'_, E>,
        (first_row, tile): (usize, usize),
    ) -> Factors<E> {
        let head_dim = self.layer.head_dim();
        let [[one, next], [other, next_other]] = [tile, (tile + 1).min(TILES_OF_VISIT - 1)].map(|tile| {
            let [tile, next] = &visit.kv[tile];
            [tile.k, next.k]
        });
        Factors {
            x: state.q[first_row * head_dim..].as_ptr().cast(),
            x_stride: head_dim,
            w: one.as_ptr(),
            w_stride: E::ROWS_OF_STEP * KV_TILE,
            w_panel_stride: elements_between(one, other),
            depth: head_dim / E::ROWS_OF_STEP,
            ahead: next.as_ptr(),
            ahead_stride: E::ROWS_OF_STEP * KV_TILE,
            ahead_panel_stride: elements_between(next, next_other),
        }
    }
}

/// From a tile to another of the same cache.
#[inline(always)]
fn elements_between<E>(tile: &[E], other: &[E]) -> isize {
    other.as_ptr().addr().wrapping_sub(tile.as_ptr().addr()) as isize / size_of::<E>() as isize
}
