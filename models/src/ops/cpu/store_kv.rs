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
    store_rows(compute, (Rows::new(k)?, Rows::new(v)?), slots, layer)
}

/// The same of keys and values wherever they lie.
pub(super) fn store_rows(
    compute: &Compute,
    (k, v): (Rows<'_>, Rows<'_>),
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
