//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `x / sqrt(mean(x^2) + eps) * weight`.
//!
//! Order of the sum of squares, on the CPU: eight running sums, element `i` going to sum `i % 8` by a fused multiply-add
//! in ascending order, then the sums are added pairwise as `((0+4)+(2+6)) + ((1+5)+(3+7))`. Layer normalisation
//! (`layer_norm.rs`) adds in the same order.

use candle_core::{D, Tensor};

use super::cpu::norm::NormWeights;
use super::{Compute, Float, KernelSet, Matrix, MatrixView, Op, Operand, cpu};
use crate::ModelError;

/// What a root-mean-square norm has learned: `weight [width] f32`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RmsNormParams<'a> {
    pub(crate) weight: &'a Tensor,
    pub(crate) eps: f32,
}

/// Normalises each group of `width` elements of each row of `x [m, groups * width] f32` with `weight [width] f32`:
/// `[m, groups * width] f32`. One group is the usual case; several are the heads of a normed query or key.
///
/// The rows of `x` may be strided without cost.
pub fn rms_norm<M: Operand>(compute: &Compute, x: &M, weight: &Tensor, eps: f32) -> Result<M, ModelError> {
    M::of(rms_normed(compute, x.view(), RmsNormParams { weight, eps }, Float::F32)?)
}

/// The same in the wanted form, where the device has it.
pub(crate) fn rms_normed(
    compute: &Compute,
    x: MatrixView<'_>,
    params: RmsNormParams<'_>,
    form: Float,
) -> Result<Matrix, ModelError> {
    let _timer = compute.time(Op::Norm);
    let (m, row) = x.dims2()?;
    let width = params.weight.dims1()?;
    if width == 0 || row % width != 0 {
        return Err(ModelError::Input(format!("a norm of {width} elements for rows of {row}")));
    }
    match compute.kernels() {
        KernelSet::Reference if row == width => Ok(reference(x.tensor()?, params)?.into()),
        KernelSet::Reference => {
            let groups = x.tensor()?.contiguous()?.reshape((m * (row / width), width))?;
            Ok(reference(&groups, params)?.reshape((m, row))?.into())
        }
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => Ok(super::cuda::elementwise::norm(compute, x.tensor()?, &params.into())?.into()),
        _ => cpu::norm::norm(compute, x, &params.into(), form),
    }
}

/// `sum = residual + x`, and the norm of `sum`; all `[m, width] f32`. One pass over memory instead of two.
pub fn add_rms_norm<M: Operand>(
    compute: &Compute,
    residual: &M,
    x: &M,
    weight: &Tensor,
    eps: f32,
) -> Result<(M, M), ModelError> {
    let (sum, normed) = rms_summed(compute, residual.view(), x.view(), RmsNormParams { weight, eps }, Float::F32)?;
    Ok((M::of(sum)?, M::of(normed)?))
}

/// The same with the norm in the wanted form, where the device has it.
pub(crate) fn rms_summed(
    compute: &Compute,
    residual: MatrixView<'_>,
    x: MatrixView<'_>,
    params: RmsNormParams<'_>,
    form: Float,
) -> Result<(Matrix, Matrix), ModelError> {
    let _timer = compute.time(Op::Norm);
    check_width(x, params.weight)?;
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

impl<'a> From<RmsNormParams<'a>> for NormWeights<'a> {
    fn from(params: RmsNormParams<'a>) -> Self {
        Self { weight: params.weight, bias: None, eps: params.eps }
    }
}

fn reference(x: &Tensor, params: RmsNormParams<'_>) -> Result<Tensor, ModelError> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean + f64::from(params.eps))?.sqrt()?)?;
    Ok(normed.broadcast_mul(params.weight)?)
}

pub(super) fn check_residual(residual: MatrixView<'_>, x: MatrixView<'_>) -> Result<(), ModelError> {
    let (residual, x) = (residual.dims2()?, x.dims2()?);
    if residual != x {
        return Err(ModelError::Input(format!("a residual of shape {residual:?} for {x:?}")));
    }
    Ok(())
}

pub(super) fn check_width(x: MatrixView<'_>, weight: &Tensor) -> Result<(), ModelError> {
    let (_, width) = x.dims2()?;
    if weight.dims() != [width] {
        return Err(ModelError::Input(format!("a norm of shape {:?} for rows of {width}", weight.dims())));
    }
    Ok(())
}
