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

    /// What each row of a tile is multiplied with, given the elements behind it; `None` where elements stand for themselves.
    #[inline(always)]
    fn scales(_behind: &[Self]) -> Option<[f32; KV_TILE]> {
        None
    }

    /// Rounds `row` to what `cache` holds, and writes it.
    ///
    /// # Safety
    /// The row's place is inside the cache, and nobody else's.
    #[inline(always)]
    unsafe fn write(row: &[f32], place: KvPlace, cache: &Output<Self>) {
        for (d, &value) in row.iter().enumerate() {
            // SAFETY: the caller vouches for the place.
            unsafe { *cache.at(place.first + d * place.stride) = Self::from_f32(value) };
        }
    }
}

impl CacheElement for f32 {}
impl CacheElement for bf16 {}

impl CacheElement for i8 {
    const SCALES_LEN: usize = KV_TILE * size_of::<f32>();

    #[inline(always)]
    fn scales(behind: &[Self]) -> Option<[f32; KV_TILE]> {
        // SAFETY: as many bytes, which are numbers with and without a sign.
        Some(scales_of(unsafe { std::slice::from_raw_parts(behind.as_ptr().cast(), behind.len()) }))
    }

    #[inline(always)]
    unsafe fn write(row: &[f32], place: KvPlace, cache: &Output<Self>) {
        let is = Int8Row::of(row);
        // SAFETY: the caller vouches for the place, of which the scale is a part; bytes need no alignment.
        unsafe {
            for (d, &value) in row.iter().enumerate() {
                *cache.at(place.first + d * place.stride) = is.element(value);
            }
            cache.at(place.scale).cast::<[u8; size_of::<f32>()]>().write(is.scale().to_ne_bytes());
        }
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
