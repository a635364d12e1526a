#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! What attention does with the numbers of one visit.

use std::ops::Range;

use super::super::instructions::{Instructions, Piece};
use super::super::lanes::Lanes;
use super::super::tile::{self, CacheLevel, Factors, Prefetch, SideBySide};
use super::super::vector::{Arithmetic, Sixteen, Vector};
use super::paired::Cached;
use super::visit::VISIT;
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
    /// `[ROWS, head_dim]`
    pub(super) queries: *const E::Factor,
    pub(super) head_dim: usize,
    pub(super) keys: [*const E; TILES],
    /// What is asked for meanwhile.
    pub(super) ahead: [*const E; TILES],
    /// `[ROWS, VISIT]`
    pub(super) to: *mut f32,
}

impl<E: Cached, const ROWS: usize, const TILES: usize> Piece for Scores<E, ROWS, TILES> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        let stride = E::ROWS_OF_STEP * KV_TILE;
        let factors = Factors {
            x: self.queries,
            x_stride: self.head_dim,
            w: self.keys,
            w_stride: stride,
            depth: self.head_dim / E::ROWS_OF_STEP,
            ahead: Prefetch { panels: self.ahead, stride, to: CacheLevel::First },
        };
        // SAFETY: passed on.
        unsafe {
            let zero = [[I::Panel::splat(0.0); TILES]; ROWS];
            let sums = tile::multiply::<I, E, _, ROWS, TILES>(factors, zero);
            tile::store::<I, E, ROWS, TILES>(sums, self.to, VISIT);
        }
    }
}

/// Adds to `ROWS` rows of outputs `PANELS` times 16 columns of values.
pub(super) struct Values<'a, E: Cached, const ROWS: usize, const PANELS: usize> {
    /// `[ROWS, VISIT]`: of the first of `tiles`, those of the others behind them.
    pub(super) weights: *const E::Factor,
    /// Where the values of each begin, and those that are asked for meanwhile.
    pub(super) tiles: &'a [[*const E; 2]],
    /// Of each tile.
    pub(super) num_steps: usize,
    /// Elements of a row of values, and of outputs.
    pub(super) width: usize,
    pub(super) to: *mut f32,
}

impl<E: Cached, const ROWS: usize, const PANELS: usize> Piece for Values<'_, E, ROWS, PANELS> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        // SAFETY: passed on.
        unsafe {
            let mut sums = tile::load::<I, E, ROWS, PANELS>(self.to, self.width);
            for (index, &[w, ahead]) in self.tiles.iter().enumerate() {
                let factors = Factors {
                    x: self.weights.add(index * self.num_steps),
                    x_stride: VISIT,
                    w: SideBySide { first: w, stride: KV_TILE },
                    w_stride: E::ROWS_OF_STEP * self.width,
                    depth: self.num_steps,
                    ahead: Prefetch {
                        panels: SideBySide { first: ahead, stride: E::ROWS_OF_STEP * KV_TILE },
                        stride: PANELS * E::ROWS_OF_STEP * KV_TILE,
                        to: CacheLevel::First,
                    },
                };
                sums = tile::multiply::<I, E, _, ROWS, PANELS>(factors, sums);
            }
            tile::store::<I, E, ROWS, PANELS>(sums, self.to, self.width);
        }
    }
}

/// Of the keys of a visit, in their order.
pub(super) type Weights<P> = [P; VISIT / KV_TILE];

/// The weights of a visit's scores times `scale`, of which those of `keys` count and the others are 0, and the factor by
/// which earlier weights shrink; brings the row's maximum and sum up to date.
///
/// # Safety
/// `keys` is not empty; the CPU has `P`'s instructions.
#[inline(always)]
pub(super) unsafe fn weigh<P: Sixteen>(
    scores: &[f32; VISIT],
    scale: f32,
    keys: Range<usize>,
    max: &mut f32,
    sum: &mut f32,
) -> (Weights<P>, f32) {
    // SAFETY: as many lanes as a visit has keys; the caller has the instructions.
    unsafe {
        let (is_whole, scale) = (keys.len() == VISIT, P::splat(scale));
        let mut lanes = [P::splat(0.0); VISIT / KV_TILE];
        for (part, lanes) in lanes.iter_mut().enumerate() {
            *lanes = P::load(scores.as_ptr().add(part * KV_TILE)).mul(scale);
        }
        if !is_whole {
            lanes = with_unseen(lanes, &keys, f32::NEG_INFINITY);
        }
        let [a, b, c, d] = lanes;
        let [low, high] = a.max(b).max(c.max(d)).halves();
        let new_max = max.max(low.max(high).max_of_lanes());
        let shift = P::splat(new_max);
        for lanes in &mut lanes {
            *lanes = lanes.sub(shift).exp();
        }
        if !is_whole {
            lanes = with_unseen(lanes, &keys, 0.0);
        }
        // The exponential of 0 is exactly 1.
        let factor = if new_max == *max { 1.0 } else { P::Half::splat(*max - new_max).exp().to_array()[0] };
        let mut parts = [P::Half::splat(0.0); VISIT / KV_TILE];
        for (part, lanes) in parts.iter_mut().zip(lanes) {
            let [low, high] = lanes.halves();
            *part = low.add(high);
        }
        let [a, b, c, d] = parts;
        *sum = sum.mul_add(factor, a.add(b).add(c.add(d)).sum_of_lanes());
        *max = new_max;
        (lanes, factor)
    }
}

/// The same with `other` in all lanes but those of `keys`.
///
/// # Safety
/// As [`weigh`].
#[inline(always)]
unsafe fn with_unseen<P: Sixteen>(mut lanes: Weights<P>, keys: &Range<usize>, other: f32) -> Weights<P> {
    const KEYS: [f32; VISIT] = {
        let mut keys = [0.0; VISIT];
        let mut key = 0;
        while key < VISIT {
            keys[key] = key as f32;
            key += 1;
        }
        keys
    };
    // A half is on one side of every key.
    let (start, end) = (keys.start as f32 - 0.5, keys.end as f32 - 0.5);
    // SAFETY: as many keys as lanes; passed on.
    unsafe {
        let (start, end, other) = (P::splat(start), P::splat(end), P::splat(other));
        for (part, lanes) in lanes.iter_mut().enumerate() {
            let keys = P::load(KEYS.as_ptr().add(part * KV_TILE));
            *lanes = keys.sub(start).mul(end.sub(keys)).if_positive(*lanes, other);
        }
    }
    lanes
}
