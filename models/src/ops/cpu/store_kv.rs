#![expect(unsafe_code, reason = "threads fill disjoint heads of one cache")]

//! Writes keys and values into the paged cache.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

use super::cache_element::{CacheElement, signed_mut};
use super::instructions::Instructions;
use super::lanes::Lanes;
use super::launch::{Kernel, Output, launch, split_rows};
use super::row_stride::CACHE_LINE;
use super::view::Rows;
use crate::kv_cache::{KV_TILE, KvLayer, KvPlace, KvSide};
use crate::ops::Compute;
use crate::{ModelError, Slot};

/// Tokens side by side for which turning squares pays.
const SQUARES_FROM: usize = 4;

/// How much longer it takes to write a key's element than one of a row: it stands in a cache line that mostly is in memory.
const SCATTERED: usize = 8;

/// Shapes and slots are checked by the caller.
pub(crate) fn store_kv(
    compute: &Compute,
    k: &Tensor,
    v: &Tensor,
    slots: &[Slot],
    layer: &KvLayer,
) -> Result<(), ModelError> {
    store_rows(compute, Rows::new(k)?, Rows::new(v)?, slots, layer)
}

/// The same of keys and values wherever they lie.
pub(super) fn store_rows(
    compute: &Compute,
    k: Rows<'_>,
    v: Rows<'_>,
    slots: &[Slot],
    layer: &KvLayer,
) -> Result<(), ModelError> {
    let [first_key, first_value] = &layer.first;
    first_key.inplace_op1(&Store { compute, rows: k, slots, layer, side: KvSide::Keys })?;
    first_value.inplace_op1(&Store { compute, rows: v, slots, layer, side: KvSide::Values })?;
    Ok(())
}

struct Store<'a> {
    compute: &'a Compute,
    rows: Rows<'a>,
    slots: &'a [Slot],
    layer: &'a KvLayer,
    side: KvSide,
}

impl InplaceOp1 for Store<'_> {
    fn name(&self) -> &'static str {
        "store-kv"
    }

    /// The element that `layout` names is the first of a whole cache.
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let start = layout.start_offset();
        match storage {
            CpuStorage::F32(cache) => self.store(&mut cache[start..]),
            CpuStorage::BF16(cache) => self.store(&mut cache[start..]),
            CpuStorage::U8(cache) => self.store(signed_mut(&mut cache[start..])),
            _ => candle_core::bail!("a KV cache of none of its formats"),
        }
        Ok(())
    }
}

impl Store<'_> {
    /// Threads divide the heads, not the tokens: two tokens with one slot by mistake then still do not race.
    fn store<E: CacheElement>(&self, cache: &mut [E]) {
        let (num_kv_heads, head_dim) = (self.layer.num_kv_heads(), self.layer.head_dim());
        let weight = if self.side == KvSide::Keys { SCATTERED } else { 1 };
        let (heads_per_task, num_tasks) = split_rows(num_kv_heads, self.slots.len() * head_dim * weight);
        let heads = StoreHeads { store: self, cache: Output::new(cache), heads_per_task };
        launch(self.compute, num_tasks, &heads);
    }

    /// How many tokens from `token` on stand side by side in one tile.
    #[inline(always)]
    fn num_neighbours(&self, token: usize) -> usize {
        let slots = &self.slots[token..];
        let first = slots[0].0 as usize;
        let most = slots.len().min(KV_TILE - first % KV_TILE);
        (1..most).find(|&next| slots[next].0 as usize != first + next).unwrap_or(most)
    }
}

struct StoreHeads<'a, E> {
    store: &'a Store<'a>,
    cache: Output<E>,
    heads_per_task: usize,
}

impl<E: CacheElement> Kernel for StoreHeads<'_, E> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let Store { slots, layer, .. } = *self.store;
        let first = task * self.heads_per_task;
        let end = (first + self.heads_per_task).min(layer.num_kv_heads());
        for head in first..end {
            let mut token = 0;
            while token < slots.len() {
                let tokens = token..token + self.store.num_neighbours(token);
                let (next_head, next) = if tokens.end < slots.len() { (head, tokens.end) } else { (head + 1, 0) };
                if next_head < end {
                    self.ask_for::<I::Panel>(next_head, next);
                }
                token = tokens.end;
                // SAFETY: the slots are inside the cache, which the caller checked; the head belongs to this task alone.
                unsafe { self.write(head, tokens) };
            }
        }
    }
}

impl<E: CacheElement> StoreHeads<'_, E> {
    /// Asks for the lines in which a token's elements stand: while one token is written, memory brings those of the next.
    #[inline(always)]
    fn ask_for<L: Lanes>(&self, head: usize, token: usize) {
        let Store { slots, layer, side, .. } = self.store;
        let place = layer.place(*side, slots[token].0 as usize, head);
        let step = (CACHE_LINE / size_of::<E>()).div_ceil(place.stride);
        for d in (0..layer.head_dim()).step_by(step) {
            L::prefetch_to_second_level(self.cache.address(place.first + d * place.stride));
        }
    }

    /// Of tokens that stand side by side in one tile.
    ///
    /// # Safety
    /// Their slots are inside the cache, and nobody else may use the head.
    #[inline(always)]
    unsafe fn write(&self, head: usize, tokens: Range<usize>) {
        let Store { slots, layer, side, .. } = self.store;
        let mut roundings = [E::Rounding::default(); KV_TILE];
        for (token, rounding) in tokens.clone().zip(&mut roundings) {
            *rounding = E::rounding(self.row(head, token));
            // SAFETY: passed on.
            unsafe { E::write_scale(*rounding, layer.place(*side, slots[token].0 as usize, head), &self.cache) };
        }
        let place = layer.place(*side, slots[tokens.start].0 as usize, head);
        match side {
            // SAFETY: passed on.
            KvSide::Keys if tokens.len() >= SQUARES_FROM => unsafe {
                self.write_squares(head, tokens, &roundings, place);
            },
            KvSide::Keys => {
                for (index, (token, rounding)) in tokens.zip(roundings).enumerate() {
                    for (d, value) in self.row(head, token).iter().enumerate() {
                        // SAFETY: the caller vouches for the places.
                        unsafe {
                            *self.cache.at(place.first + index + d * place.stride) = E::rounded(*value, rounding)
                        };
                    }
                }
            }
            KvSide::Values => {
                let (head_dim, padded) = (layer.head_dim(), layer.padded_head_dim());
                for (index, (token, rounding)) in tokens.zip(roundings).enumerate() {
                    // SAFETY: rows of a tile stand one behind the other; the caller vouches for the place.
                    let to = unsafe { self.cache.part(place.first + index * padded, head_dim) };
                    for (to, value) in to.iter_mut().zip(self.row(head, token)) {
                        *to = E::rounded(*value, rounding);
                    }
                }
            }
        }
    }

    /// A tile of keys holds their first elements, then their second ones and so on. Squares are turned on their way: what is
    /// read and what is written lies side by side.
    ///
    /// # Safety
    /// As [`Self::write`]; `place` is the first key's.
    #[inline(always)]
    unsafe fn write_squares(
        &self,
        head: usize,
        tokens: Range<usize>,
        roundings: &[E::Rounding; KV_TILE],
        place: KvPlace,
    ) {
        let head_dim = self.store.layer.head_dim();
        for first in (0..head_dim).step_by(KV_TILE) {
            let width = KV_TILE.min(head_dim - first);
            let mut square = [[E::rounded(0.0, E::Rounding::default()); KV_TILE]; KV_TILE];
            for (index, (token, rounding)) in tokens.clone().zip(roundings).enumerate() {
                for (column, value) in square.iter_mut().zip(&self.row(head, token)[first..first + width]) {
                    column[index] = E::rounded(*value, *rounding);
                }
            }
            for (d, column) in square[..width].iter().enumerate() {
                // SAFETY: the keys' element `first + d`, side by side in their tile; the caller vouches for the place.
                let to = unsafe { self.cache.part(place.first + (first + d) * place.stride, tokens.len()) };
                match <&mut [E; KV_TILE]>::try_from(&mut *to) {
                    Ok(all) => *all = *column,
                    Err(_) => to.iter_mut().zip(column).for_each(|(to, from)| *to = *from),
                }
            }
        }
    }

    #[inline(always)]
    fn row(&self, head: usize, token: usize) -> &[f32] {
        let head_dim = self.store.layer.head_dim();
        &self.store.rows.row(token)[head * head_dim..][..head_dim]
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::{Float, KernelSet};
    use crate::selftest::numbers::Random;
    use crate::{KvCache, KvCacheSpec, KvFormat, KvGroup};

    const HEADS: usize = 3;

    fn numbers(layer: &KvLayer, side: KvSide) -> Vec<f32> {
        let tensor = if side == KvSide::Keys { &layer.k } else { &layer.v };
        let tensor = tensor.flatten_all().unwrap();
        match layer.format() {
            KvFormat::Bf16 => tensor.to_vec1::<bf16>().unwrap().iter().map(|number| number.to_f32()).collect(),
            _ => tensor.to_vec1().unwrap(),
        }
    }

    /// Every number of the slots' tokens, where [`KvLayer::place`] says that it stands.
    fn stored(layer: &KvLayer, side: KvSide, slots: &[Slot]) -> Vec<f32> {
        let numbers = numbers(layer, side);
        let places = slots.iter().flat_map(|slot| (0..HEADS).map(|head| layer.place(side, slot.0 as usize, head)));
        let at = places.flat_map(|place| (0..layer.head_dim()).map(move |d| place.first + d * place.stride));
        at.map(|at| numbers[at]).collect()
    }

    #[test]
    fn neighbours_in_a_tile_and_tokens_apart_are_written_where_they_belong() {
        // Whole tiles, the middle of one, its end, shorter runs than those that are turned in squares, and no run at all.
        let runs = [0..32, 40..43, 43..48, 60..64, 65..66, 80..81, 95..97, 70..72];
        let slots: Vec<Slot> = runs.into_iter().flatten().chain([69, 68, 67]).map(Slot).collect();
        for format in [KvFormat::F32, KvFormat::Bf16] {
            for head_dim in [8, 20, 64] {
                for kernels in KernelSet::of_this_cpu() {
                    let spec = KvCacheSpec {
                        groups: vec![KvGroup::full(1)],
                        num_kv_heads: HEADS,
                        head_dim,
                        format,
                        block_size: 32,
                    };
                    let layer = KvCache::new(spec, 4, &candle_core::Device::Cpu).unwrap().layer_mut(0).clone();
                    let compute = Compute::cpu_with_kernels(2, kernels).unwrap();
                    let mut random = Random(head_dim as u64);
                    let [k, v] = [(); 2].map(|()| random.tensor(&[slots.len(), HEADS * head_dim], Float::F32));
                    store_kv(&compute, &k, &v, &slots, &layer).unwrap();
                    for (side, x) in [(KvSide::Keys, k), (KvSide::Values, v)] {
                        let rounded = x.to_dtype(format.dtype()).unwrap().to_dtype(candle_core::DType::F32).unwrap();
                        let expected: Vec<f32> = rounded.flatten_all().unwrap().to_vec1().unwrap();
                        let what = format!("{side:?} {format:?} {head_dim} {kernels}");
                        assert_eq!(stored(&layer, side, &slots), expected, "{what}");
                        let everywhere = numbers(&layer, side).into_iter().filter(|number| *number != 0.0).count();
                        assert_eq!(everywhere, expected.len(), "{what}: no more than that is written");
                    }
                }
            }
        }
    }
}
