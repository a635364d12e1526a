#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

//! Norms, activations and biases.

use candle_core::Tensor;

use super::args::activation::ActivationArgs;
use super::args::bias::BiasArgs;
use super::args::norm::NormArgs;
use super::launch::Address;
use super::tensors::{address, address_if_any, float_of, unwritten};
use crate::ModelError;
use crate::ops::cpu::norm::NormWeights;
use crate::ops::{Activation, Compute, Gate};

/// Each group of as many elements as there are weights, as [`crate::ops::cpu::norm::norm`].
pub(crate) fn norm(compute: &Compute, x: &Tensor, weights: &NormWeights<'_>) -> Result<Tensor, ModelError> {
    let x = x.contiguous()?;
    let (gpu, normed) = (compute.gpu(), unwritten(x.dims(), x.dtype(), &x)?);
    let args = NormArgs { x: address(gpu, &x)?, normed: address(gpu, &normed)?, ..parameters(compute, weights)? };
    // SAFETY: whole rows of as many elements as there are weights.
    unsafe { gpu.launch(args.launch(x.elem_count() / weights.weight.dims1()?, float_of(&x)?)) }?;
    Ok(normed)
}

pub(crate) fn add_norm(
    compute: &Compute,
    residual: &Tensor,
    x: &Tensor,
    weights: &NormWeights<'_>,
) -> Result<(Tensor, Tensor), ModelError> {
    let (gpu, x) = (compute.gpu(), x.contiguous()?);
    let residual = residual.contiguous()?.to_dtype(x.dtype())?;
    let [sum, normed] = [unwritten(x.dims(), x.dtype(), &x)?, unwritten(x.dims(), x.dtype(), &x)?];
    let args = NormArgs {
        x: address(gpu, &x)?,
        residual: address(gpu, &residual)?,
        sum: address(gpu, &sum)?,
        normed: address(gpu, &normed)?,
        ..parameters(compute, weights)?
    };
    // SAFETY: tensors of one shape, in rows of as many elements as there are weights.
    unsafe { gpu.launch(args.launch(x.dim(0)?, float_of(&x)?)) }?;
    Ok((sum, normed))
}

pub(crate) fn activate(compute: &Compute, x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
    let x = x.contiguous()?;
    let (gpu, (m, width)) = (compute.gpu(), x.dims2()?);
    let out = unwritten(x.dims(), x.dtype(), &x)?;
    let args =
        ActivationArgs { x: address(gpu, &x)?, out: address(gpu, &out)?, ..ActivationArgs::plain(activation, width) };
    // SAFETY: both have the shape that the arguments say.
    unsafe { gpu.launch(args.launch(m, float_of(&x)?)) }?;
    Ok(out)
}

pub(crate) fn gate_mul(compute: &Compute, gate_up: &Tensor, gate: Gate) -> Result<Tensor, ModelError> {
    let gate_up = gate_up.contiguous()?;
    let (m, both) = gate_up.dims2()?;
    let (gpu, width) = (compute.gpu(), both / 2);
    let out = unwritten(&[m, width], gate_up.dtype(), &gate_up)?;
    let args =
        ActivationArgs { x: address(gpu, &gate_up)?, out: address(gpu, &out)?, ..ActivationArgs::gated(gate, width) };
    // SAFETY: the input's rows are twice as long as the output's.
    unsafe { gpu.launch(args.launch(m, float_of(&gate_up)?)) }?;
    Ok(out)
}

/// Adds `bias [width] f32` to each row of `x [m, width]`, in place: nobody else has `x`.
pub(crate) fn add_bias(compute: &Compute, x: &Tensor, bias: &Tensor) -> Result<(), ModelError> {
    let gpu = compute.gpu();
    let args = BiasArgs {
        x: address(gpu, x)?,
        bias: address(gpu, bias)?,
        width: bias.dims1()? as u64,
        num_elements: x.elem_count() as u64,
    };
    // SAFETY: rows of as many elements as the bias has, which the caller has checked.
    unsafe { gpu.launch(args.launch(float_of(x)?)) }
}

/// Everything but what is normed.
fn parameters(compute: &Compute, weights: &NormWeights<'_>) -> Result<NormArgs, ModelError> {
    let gpu = compute.gpu();
    Ok(NormArgs {
        x: Address::NULL,
        residual: Address::NULL,
        sum: Address::NULL,
        normed: Address::NULL,
        weight: address(gpu, weights.weight)?,
        bias: address_if_any(gpu, weights.bias)?,
        width: weights.weight.dims1()? as i32,
        eps: weights.eps,
    })
}
