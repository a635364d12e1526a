#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! What attention does with the numbers of one tile.

use std::ops::Range;

use super::super::instructions::{Instructions, Piece};
use super::super::lanes::Lanes;
use super::super::tile::{self, Factors};
use super::super::vector::{LANES, Vector};
use super::VISIT;
use super::paired::Cached;
use crate::kv_cache::KV_TILE;

/// Dot products by the scales of their keys, or weights by those of their values, where these have any.
#[inline(always)]
pub(super) fn multiply_by(numbers: &mut [f32; KV_TILE], scales: Option<[f32; KV_TILE]>) {
    let Some(scales) = scales else { return };
    for (number, scale) in numbers.iter_mut().zip(scales) {
        *number *= scale;
    }
}

/// Sets `ROWS` rows of scores, those of `TILES` tiles side by side.
pub(super) struct Scores<E: Cached, const ROWS: usize, const TILES: usize> {
    pub(super) factors: Factors<E>,
    pub(super) to: *mut f32,
}

impl<E: Cached, const ROWS: usize, const TILES: usize> Piece for Scores<E, ROWS, TILES> {
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
pub(super) struct Values<E: Cached, const ROWS: usize, const PANELS: usize> {
    pub(super) factors: Factors<E>,
    pub(super) to: *mut f32,
    pub(super) stride: usize,
}

impl<E: Cached, const ROWS: usize, const PANELS: usize> Piece for Values<E, ROWS, PANELS> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        // SAFETY: passed on.
        unsafe {
            let sums = tile::load::<I::Panel, ROWS, PANELS>(self.to, self.stride);
            tile::store(tile::multiply::<I, E, ROWS, PANELS>(self.factors, sums), self.to, self.stride);
        }
    }
}

/// The weights of a tile's scores times `scale`, of which those of `keys` count, and the factor by which earlier weights
/// shrink; brings the row's maximum and sum up to date.
///
/// # Safety
/// `keys` is not empty; the CPU has `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn weigh<V: Vector>(
    scores: &[f32; KV_TILE],
    scale: f32,
    keys: Range<usize>,
    (max, sum): (&mut f32, &mut f32),
) -> ([V; 2], f32) {
    // SAFETY: two vectors in a tile; the caller has the instructions.
    unsafe {
        let scale = V::splat(scale);
        let mut lanes = [V::load(scores.as_ptr()).mul(scale), V::load(scores[LANES..].as_ptr()).mul(scale)];
        if keys.len() < KV_TILE {
            lanes = with_unseen(lanes, &keys, f32::NEG_INFINITY);
        }
        let new_max = max.max(lanes[0].max(lanes[1]).max_of_lanes());
        let shift = V::splat(new_max);
        lanes = [lanes[0].sub(shift).exp(), lanes[1].sub(shift).exp()];
        if keys.len() < KV_TILE {
            lanes = with_unseen(lanes, &keys, 0.0);
        }
        // The exponential of 0 is exactly 1.
        let factor = if new_max == *max { 1.0 } else { V::splat(*max - new_max).exp().to_array()[0] };
        *sum = sum.mul_add(factor, lanes[0].add(lanes[1]).sum_of_lanes());
        *max = new_max;
        (lanes, factor)
    }
}

/// The same with `other` in all lanes but those of `keys`.
///
/// # Safety
/// As [`weigh`].
#[inline(always)]
unsafe fn with_unseen<V: Vector>([low, high]: [V; 2], keys: &Range<usize>, other: f32) -> [V; 2] {
    // SAFETY: two vectors in a tile; passed on.
    unsafe {
        let mut both = [low.to_array(), high.to_array()];
        for (lane, value) in both.as_flattened_mut().iter_mut().enumerate() {
            if !keys.contains(&lane) {
                *value = other;
            }
        }
        [V::load(both[0].as_ptr()), V::load(both[1].as_ptr())]
    }
}
