#![expect(unsafe_code, reason = "vector loads through pointers")]

//! Cached keys and values as the products of attention take them.

use half::bf16;

use super::super::bf16_pairs::{Bf16Pair, PairsOf};
use super::super::bf16_rows::rounded;
use super::super::cache_element::CacheElement;
use super::super::instructions::Instructions;
use super::super::lanes::Lanes;
use super::super::launch::WithBf16Products;
use super::super::pairs::Pairs;
use super::super::tile::Weight;
use super::super::vector::{LANES, Sixteen, Vector};
use super::pieces::multiply_by;
use crate::kv_cache::KV_TILE;

/// An element of cached keys and values.
pub(super) trait Cached: Weight {
    /// Rows of a tile, of `d` or of keys, that a step takes.
    const ROWS_OF_STEP: usize;
    /// Elements behind each tile.
    const SCALES_LEN: usize;

    /// As [`CacheElement::scales`].
    fn scales(behind: &[Self]) -> Option<[f32; KV_TILE]>;

    /// Leaves in `numbers`, in as many as there are steps, the factors that they are rounded to.
    ///
    /// # Safety
    /// The CPU must have `V`'s instructions.
    unsafe fn put_factors<V: Vector>(numbers: &mut [f32]);

    /// The same of a tile's weights, times the scales of their values where these have any. `to` has as many numbers as there
    /// are steps.
    ///
    /// # Safety
    /// The CPU must have `P`'s instructions.
    unsafe fn put_weights<P: Sixteen>(weights: P, scales: Option<[f32; KV_TILE]>, to: &mut [f32]);

    /// One of those that [`Cached::put_factors`] has left for a step.
    fn factor_of(step: f32, place: usize) -> f32;

    /// # Safety
    /// As [`Lanes`].
    unsafe fn widened<L: Lanes>(from: *const Self) -> L;
}

/// In f32.
impl<E: CacheElement> Cached for E {
    const ROWS_OF_STEP: usize = 1;
    const SCALES_LEN: usize = <E as CacheElement>::SCALES_LEN;

    #[inline(always)]
    fn scales(behind: &[Self]) -> Option<[f32; KV_TILE]> {
        <E as CacheElement>::scales(behind)
    }

    #[inline(always)]
    unsafe fn put_factors<V: Vector>(_numbers: &mut [f32]) {}

    #[inline(always)]
    unsafe fn put_weights<P: Sixteen>(weights: P, scales: Option<[f32; KV_TILE]>, to: &mut [f32]) {
        let to = &mut to.as_chunks_mut().0[0];
        // SAFETY: as many keys in a tile as lanes; passed on.
        unsafe { weights.store(to.as_mut_ptr()) };
        multiply_by(to, scales);
    }

    #[inline(always)]
    fn factor_of(step: f32, _place: usize) -> f32 {
        step
    }

    #[inline(always)]
    unsafe fn widened<L: Lanes>(from: *const Self) -> L {
        // SAFETY: passed on.
        unsafe { E::load(from) }
    }
}

/// A bf16 element, of which two neighbouring rows meet two factors of bf16 at a time.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Paired(bf16);

impl Paired {
    /// The same elements.
    pub(super) fn of(elements: &[bf16]) -> &[Self] {
        // SAFETY: a transparent type.
        unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), elements.len()) }
    }
}

impl Weight for Paired {
    type Start = WithBf16Products;
    type Factor = Bf16Pair;
    type Columns<I: Instructions> = PairsOf<I>;

    // SAFETY, for every block below: passed on; the second row stands half a step behind the first.
    #[inline(always)]
    unsafe fn load<I: Instructions>(from: *const Self, stride: usize) -> PairsOf<I> {
        unsafe { PairsOf::<I>::interleaved(from.cast(), from.add(stride / 2).cast()) }
    }

    #[inline(always)]
    unsafe fn splat<I: Instructions>(factor: *const Bf16Pair) -> PairsOf<I> {
        unsafe { <Bf16Pair as Weight>::splat::<I>(factor) }
    }

    #[inline(always)]
    unsafe fn add_products<I: Instructions>(factor: PairsOf<I>, columns: PairsOf<I>, sums: I::Panel) -> I::Panel {
        unsafe { I::add_bf16_products(factor, columns, sums) }
    }
}

impl Cached for Paired {
    const ROWS_OF_STEP: usize = 2;
    const SCALES_LEN: usize = 0;

    #[inline(always)]
    fn scales(_behind: &[Self]) -> Option<[f32; KV_TILE]> {
        None
    }

    #[inline(always)]
    unsafe fn put_factors<V: Vector>(numbers: &mut [f32]) {
        let (whole, len) = (numbers.len() / KV_TILE * KV_TILE, numbers.len());
        let at = numbers.as_mut_ptr();
        for start in (0..whole).step_by(KV_TILE) {
            // SAFETY: two vectors of numbers, which are read before half of their places, or those before them, are written.
            unsafe {
                let (low, high) = (V::load(at.add(start)), V::load(at.add(start + LANES)));
                V::store_rounded(low, high, at.add(start / 2).cast());
            }
        }
        for pair in whole / 2..len / 2 {
            let [even, odd] = [2 * pair, 2 * pair + 1].map(|at| u32::from(rounded(numbers[at]).to_bits()));
            numbers[pair] = f32::from_bits(even | odd << 16);
        }
    }

    #[inline(always)]
    unsafe fn put_weights<P: Sixteen>(weights: P, _scales: Option<[f32; KV_TILE]>, to: &mut [f32]) {
        // SAFETY: as many bf16 numbers as there are keys, two in each place; passed on.
        unsafe { weights.store_rounded(to.as_mut_ptr().cast()) }
    }

    #[inline(always)]
    fn factor_of(step: f32, place: usize) -> f32 {
        f32::from_bits(step.to_bits() >> (16 * place) << 16)
    }

    #[inline(always)]
    unsafe fn widened<L: Lanes>(from: *const Self) -> L {
        // SAFETY: passed on, a transparent type.
        unsafe { L::load_bf16(from.cast()) }
    }
}
