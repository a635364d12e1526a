#![expect(unsafe_code, reason = "threads fill disjoint heads of one cache")]

//! Writes keys and values into the paged cache.

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

use super::lanes::Element;
use super::launch::{Output, split_rows};
use super::view::Rows;
use crate::kv_cache::{KV_TILE, KvLayer};
use crate::ops::Compute;
use crate::{ModelError, Slot};

/// Shapes and slots are checked by the caller.
pub(crate) fn store_kv(
    compute: &Compute,
    k: &Tensor,
    v: &Tensor,
    slots: &[Slot],
    layer: &mut KvLayer,
) -> Result<(), ModelError> {
    let (k, v) = (Rows::new(k)?, Rows::new(v)?);
    let shape = CacheShape {
        block_size: layer.block_size(),
        num_kv_heads: layer.num_kv_heads(),
        head_dim: layer.head_dim(),
        padded_head_dim: layer.padded_head_dim(),
    };
    layer.k.inplace_op1(&Store { compute, rows: k, slots, shape, side: Side::Keys })?;
    layer.v.inplace_op1(&Store { compute, rows: v, slots, shape, side: Side::Values })?;
    Ok(())
}

#[derive(Clone, Copy)]
struct CacheShape {
    block_size: usize,
    num_kv_heads: usize,
    head_dim: usize,
    padded_head_dim: usize,
}

#[derive(Clone, Copy)]
enum Side {
    Keys,
    Values,
}

struct Store<'a> {
    compute: &'a Compute,
    rows: Rows<'a>,
    slots: &'a [Slot],
    shape: CacheShape,
    side: Side,
}

impl InplaceOp1 for Store<'_> {
    fn name(&self) -> &'static str {
        "store-kv"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a KV cache that is not contiguous")
        };
        match storage {
            CpuStorage::F32(cache) => self.store(&mut cache[start..end]),
            CpuStorage::BF16(cache) => self.store(&mut cache[start..end]),
            _ => candle_core::bail!("a KV cache that is neither f32 nor bf16"),
        }
        Ok(())
    }
}

impl Store<'_> {
    /// Threads divide the heads, not the tokens: two tokens with one slot by mistake then still do not race.
    fn store<E: Element>(&self, cache: &mut [E]) {
        let output = Output::new(cache);
        let (heads_per_task, num_tasks) = split_rows(self.shape.num_kv_heads, self.slots.len() * self.shape.head_dim);
        self.compute.pool().run(num_tasks, &|task| {
            let first = task * heads_per_task;
            for head in first..(first + heads_per_task).min(self.shape.num_kv_heads) {
                for (token, slot) in self.slots.iter().enumerate() {
                    self.store_head(token, slot.0 as usize, head, &output);
                }
            }
        });
    }

    fn store_head<E: Element>(&self, token: usize, slot: usize, head: usize, cache: &Output<E>) {
        let CacheShape { block_size, num_kv_heads, head_dim, padded_head_dim } = self.shape;
        let (block, offset) = (slot / block_size, slot % block_size);
        let block_head = block * num_kv_heads + head;
        let (start, stride) = match self.side {
            Side::Keys => {
                let tile = block_head * (block_size / KV_TILE) + offset / KV_TILE;
                (tile * head_dim * KV_TILE + offset % KV_TILE, KV_TILE)
            }
            Side::Values => ((block_head * block_size + offset) * padded_head_dim, 1),
        };
        for (d, &value) in self.rows.row(token)[head * head_dim..][..head_dim].iter().enumerate() {
            // SAFETY: the slot is inside the cache, which the caller checked; the head belongs to this task alone.
            unsafe { *cache.at(start + d * stride) = E::from_f32(value) };
        }
    }
}
