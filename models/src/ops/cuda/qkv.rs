#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

use candle_core::Tensor;

use super::args::qkv::QkvArgs;
use super::launch::Float;
use super::tensors::{address, address_if_any, float_of, unwritten};
use crate::ModelError;
use crate::kv_cache::KvLayer;
use crate::kv_cache_spec::MOST_GPU_HEAD_DIM;
use crate::ops::prepare_qkv::QkvPreparation;
use crate::ops::{AttentionPlan, Compute, Operand};

/// Shapes and slots are checked by the caller.
pub(crate) fn prepare_qkv(
    compute: &Compute,
    qkv: &Tensor,
    preparation: &QkvPreparation<'_>,
    plan: &AttentionPlan<'_>,
    layer: &mut KvLayer,
) -> Result<Tensor, ModelError> {
    let (gpu, qkv, step) = (compute.gpu(), qkv.contiguous()?, plan.on_device(compute)?);
    let (m, head_dim) = (qkv.dim(0)?, layer.head_dim());
    let q = unwritten(&[m, preparation.num_heads, head_dim], qkv.dtype(), &qkv)?;
    let cache = layer.k.dtype();
    let cache = Float::of(cache).filter(|_| head_dim <= MOST_GPU_HEAD_DIM);
    let cache = cache.ok_or_else(|| ModelError::Input(format!("a KV cache with heads of {head_dim} on a GPU")))?;
    let norms = preparation.norms.as_ref();
    let angles = preparation.angles;
    let whole_token = match norms {
        Some((norm, _)) => norm.weight.dims1()? != head_dim,
        None => false,
    };
    let args = QkvArgs {
        qkv: address(gpu, &qkv)?,
        q: address(gpu, &q)?,
        k: address(gpu, &layer.k)?,
        v: address(gpu, &layer.v)?,
        slots: step.address(gpu, step.layout.slots[layer.group()]),
        bias: address_if_any(gpu, preparation.bias)?,
        q_weight: address_if_any(gpu, norms.map(|(q, _)| q.weight))?,
        k_weight: address_if_any(gpu, norms.map(|(_, k)| k.weight))?,
        q_bias: address_if_any(gpu, norms.and_then(|(q, _)| q.bias))?,
        k_bias: address_if_any(gpu, norms.and_then(|(_, k)| k.bias))?,
        cosines: address_if_any(gpu, angles.map(|angles| angles.cos.view().tensor()).transpose()?)?,
        sines: address_if_any(gpu, angles.map(|angles| angles.sin.view().tensor()).transpose()?)?,
        num_heads: preparation.num_heads as i32,
        num_kv_heads: layer.num_kv_heads() as i32,
        head_dim: head_dim as i32,
        padded_head_dim: layer.padded_head_dim() as i32,
        block_size: layer.block_size() as i32,
        half: angles.map_or(0, |angles| angles.dims().1) as i32,
        whole_token: i32::from(whole_token),
        q_eps: norms.map_or(0.0, |(q, _)| q.eps),
        k_eps: norms.map_or(0.0, |(_, k)| k.eps),
    };
    // SAFETY: the tensors have the shapes that the arguments say; each token has a slot of its own inside the cache.
    unsafe { gpu.launch(args.launch(m, float_of(&qkv)?, cache)) }?;
    Ok(q)
}
