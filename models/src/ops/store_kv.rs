//! Writes a step's keys and values into the paged cache, rounded to the cache's dtype. Attention reads them back from
//! there and from nowhere else, so a token attends the same bits in the step that wrote them and in all later ones.

use candle_core::{DType, Tensor};

use super::{Compute, Op, cpu};
use crate::kv_cache::{KV_TILE, KvLayer};
use crate::{ModelError, Slot};

/// Writes `k` and `v`, `[m, num_kv_heads * head_dim] f32` (or `[m, num_kv_heads, head_dim]`), to `slots [m]`.
///
/// The rows of `k` and `v` may be strided without cost. Errors when a shape does not fit the layer or a slot is outside it.
pub fn store_kv(
    compute: &Compute,
    k: &Tensor,
    v: &Tensor,
    slots: &[Slot],
    layer: &mut KvLayer,
) -> Result<(), ModelError> {
    let _timer = compute.time(Op::StoreKv);
    let (m, width) = (slots.len(), layer.num_kv_heads() * layer.head_dim());
    for x in [k, v] {
        if x.rank() < 2 || x.dim(0)? != m || x.elem_count() != m * width {
            let shape = x.dims();
            return Err(ModelError::Input(format!("keys or values of shape {shape:?} for {m} slots of {width}")));
        }
    }
    if let Some(slot) = slots.iter().find(|slot| slot.0 as usize >= layer.num_slots()) {
        return Err(ModelError::Input(format!("slot {} of {}", slot.0, layer.num_slots())));
    }
    match compute.kernels() {
        kernels if kernels.keeps_rows_equal() => cpu::store_kv::store_kv(compute, k, v, slots, layer),
        _ => reference(compute, (k, v), slots, layer),
    }
}

fn reference(
    compute: &Compute,
    (k, v): (&Tensor, &Tensor),
    slots: &[Slot],
    layer: &mut KvLayer,
) -> Result<(), ModelError> {
    let (num_kv_heads, head_dim) = (layer.num_kv_heads(), layer.head_dim());
    let (mut k_at, mut v_at) = (Vec::new(), Vec::new());
    for slot in slots {
        let (block, offset) = (slot.0 as usize / layer.block_size(), slot.0 as usize % layer.block_size());
        for head in 0..num_kv_heads {
            let (row, lane) = (block * num_kv_heads + head, offset % KV_TILE);
            let tile = row * (layer.block_size() / KV_TILE) + offset / KV_TILE;
            k_at.extend((0..head_dim).map(|d| ((tile * head_dim + d) * KV_TILE + lane) as i64));
            let v_row = (row * layer.block_size() + offset) * layer.padded_head_dim();
            v_at.extend((0..head_dim).map(|d| (v_row + d) as i64));
        }
    }
    for (cache, x, at) in [(&layer.k, k, k_at), (&layer.v, v, v_at)] {
        let x = x.contiguous()?.flatten_all()?.to_dtype(cache.dtype())?;
        let at = Tensor::from_vec(at, x.elem_count(), compute.device())?.to_dtype(DType::I64)?;
        cache.flatten_all()?.scatter_set(&at, &x, 0)?;
    }
    Ok(())
}
