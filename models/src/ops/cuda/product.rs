#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

//! Products: one row by a kernel of our own, more by cuBLAS.

use candle_core::{D, DType, Tensor};

use super::args::one_row::OneRowArgs;
use super::elementwise::add_bias;
use super::tensors::{address, address_if_any, unwritten};
use crate::ModelError;
use crate::ops::Compute;

/// `x [m, in_features]` times the transposed `weight`, in the weight's dtype with f32 sums, plus `bias [out_features]` f32 if
/// any, given in the dtype of `x`. The product of several rows is rounded before the bias is added.
pub(crate) fn product(
    compute: &Compute,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let x = x.contiguous()?;
    let is_bf16 = x.dtype() == DType::BF16 && weight.dtype() == DType::BF16;
    if is_bf16 && x.dim(0)? == 1 && OneRowArgs::takes(x.dim(1)?) {
        return one_row(compute, &x, weight, bias);
    }
    let y = x.to_dtype(weight.dtype())?.matmul(&weight.transpose(0, D::Minus1)?)?.to_dtype(x.dtype())?;
    bias.map_or(Ok(()), |bias| add_bias(compute, &y, bias))?;
    Ok(y)
}

fn one_row(compute: &Compute, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let (gpu, (outputs, inputs)) = (compute.gpu(), weight.dims2()?);
    let y = unwritten(&[1, outputs], x.dtype(), x)?;
    let args = OneRowArgs {
        x: address(gpu, x)?,
        weight: address(gpu, weight)?,
        bias: address_if_any(gpu, bias)?,
        y: address(gpu, &y)?,
        inputs: inputs as i32,
        outputs: outputs as i32,
    };
    // SAFETY: the tensors have the shapes that the arguments say; rows begin at whole loads, since the device's memory does
    // and every row is a multiple of one.
    unsafe { gpu.launch(args.launch()) }?;
    Ok(y)
}
