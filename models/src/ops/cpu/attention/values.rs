#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! The second product of attention: `out += weights v`, the keys of a tile as depth.

use std::ops::Range;

use super::super::instructions::Instructions;
use super::super::lanes::Lanes;
use super::super::tile::{Factors, with_rows};
use super::heads::ChunkState;
use super::paired::Cached;
use super::pieces::Values;
use super::{Attention, VISIT, Visit, max_pair_rows};
use crate::kv_cache::KV_TILE;

impl<E: Cached> Attention<'_, E> {
    /// Adds the values `keys` of the tile to the rows of `tokens`, in their order. One whose step has a key that is not among them is
    /// added alone.
    #[inline(always)]
    pub(super) unsafe fn add_values<I: Instructions>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_, E>,
        tokens: Range<usize>,
        keys: Range<usize>,
    ) {
        let whole = keys.start.next_multiple_of(E::ROWS_OF_STEP)..keys.end - keys.end % E::ROWS_OF_STEP;
        let rows = self.rows_of_tokens(tokens);
        // SAFETY: passed on; as many rows of values as keys.
        unsafe {
            if keys.start < whole.start {
                self.add_value::<I::Panel>(state, visit, rows.clone(), keys.start);
            }
            if !whole.is_empty() {
                self.add_rows::<I>(
                    state,
                    visit,
                    rows.clone(),
                    (&visit.kv[0].v[whole.start * self.layer.padded_head_dim()..], whole.clone()),
                );
            }
            if whole.end < keys.end {
                self.add_value::<I::Panel>(state, visit, rows, keys.end - 1);
            }
        }
    }

    /// Adds one value of a step to `rows`, one fused multiply-add each: the others of the step may be anything.
    ///
    /// # Safety
    /// As [`Self::add_rows`].
    #[inline(always)]
    unsafe fn add_value<L: Lanes>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_, E>,
        rows: Range<usize>,
        key: usize,
    ) {
        let padded = self.layer.padded_head_dim();
        let values = &visit.kv[0].v[key * padded..(key + 1) * padded];
        for row in rows {
            let factor = state.weights[row * VISIT + visit.column + key / E::ROWS_OF_STEP];
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

    /// Adds values, which are those of `keys` and as many whole steps, to `rows`.
    ///
    /// # Safety
    /// The state has these rows; the CPU has the instructions.
    #[inline(always)]
    unsafe fn add_rows<I: Instructions>(
        &self,
        state: &mut ChunkState<'_>,
        visit: &Visit<'_, E>,
        rows: Range<usize>,
        (values, keys): (&[E], Range<usize>),
    ) {
        let (padded, kv) = (self.layer.padded_head_dim(), visit.kv);
        for first in rows.clone().step_by(I::TILE_ROWS) {
            let num_rows = I::TILE_ROWS.min(rows.end - first);
            let mut column = 0;
            while column < padded {
                let wide = column + 2 * KV_TILE <= padded && num_rows <= max_pair_rows::<I>();
                let width = if wide { 2 * KV_TILE } else { KV_TILE };
                let x = &state.weights[first * VISIT + visit.column + keys.start / E::ROWS_OF_STEP..];
                let factors = Factors {
                    x: x.as_ptr().cast(),
                    x_stride: VISIT,
                    w: values[column..].as_ptr(),
                    w_stride: E::ROWS_OF_STEP * padded,
                    w_panel_stride: KV_TILE as isize,
                    depth: keys.len() / E::ROWS_OF_STEP,
                    // The next tile in the order of its addresses, which is not that of its use: 5 to 15 % faster.
                    ahead: kv[1].v.as_ptr().wrapping_add(column * KV_TILE),
                    ahead_stride: E::ROWS_OF_STEP * width,
                    ahead_panel_stride: (E::ROWS_OF_STEP * KV_TILE) as isize,
                };
                let to = state.sums.out[first * padded + column..].as_mut_ptr();
                // SAFETY: `num_rows` rows of weights and outputs; columns below `padded`; as many rows of values as keys.
                unsafe {
                    if wide {
                        with_rows!(num_rows, max_pair_rows::<I>(), ROWS => I::apart(Values::<E, ROWS, 2> { factors, to, stride: padded }));
                    } else {
                        with_rows!(num_rows, I::TILE_ROWS, ROWS => I::apart(Values::<E, ROWS, 1> { factors, to, stride: padded }));
                    }
                }
                column += width;
            }
        }
    }
}
