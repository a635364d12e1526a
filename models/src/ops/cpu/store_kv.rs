#![expect(unsafe_code, reason = "threads fill disjoint heads of one cache")]

//! Writes keys and values into the paged cache.

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

use super::cache_element::{CacheElement, signed_mut};
use super::launch::{Output, split_rows};
use super::view::Rows;
use crate::kv_cache::{KvLayer, KvSide};
use crate::ops::Compute;
use crate::{ModelError, Slot};

/// Shapes and slots are checked by the caller.
pub(crate) fn store_kv(
    compute: &Compute,
    k: &Tensor,
    v: &Tensor,
    slots: &[Slot],
    layer: &KvLayer,
) -> Result<(), ModelError> {
    let (k, v) = (Rows::new(k)?, Rows::new(v)?);
    layer.k.inplace_op1(&Store { compute, rows: k, slots, layer, side: KvSide::Keys })?;
    layer.v.inplace_op1(&Store { compute, rows: v, slots, layer, side: KvSide::Values })?;
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

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a KV cache that is not contiguous")
        };
        match storage {
            CpuStorage::F32(cache) => self.store(&mut cache[start..end]),
            CpuStorage::BF16(cache) => self.store(&mut cache[start..end]),
            CpuStorage::U8(cache) => self.store(signed_mut(&mut cache[start..end])),
            _ => candle_core::bail!("a KV cache of none of its formats"),
        }
        Ok(())
    }
}

impl Store<'_> {
    /// Threads divide the heads, not the tokens: two tokens with one slot by mistake then still do not race.
    fn store<E: CacheElement>(&self, cache: &mut [E]) {
        let output = Output::new(cache);
        let (num_kv_heads, head_dim) = (self.layer.num_kv_heads(), self.layer.head_dim());
        let (heads_per_task, num_tasks) = split_rows(num_kv_heads, self.slots.len() * head_dim);
        self.compute.pool().run(num_tasks, &|task| {
            let first = task * heads_per_task;
            for head in first..(first + heads_per_task).min(num_kv_heads) {
                for (token, slot) in self.slots.iter().enumerate() {
                    let row = &self.rows.row(token)[head * head_dim..][..head_dim];
                    let place = self.layer.place(self.side, slot.0 as usize, head);
                    // SAFETY: the slot is inside the cache, which the caller checked; the head belongs to this task alone.
                    unsafe { E::write(row, place, &output) };
                }
            }
        });
    }
}
