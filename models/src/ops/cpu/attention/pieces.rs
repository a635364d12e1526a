#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! What attention does with the numbers of one tile.

use std::ops::Range;

use super::super::cache_element::CacheElement;
use super::super::instructions::{Instructions, Piece};
use super::super::lanes::Lanes;
use super::super::tile::{self, Factors};
use super::super::vector::{LANES, Vector};
use super::VISIT;
use crate::kv_cache::KV_TILE;

/// Dot products by the scales of their keys, or weights by those of their values, where these have any.
#[inline(always)]
pub(super) fn multiply_by(numbers: &mut [f32], scales: Option<[f32; KV_TILE]>) {
    let Some(scales) = scales else { return };
    for (number, scale) in numbers.iter_mut().zip(scales) {
        *number *= scale;
    }
}

/// Sets `ROWS` rows of scores, those of `TILES` tiles side by side.
pub(super) struct Scores<E: CacheElement, const ROWS: usize, const TILES: usize> {
    pub(super) factors: Factors<E>,
    pub(super) to: *mut f32,
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
pub(super) struct Values<E: CacheElement, const ROWS: usize, const PANELS: usize> {
    pub(super) factors: Factors<E>,
    pub(super) to: *mut f32,
    pub(super) stride: usize,
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
pub(super) unsafe fn weigh<V: Vector>(
    weights: &mut [f32],
    keys: Range<usize>,
    (max, sum): (&mut f32, &mut f32),
) -> f32 {
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
