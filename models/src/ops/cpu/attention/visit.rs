#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! What rows make of the keys that they meet in one visit.

use std::ops::Range;

use super::super::instructions::Instructions;
use super::super::lanes::Lanes;
use super::super::row_stride::CACHE_LINE;
use super::super::tile::{panels_together, with_panels, with_rows};
use super::super::vector::Sixteen;
use super::Attention;
use super::heads::{ChunkState, HeadStates};
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

/// How many heads ahead of its use a tile is asked for, where a visit has as many: far enough for memory to answer, and of
/// one tile each still in the cache that they are asked into.
const HEADS_AHEAD: usize = 3;

/// Which tile of the caches, of the layer's first head.
#[derive(Clone, Copy)]
pub(super) struct TileIndex(usize);

/// Which tile, and of which K/V head.
pub(super) type HeadTile = (TileIndex, usize);

/// Some tiles of some heads in their turn; the first stands at a multiple of as many. Where several heads wait for
/// memory, what lies side by side in a block of the cache is read in its order: here four blocks of a tile each, and
/// two heads,
///
/// ```text
///               head 0   head 1
/// k    block 7 |   1.  >    2.         all scores of the visit first, block by block
///      block 2 |   3.  >    4.
///      block 3 |   5.  >    6.
///      block 9 |   7.  >    8.
/// v    block 7 |   9.  >   10.         then, weighed, its values
///      ..
/// ```
pub(super) struct Visit<'a> {
    /// These, and those of the next visit. Of those beyond the view no number counts.
    pub(super) tiles: [TileIndex; 2 * TILES_OF_VISIT],
    /// Of all of them.
    pub(super) view: KeysView<'a>,
    pub(super) kv_heads: Range<usize>,
}

impl<'a> Visit<'a> {
    fn num_tiles(&self) -> usize {
        self.view.num_keys() / KV_TILE
    }

    /// Of one tile.
    #[inline(always)]
    pub(super) fn view_of(&self, tile: usize) -> KeysView<'a> {
        self.view.part(tile * KV_TILE..(tile + 1) * KV_TILE)
    }
}

/// Where some scores begin.
struct ScoresAt {
    row: usize,
    tile: usize,
    /// Tiles that are read for a head before it is the next one's turn.
    in_turn: usize,
}

/// All lines of a tile, in the second-level cache.
#[inline(always)]
pub(super) fn ask_for<L: Lanes, E>(tile: &[E]) {
    for line in tile.chunks(CACHE_LINE / size_of::<E>()) {
        L::prefetch_to_second_level(line.as_ptr());
    }
}

impl<E: Cached> Attention<'_, E> {
    #[inline(always)]
    pub(super) fn tile_at(&self, table: &[BlockId], position: usize) -> TileIndex {
        let block_size = self.layer.block_size();
        let block = table[position / block_size].0 as usize * self.layer.num_kv_heads();
        TileIndex((block * block_size + position % block_size) / KV_TILE)
    }

    /// One tile of keys of one head, `[head_dim, KV_TILE]`; behind it the scales of its rows, if it has any.
    #[inline(always)]
    fn keys_of(&self, of: HeadTile) -> &[E] {
        self.tile(self.k, self.layer.head_dim(), of)
    }

    /// One of values, `[KV_TILE, padded_head_dim]`, and the scales of its rows.
    #[inline(always)]
    pub(super) fn values_of(&self, of: HeadTile) -> &[E] {
        self.tile(self.v, self.layer.padded_head_dim(), of)
    }

    #[inline(always)]
    fn tile<'b>(&self, all: &'b [E], width: usize, (TileIndex(first), kv_head): HeadTile) -> &'b [E] {
        let tile = first + kv_head * (self.layer.block_size() / KV_TILE);
        let len = KV_TILE * width + E::SCALES_LEN;
        &all[tile * len..][..len]
    }

    /// Whether all of a tile is asked for when another is begun with: where several heads wait for memory.
    #[inline(always)]
    pub(super) fn asks_at_once<I: Instructions>(&self, visit: &Visit<'_>) -> bool {
        visit.kv_heads.len() > 1 && I::asks_for_whole_tiles()
    }

    /// What to ask for while `tile` is read, one of `num_tiles` that are read together: its like [`HEADS_AHEAD`] heads
    /// later, which behind the last head is a first one's, so many tiles further.
    #[inline(always)]
    pub(super) fn ahead(&self, visit: &Visit<'_>, tile: usize, kv_head: usize, num_tiles: usize) -> HeadTile {
        let num_heads = visit.kv_heads.len();
        let next = kv_head + HEADS_AHEAD.min(num_heads);
        if next < visit.kv_heads.end {
            (visit.tiles[tile], next)
        } else {
            (visit.tiles[tile + num_tiles], next - num_heads)
        }
    }

    /// The state's rows of `tokens`.
    #[inline(always)]
    pub(super) fn rows_of_tokens(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start * self.group..tokens.end * self.group
    }

    /// Adds what is visited to the rows of the tokens that see some of it.
    ///
    /// # Safety
    /// The states and the tiles have the layer's sizes; the CPU has the instructions.
    #[inline(always)]
    pub(super) unsafe fn attend<I: Instructions>(&self, states: &mut HeadStates<'_>, visit: &Visit<'_>) {
        let tokens = visit.view.tokens.clone();
        // SAFETY: the rows are the states'; passed on.
        unsafe {
            let [keys_in_turn, values_in_turn] = self.tiles_in_turn::<I>(visit);
            for tile in (0..visit.num_tiles()).step_by(keys_in_turn) {
                for kv_head in visit.kv_heads.clone() {
                    self.scores::<I>(&mut states.head(kv_head), visit, tile..tile + keys_in_turn);
                }
            }
            for kv_head in visit.kv_heads.clone() {
                for token in tokens.clone() {
                    self.weigh_token::<I::Panel>(&mut states.head(kv_head), visit, token);
                }
            }
            let is_whole = |tile| visit.view_of(tile).whole == tokens;
            let mut tile = 0;
            while tile < visit.num_tiles() {
                let whole = (tile..visit.num_tiles()).take(values_in_turn).take_while(|&tile| is_whole(tile)).count();
                for kv_head in visit.kv_heads.clone() {
                    let state = &mut states.head(kv_head);
                    if whole > 0 {
                        self.add_tiles::<I>(state, visit, tokens.clone(), tile..tile + whole);
                    } else {
                        self.add_seen::<I>(state, visit, tile);
                    }
                }
                tile += whole.max(1);
            }
        }
    }

    /// Tiles of keys, and of values, that are read for a head before it is the next one's turn. One lies in memory in front of
    /// the next head's, in blocks of one tile, and one stream is what memory is fastest with, though several tiles hide more
    /// of the multiply-add's latency. With few registers, as few tiles as hide it are read in turn. Where products take longer
    /// than memory (rows that fill the registers with one tile, or bytes to widen), and for values that take several passes
    /// of wide registers, with their sums' way to the cache and back for each, several take less time. Not where whole tiles are
    /// asked for: the sums' way is short beside memory's answers, which come in the order of its addresses then.
    fn tiles_in_turn<I: Instructions>(&self, visit: &Visit<'_>) -> [usize; 2] {
        if visit.kv_heads.len() == 1 || size_of::<E>() == 1 {
            return [TILES_OF_VISIT; 2];
        }
        if I::TILE_SUMS == I::TILE_ROWS {
            let hiding = panels_together::<I>(self.group, TILES_OF_VISIT);
            return [if hiding > 1 { hiding } else { TILES_OF_VISIT }; 2];
        }
        if self.asks_at_once::<I>(visit) {
            return [1; 2];
        }
        let panels = self.layer.padded_head_dim() / KV_TILE;
        let is_one_pass = panels_together::<I>(self.group, panels) == panels;
        [1, if is_one_pass { 1 } else { TILES_OF_VISIT }]
    }

    /// Only keys that a row sees are added to it: a masked value may be anything, not a number included.
    #[inline(always)]
    unsafe fn add_seen<I: Instructions>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_>, tile: usize) {
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
    unsafe fn weigh_token<P: Sixteen>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_>, token: usize) {
        let (group, padded, keys) = (self.group, self.layer.padded_head_dim(), visit.view.keys(token));
        for index in 0..group {
            let row = token * group + index;
            let scores = &mut state.weights.as_chunks_mut::<VISIT>().0[row];
            // Beyond the tiles that the token sees there may be weights of the visit before, which are masked first of all.
            let scale = self.finish_scores(scores, visit, token, state.kv_head * group + index);
            let (max, sum) = (&mut state.sums.max[row], &mut state.sums.sum[row]);
            // SAFETY: the token sees some of the scores; passed on.
            let factor = unsafe {
                let (weights, factor) = weigh::<P>(scores, scale, keys.clone(), max, sum);
                let places = scores.chunks_exact_mut(KV_TILE / E::ROWS_OF_STEP);
                for ((to, weights), &tile) in places.zip(weights).zip(&visit.tiles) {
                    let values = self.values_of((tile, state.kv_head));
                    E::put_weights(weights, E::scales(&values[KV_TILE * padded..]), to);
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
    fn finish_scores(&self, scores: &mut [f32; VISIT], visit: &Visit<'_>, token: usize, query_head: usize) -> f32 {
        for (scores, &tile) in scores.as_chunks_mut().0.iter_mut().zip(&visit.tiles) {
            let keys = self.keys_of((tile, query_head / self.group));
            multiply_by(scores, E::scales(&keys[KV_TILE * self.layer.head_dim()..]));
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

    /// The dot products of some tiles with the rows of the tokens that see some of them.
    #[inline(always)]
    unsafe fn scores<I: Instructions>(&self, state: &mut ChunkState<'_>, visit: &Visit<'_>, tiles: Range<usize>) {
        let rows = self.rows_of_tokens(visit.view.tokens.clone());
        for first in rows.clone().step_by(I::TILE_ROWS) {
            let num_rows = I::TILE_ROWS.min(rows.end - first);
            let [first_token, last_token] = [first, first + num_rows - 1].map(|row| row / self.group);
            let keys = visit.view.keys(first_token).start..visit.view.keys(last_token).end;
            let seen = tiles.start.max(keys.start / KV_TILE)..tiles.end.min(keys.end.div_ceil(KV_TILE));
            let mut tile = seen.start;
            while tile < seen.end {
                let together = panels_together::<I>(num_rows, seen.end - tile);
                if self.asks_at_once::<I>(visit) && first == rows.start {
                    ask_for::<I::Panel, E>(self.keys_of(self.ahead(visit, tile, state.kv_head, tiles.len())));
                }
                let place = ScoresAt { row: first, tile, in_turn: tiles.len() };
                // SAFETY: as many rows of `head_dim` queries and of scores, those of a visit's tiles, of which there
                // are so many from here on; a tile is `head_dim` by `KV_TILE`.
                unsafe {
                    with_rows!(num_rows, I::TILE_ROWS, ROWS => with_panels!(I, ROWS, together, [4 2], TILES => {
                        I::apart(self.scores_of::<I, ROWS, TILES>(state, visit, place));
                    }));
                }
                tile += together;
            }
        }
    }

    #[inline(always)]
    fn scores_of<I: Instructions, const ROWS: usize, const TILES: usize>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_>,
        ScoresAt { row, tile, in_turn }: ScoresAt,
    ) -> Scores<E, ROWS, TILES> {
        let head_dim = self.layer.head_dim();
        let keys = std::array::from_fn(|index| self.keys_of((visit.tiles[tile + index], state.kv_head)).as_ptr());
        let ahead_of = |index| self.keys_of(self.ahead(visit, tile + index, state.kv_head, in_turn)).as_ptr();
        Scores {
            queries: state.q[row * head_dim..].as_ptr().cast(),
            head_dim,
            keys,
            // Where they were asked for before, what each step asks for is at hand.
            ahead: if self.asks_at_once::<I>(visit) { keys } else { std::array::from_fn(ahead_of) },
            to: state.weights[row * VISIT + tile * KV_TILE..].as_mut_ptr(),
        }
    }
}
