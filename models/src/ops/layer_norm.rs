//! Layer normalisation (Ba et al., 2016): `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`.
//!
//! Order of the sums, on the CPU: the mean's and then the squared distances' eight running sums, as in `norm.rs`.

use candle_core::{D, Tensor};

use super::cpu::norm::NormWeights;
use super::norm::{check_residual, check_width};
use super::{Compute, Float, KernelSet, Matrix, MatrixView, Op, Operand, cpu};
use crate::ModelError;

/// What a layer norm has learned: `weight [width] f32` and `bias [width] f32`.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormParams<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub eps: f32,
}

/// Normalises each row of `x [m, width] f32`: `[m, width] f32`.
pub fn layer_norm<M: Operand>(compute: &Compute, x: &M, params: LayerNormParams<'_>) -> Result<M, ModelError> {
    M::of(layer_normed(compute, x.view(), params, Float::F32)?)
}

/// The same in the wanted form, where the device has it.
pub(crate) fn layer_normed(
    compute: &Compute,
    x: MatrixView<'_>,
    params: LayerNormParams<'_>,
    form: Float,
) -> Result<Matrix, ModelError> {
    let _timer = compute.time(Op::Norm);
    params.check(x)?;
    match compute.kernels() {
        KernelSet::Reference => Ok(reference(x.tensor()?, params)?.into()),
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => Ok(super::cuda::elementwise::norm(compute, x.tensor()?, &params.into())?.into()),
        _ => cpu::norm::norm(compute, x, &params.into(), form),
    }
}

/// `sum = residual + x`, and the norm of `sum`; all `[m, width] f32`. One pass over memory instead of two.
pub fn add_layer_norm<M: Operand>(
    compute: &Compute,
    residual: &M,
    x: &M,
    params: LayerNormParams<'_>,
) -> Result<(M, M), ModelError> {
    let (sum, normed) = layer_summed(compute, residual.view(), x.view(), params, Float::F32)?;
    Ok((M::of(sum)?, M::of(normed)?))
}

/// The same with the norm in the wanted form, where the device has it.
pub(crate) fn layer_summed(
    compute: &Compute,
    residual: MatrixView<'_>,
    x: MatrixView<'_>,
    params: LayerNormParams<'_>,
    form: Float,
) -> Result<(Matrix, Matrix), ModelError> {
    let _timer = compute.time(Op::Norm);
    params.check(x)?;
    check_residual(residual, x)?;
    match compute.kernels() {
        KernelSet::Reference => {
            let sum = (residual.tensor()? + x.tensor()?)?;
            let normed = reference(&sum, params)?;
            Ok((sum.into(), normed.into()))
        }
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => {
            let (residual, x) = (residual.tensor()?, x.tensor()?);
            let (sum, normed) = super::cuda::elementwise::add_norm(compute, residual, x, &params.into())?;
            Ok((sum.into(), normed.into()))
        }
        _ => cpu::norm::add_norm(compute, residual, x, &params.into(), form),
    }
}

impl LayerNormParams<'_> {
    fn check(&self, x: MatrixView<'_>) -> Result<(), ModelError> {
        check_width(x, self.weight)?;
        check_width(x, self.bias)
    }
}

impl<'a> From<LayerNormParams<'a>> for NormWeights<'a> {
    fn from(params: LayerNormParams<'a>) -> Self {
        Self { weight: params.weight, bias: Some(params.bias), eps: params.eps }
    }
}

fn reference(x: &Tensor, params: LayerNormParams<'_>) -> Result<Tensor, ModelError> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + f64::from(params.eps))?.sqrt()?)?;
    Ok(normed.broadcast_mul(params.weight)?.broadcast_add(params.bias)?)
}
