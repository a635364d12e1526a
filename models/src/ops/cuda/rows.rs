#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

use candle_core::Tensor;

use super::args::rows::GatherArgs;
use super::launch::Address;
use super::tensors::{address, float_of, unwritten};
use crate::ModelError;
use crate::ops::{AttentionPlan, Compute};

/// Every row is one of `x [m, width]`, which the caller has checked: `[rows.len(), width]`, dtype of `x`.
pub(crate) fn gather(compute: &Compute, x: &Tensor, rows: &[u32]) -> Result<Tensor, ModelError> {
    let on_device = Tensor::from_slice(rows, rows.len(), compute.device())?;
    gather_at(compute, x, address(compute.gpu(), &on_device)?, rows.len())
}

/// The rows of `table` that the step's tokens name, as [`gather`].
pub(crate) fn gather_tokens(compute: &Compute, table: &Tensor, plan: &AttentionPlan<'_>) -> Result<Tensor, ModelError> {
    let step = plan.on_device(compute)?;
    let tokens = step.address(compute.gpu(), step.layout.tokens);
    gather_at(compute, table, tokens, plan.input().num_tokens())
}

/// The rows of `x` whose logits the step wants, as [`gather`].
pub(crate) fn gather_sampled(compute: &Compute, x: &Tensor, plan: &AttentionPlan<'_>) -> Result<Tensor, ModelError> {
    let step = plan.on_device(compute)?;
    let sampled = step.address(compute.gpu(), step.layout.sampled);
    gather_at(compute, x, sampled, plan.input().rows_to_sample().len())
}

fn gather_at(compute: &Compute, x: &Tensor, rows: Address, count: usize) -> Result<Tensor, ModelError> {
    let (gpu, x) = (compute.gpu(), x.contiguous()?);
    let width = x.dim(1)?;
    let out = unwritten(&[count, width], x.dtype(), &x)?;
    let args = GatherArgs { x: address(gpu, &x)?, rows, out: address(gpu, &out)?, width: width as u64 };
    // SAFETY: rows of `x`, as the caller says.
    unsafe { gpu.launch(args.launch(count, float_of(&x)?)) }?;
    Ok(out)
}
