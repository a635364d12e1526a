#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

use candle_core::{DType, Tensor};

use super::args::attention::{AttentionArgs, AttentionShape, MOST_PARTIAL};
use super::launch::{Address, Float};
use super::step::StepLayout;
use super::tensors::{address, float_of, unwritten};
use crate::ModelError;
use crate::kv_cache::KvLayer;
use crate::kv_cache_spec::MOST_GPU_HEAD_DIM;
use crate::ops::{AttentionParams, AttentionPlan, Compute, PerHead};

/// Shapes and block tables are checked by the caller. Tokens that are alone in the step, and the chunks of longer ones, are
/// attended by kernels of their own.
pub(crate) fn paged_attention(
    compute: &Compute,
    q: &Tensor,
    layer: &KvLayer,
    plan: &AttentionPlan<'_>,
    params: &AttentionParams,
) -> Result<Tensor, ModelError> {
    let gpu = compute.gpu();
    let (m, num_heads, head_dim) = q.dims3()?;
    let (step, q, shape) = (plan.on_device(compute)?, q.contiguous()?, attention_shape(q, layer)?);
    let out = unwritten(&[m, num_heads * head_dim], q.dtype(), &q)?;
    let per_head = |values: &Option<PerHead>| match values {
        Some(values) => address(gpu, values.on_device(compute.device())?),
        None => Ok(Address::NULL),
    };
    let StepLayout { positions, blocks, decode, prefill, .. } = &step.layout;
    let args = AttentionArgs {
        q: address(gpu, &q)?,
        k: address(gpu, &layer.k)?,
        v: address(gpu, &layer.v)?,
        out: address(gpu, &out)?,
        positions: step.address(gpu, *positions),
        blocks: step.address(gpu, blocks[layer.group()]),
        slopes: per_head(&params.alibi_slopes)?,
        sinks: per_head(&params.sinks)?,
        ..shape.args(params, *decode)
    };
    for run in shape.runs(*decode, MOST_PARTIAL) {
        let partial = unwritten(&[shape.partial_len(run)], DType::F32, &q)?;
        let args = AttentionArgs { partial: address(gpu, &partial)?, items: step.address(gpu, run.start), ..args };
        // SAFETY: the tensors have the shapes that the arguments say; items and blocks are those of the checked input.
        unsafe {
            gpu.launch(shape.decode(args, run))?;
            gpu.launch(shape.merge(args, run))?;
        }
    }
    if prefill.count > 0 {
        let args = AttentionArgs { items: step.address(gpu, prefill.start), ..args };
        // SAFETY: as above.
        unsafe { gpu.launch(shape.prefill(args, *prefill)) }?;
    }
    Ok(out)
}

fn attention_shape(q: &Tensor, layer: &KvLayer) -> Result<AttentionShape, ModelError> {
    let (_, num_heads, head_dim) = q.dims3()?;
    if head_dim > MOST_GPU_HEAD_DIM {
        return Err(ModelError::Input(format!("heads of {head_dim}: on a GPU at most {MOST_GPU_HEAD_DIM}")));
    }
    let cache = layer.k.dtype();
    let cache = Float::of(cache).ok_or_else(|| ModelError::Input(format!("a KV cache of {cache:?}")))?;
    Ok(AttentionShape {
        num_heads,
        num_kv_heads: layer.num_kv_heads(),
        head_dim,
        padded_head_dim: layer.padded_head_dim(),
        block_size: layer.block_size(),
        activations: float_of(q)?,
        cache,
    })
}
