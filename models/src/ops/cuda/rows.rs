#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

use candle_core::Tensor;

use super::args::rows::GatherArgs;
use super::tensors::{address, float_of, unwritten};
use crate::ModelError;
use crate::ops::Compute;

/// Every row is one of `x [m, width]`, which the caller has checked: `[rows.len(), width]`, dtype of `x`.
pub(crate) fn gather(compute: &Compute, x: &Tensor, rows: &[u32]) -> Result<Tensor, ModelError> {
    let (gpu, x) = (compute.gpu(), x.contiguous()?);
    let width = x.dim(1)?;
    let rows = Tensor::from_slice(rows, rows.len(), compute.device())?;
    let out = unwritten(&[rows.elem_count(), width], x.dtype(), &x)?;
    let args =
        GatherArgs { x: address(gpu, &x)?, rows: address(gpu, &rows)?, out: address(gpu, &out)?, width: width as u64 };
    // SAFETY: rows of `x`, as the caller says.
    unsafe { gpu.launch(args.launch(rows.elem_count(), float_of(&x)?)) }?;
    Ok(out)
}
