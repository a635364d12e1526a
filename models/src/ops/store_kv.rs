//! Writes a step's keys and values into the paged cache, rounded to the cache's format. Attention reads them back from
//! there and from nowhere else, so a token attends the same bits in the step that wrote them and in all later ones.

use candle_core::{DType, Tensor};

use super::int8_row::Int8Row;
use super::{Compute, Op, cpu};
use crate::kv_cache::{KvLayer, KvPlace, KvSide};
use crate::{KvFormat, ModelError, Slot};

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
        _ => reference(compute, k, v, slots, layer),
    }
}

fn reference(compute: &Compute, k: &Tensor, v: &Tensor, slots: &[Slot], layer: &mut KvLayer) -> Result<(), ModelError> {
    for (side, cache, x) in [(KvSide::Keys, &layer.k, k), (KvSide::Values, &layer.v, v)] {
        let (at, x) = match layer.format() {
            KvFormat::F32 | KvFormat::Bf16 => elements(x, slots, layer, side)?,
            KvFormat::Int8 => bytes(x, slots, layer, side)?,
        };
        let at = Tensor::from_vec(at, x.elem_count(), compute.device())?.to_dtype(DType::I64)?;
        cache.flatten_all()?.scatter_set(&at, &x, 0)?;
    }
    Ok(())
}

/// Where each element goes, and what it is there.
fn elements(x: &Tensor, slots: &[Slot], layer: &KvLayer, side: KvSide) -> Result<(Vec<i64>, Tensor), ModelError> {
    let mut at = Vec::with_capacity(x.elem_count());
    for place in places(slots, layer, side) {
        at.extend((0..layer.head_dim()).map(|d| (place.first + d * place.stride) as i64));
    }
    Ok((at, x.contiguous()?.flatten_all()?.to_dtype(layer.format().dtype())?))
}

/// The same of rows in integers, whose scales follow them.
fn bytes(x: &Tensor, slots: &[Slot], layer: &KvLayer, side: KvSide) -> Result<(Vec<i64>, Tensor), ModelError> {
    let (mut at, mut bytes) = (Vec::new(), Vec::new());
    let x: Vec<f32> = x.contiguous()?.flatten_all()?.to_vec1()?;
    for (place, row) in places(slots, layer, side).zip(x.chunks_exact(layer.head_dim())) {
        let is = Int8Row::of(row);
        at.extend((0..row.len()).map(|d| (place.first + d * place.stride) as i64));
        bytes.extend(row.iter().map(|value| is.element(*value).cast_unsigned()));
        let scale = is.scale().to_ne_bytes();
        at.extend((0..scale.len()).map(|byte| (place.scale + byte) as i64));
        bytes.extend(scale);
    }
    let len = bytes.len();
    Ok((at, Tensor::from_vec(bytes, len, layer.k.device())?))
}

/// Of every head of every token, in the order of the rows.
fn places(slots: &[Slot], layer: &KvLayer, side: KvSide) -> impl Iterator<Item = KvPlace> {
    let of_token = move |slot: &Slot| {
        let slot = slot.0 as usize;
        (0..layer.num_kv_heads()).map(move |head| layer.place(side, slot, head))
    };
    slots.iter().flat_map(of_token)
}
