#![expect(unsafe_code, reason = "rows are written through an output that threads share; bytes are read as signed ones")]

//! What a KV cache is made of, as its bodies write and read it.

use half::bf16;

use super::lanes::Element;
use super::launch::Output;
use crate::kv_cache::{KV_TILE, KvPlace};
use crate::ops::int8_row::{Int8Row, scales_of};

/// An element of cached keys and values.
pub(super) trait CacheElement: Element {
    /// Elements behind each tile, in which the scales of its rows stand.
    const SCALES_LEN: usize = 0;

    /// How a row is rounded.
    type Rounding: Copy + Default;

    fn rounding(row: &[f32]) -> Self::Rounding;
    fn rounded(value: f32, rounding: Self::Rounding) -> Self;

    /// Writes what belongs to a row beside its elements.
    ///
    /// # Safety
    /// The row's place is inside the cache, and nobody else's.
    #[inline(always)]
    unsafe fn write_scale(_rounding: Self::Rounding, _place: KvPlace, _cache: &Output<Self>) {}

    /// What each row of a tile is multiplied with, given the elements behind it; `None` where elements stand for themselves.
    #[inline(always)]
    fn scales(_behind: &[Self]) -> Option<[f32; KV_TILE]> {
        None
    }
}

macro_rules! stands_for_itself {
    ($type:ty) => {
        impl CacheElement for $type {
            type Rounding = ();

            #[inline(always)]
            fn rounding(_row: &[f32]) {}

            #[inline(always)]
            fn rounded(value: f32, (): ()) -> Self {
                <Self as Element>::from_f32(value)
            }
        }
    };
}

stands_for_itself!(f32);
stands_for_itself!(bf16);

impl CacheElement for i8 {
    const SCALES_LEN: usize = KV_TILE * size_of::<f32>();

    type Rounding = Int8Row;

    #[inline(always)]
    fn rounding(row: &[f32]) -> Int8Row {
        Int8Row::of(row)
    }

    #[inline(always)]
    fn rounded(value: f32, rounding: Int8Row) -> Self {
        rounding.element(value)
    }

    #[inline(always)]
    unsafe fn write_scale(rounding: Int8Row, place: KvPlace, cache: &Output<Self>) {
        // SAFETY: the caller vouches for the place, of which the scale is a part; bytes need no alignment.
        unsafe { cache.at(place.scale).cast::<[u8; size_of::<f32>()]>().write(rounding.scale().to_ne_bytes()) }
    }

    #[inline(always)]
    fn scales(behind: &[Self]) -> Option<[f32; KV_TILE]> {
        // SAFETY: as many bytes, which are numbers with and without a sign.
        Some(scales_of(unsafe { std::slice::from_raw_parts(behind.as_ptr().cast(), behind.len()) }))
    }
}

/// The same bytes.
pub(super) fn signed(bytes: &[u8]) -> &[i8] {
    // SAFETY: every byte is a number with and without a sign.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

/// The same bytes.
pub(super) fn signed_mut(bytes: &mut [u8]) -> &mut [i8] {
    // SAFETY: as above; nobody else has them.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
}
