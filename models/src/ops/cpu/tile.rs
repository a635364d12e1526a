#![expect(unsafe_code, reason = "vector loads through pointers")]

//! The inner loop of every product in this folder: a few rows of `x` times a few panels of 16 columns, all running sums
//! in registers.

use super::panels::PANEL;
use super::vector::{Element, LANES, Vector};
use crate::kv_cache::KV_TILE;

/// One panel of weights, and one tile of keys, is what a pair of vectors holds.
const _: () = assert!(PANEL == KV_TILE && PANEL == 2 * LANES);

/// Running sums of `ROWS` rows by `PANELS` panels of 16 columns.
pub(super) type Sums<V, const ROWS: usize, const PANELS: usize> = [[[V; 2]; PANELS]; ROWS];

/// Where the factors of a product stand. `x[row * x_stride + k]` meets
/// `w[panel * w_panel_stride + k * w_stride + column]` for `k` in `0..depth`.
#[derive(Clone, Copy)]
pub(super) struct Factors<E> {
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    pub(super) w: *const E,
    pub(super) w_stride: usize,
    /// Negative where the second panel stands before the first.
    pub(super) w_panel_stride: isize,
    pub(super) depth: usize,
    /// How far from each of `w` stands what will be read later, and is asked for now. It need not be valid.
    pub(super) prefetch_bytes: isize,
}

/// Continues `sums` with one fused multiply-add for each `k`, in ascending order.
///
/// # Safety
/// The CPU must have `V`'s instructions; `factors` must be valid for `ROWS` rows and `PANELS` panels.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "rows and panels index the factors and the sums alike")]
pub(super) unsafe fn multiply<V: Vector, E: Element, const ROWS: usize, const PANELS: usize>(
    factors: Factors<E>,
    mut sums: Sums<V, ROWS, PANELS>,
) -> Sums<V, ROWS, PANELS> {
    let Factors { x, x_stride, mut w, w_stride, w_panel_stride, depth, prefetch_bytes } = factors;
    for k in 0..depth {
        for panel in 0..PANELS {
            // SAFETY: `k < depth`, `row < ROWS`, `panel < PANELS`, for which the caller vouches.
            unsafe {
                let at = w.offset(panel as isize * w_panel_stride);
                V::prefetch(at.wrapping_byte_offset(prefetch_bytes));
                let columns: [V; 2] = [E::load(at), E::load(at.add(LANES))];
                for row in 0..ROWS {
                    let factor = V::splat(*x.add(row * x_stride + k));
                    let sum = sums[row][panel];
                    sums[row][panel] = [factor.mul_add(columns[0], sum[0]), factor.mul_add(columns[1], sum[1])];
                }
            }
        }
        w = w.wrapping_add(w_stride);
    }
    sums
}

/// # Safety
/// As [`multiply`]; `from` must be valid for `ROWS` rows of `PANELS * 16` elements.
#[inline(always)]
pub(super) unsafe fn load<V: Vector, const ROWS: usize, const PANELS: usize>(
    from: *const f32,
    stride: usize,
) -> Sums<V, ROWS, PANELS> {
    // SAFETY: inside the rows for which the caller vouches.
    unsafe {
        let mut sums = [[[V::splat(0.0); 2]; PANELS]; ROWS];
        for (row, panels) in sums.iter_mut().enumerate() {
            for (panel, sum) in panels.iter_mut().enumerate() {
                let at = from.add(row * stride + panel * 2 * LANES);
                *sum = [V::load(at), V::load(at.add(LANES))];
            }
        }
        sums
    }
}

/// # Safety
/// As [`load`], for writing.
#[inline(always)]
pub(super) unsafe fn store<V: Vector, const ROWS: usize, const PANELS: usize>(
    sums: Sums<V, ROWS, PANELS>,
    to: *mut f32,
    stride: usize,
) {
    for (row, panels) in sums.into_iter().enumerate() {
        for (panel, [low, high]) in panels.into_iter().enumerate() {
            // SAFETY: inside the rows for which the caller vouches.
            unsafe {
                let at = to.add(row * stride + panel * 2 * LANES);
                low.store(at);
                high.store(at.add(LANES));
            }
        }
    }
}
