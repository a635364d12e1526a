#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! The second product of attention: `out += weights v`, the keys of some tiles as depth.

use std::ops::Range;

use super::super::instructions::Instructions;
use super::super::lanes::Lanes;
use super::super::tile::{panels_together, with_panels, with_rows};
use super::Attention;
use super::heads::ChunkState;
use super::paired::Cached;
use super::pieces::Values;
use super::visit::{TILES_OF_VISIT, VISIT, Visit, ask_for};
use crate::kv_cache::KV_TILE;

/// Values that are added to rows, whole steps of them.
struct Added {
    /// Of these tiles
    tiles: Range<usize>,
    /// these: all of each, unless it is one.
    keys: Range<usize>,
}

impl<E: Cached> Attention<'_, E> {
    /// Adds all values of some tiles to the rows of `tokens`, in their order.
    ///
    /// # Safety
    /// The state has these rows; the CPU has the instructions.
    #[inline(always)]
    pub(super) unsafe fn add_tiles<I: Instructions>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_>,
        tokens: Range<usize>,
        tiles: Range<usize>,
    ) {
        let added = Added { tiles, keys: 0..KV_TILE };
        // SAFETY: passed on.
        unsafe { self.add_rows::<I>(state, visit, self.rows_of_tokens(tokens), added) }
    }

    /// Adds some values of a tile to the rows of a token, in their order. One whose step has a key that is not among them is
    /// added alone.
    ///
    /// # Safety
    /// As [`Self::add_tiles`].
    #[inline(always)]
    pub(super) unsafe fn add_values<I: Instructions>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_>,
        token: usize,
        (tile, keys): (usize, Range<usize>),
    ) {
        let whole = keys.start.next_multiple_of(E::ROWS_OF_STEP)..keys.end - keys.end % E::ROWS_OF_STEP;
        let rows = self.rows_of_tokens(token..token + 1);
        // SAFETY: passed on.
        unsafe {
            if keys.start < whole.start {
                self.add_value::<I::Panel>(state, visit, rows.clone(), (tile, keys.start));
            }
            if !whole.is_empty() {
                let added = Added { tiles: tile..tile + 1, keys: whole.clone() };
                self.add_rows::<I>(state, visit, rows.clone(), added);
            }
            if whole.end < keys.end {
                self.add_value::<I::Panel>(state, visit, rows, (tile, keys.end - 1));
            }
        }
    }

    /// Adds one value of a step to `rows`, one fused multiply-add each: the others of the step may be anything.
    ///
    /// # Safety
    /// As [`Self::add_tiles`].
    #[inline(always)]
    unsafe fn add_value<L: Lanes>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_>,
        rows: Range<usize>,
        (tile, key): (usize, usize),
    ) {
        let padded = self.layer.padded_head_dim();
        let values = &self.values_of((visit.tiles[tile], state.kv_head))[key * padded..(key + 1) * padded];
        for row in rows {
            let factor = state.weights[row * VISIT + (tile * KV_TILE + key) / E::ROWS_OF_STEP];
            let out = &mut state.sums.out[row * padded..(row + 1) * padded];
            for (out, values) in out.as_chunks_mut::<KV_TILE>().0.iter_mut().zip(values.as_chunks::<KV_TILE>().0) {
                // SAFETY: as many elements each as there are lanes; passed on.
                unsafe {
                    let factor = L::splat(E::factor_of(factor, key % E::ROWS_OF_STEP));
                    factor.mul_add(E::widened(values.as_ptr()), L::load(out.as_ptr())).store(out.as_mut_ptr());
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::add_tiles`].
    #[inline(always)]
    unsafe fn add_rows<I: Instructions>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_>,
        rows: Range<usize>,
        Added { tiles, keys }: Added,
    ) {
        let padded = self.layer.padded_head_dim();
        let first_step = (tiles.start * KV_TILE + keys.start) / E::ROWS_OF_STEP;
        for first in rows.clone().step_by(I::TILE_ROWS) {
            let num_rows = I::TILE_ROWS.min(rows.end - first);
            let mut column = 0;
            while column < padded {
                let panels = panels_together::<I>(num_rows, (padded - column) / KV_TILE);
                let mut starts = [[std::ptr::null(); 2]; TILES_OF_VISIT];
                for (start, tile) in starts.iter_mut().zip(tiles.clone()) {
                    let next = self.values_of(self.ahead(visit, tile, state.kv_head, tiles.len()));
                    let values = &self.values_of((visit.tiles[tile], state.kv_head))[keys.start * padded + column..];
                    let asks_at_once = self.asks_at_once::<I>(visit);
                    if asks_at_once && column == 0 && first == rows.start {
                        ask_for::<I::Panel, E>(next);
                    }
                    // In the order of its addresses, which is not that of its use where there are several passes. Where all of
                    // it was asked for at once, what each step asks for is at hand.
                    let ahead = if asks_at_once { values } else { &next[column * KV_TILE..] };
                    *start = [values.as_ptr(), ahead.as_ptr()];
                }
                let tiles = &starts[..tiles.len()];
                let weights = state.weights[first * VISIT + first_step..].as_ptr().cast();
                let to = state.sums.out[first * padded + column..].as_mut_ptr();
                let (num_steps, width) = (keys.len() / E::ROWS_OF_STEP, padded);
                // SAFETY: `num_rows` rows of weights and outputs; columns below `padded`; as many rows of values as keys.
                unsafe {
                    with_rows!(num_rows, I::TILE_ROWS, ROWS => with_panels!(I, ROWS, panels, [8 4 2], PANELS => {
                        I::apart(Values::<E, ROWS, PANELS> { weights, tiles, num_steps, width, to });
                    }));
                }
                column += panels * KV_TILE;
            }
        }
    }
}
