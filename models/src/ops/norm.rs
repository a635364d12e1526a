//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `x / sqrt(mean(x^2) + eps) * weight`.
//!
//! Order of the sum of squares, on the CPU: eight running sums, element `i` going to sum `i % 8` by a fused multiply-add
//! in ascending order, then the sums are added pairwise as `((0+4)+(2+6)) + ((1+5)+(3+7))`. Layer normalisation
//! (`layer_norm.rs`) adds in the same order.

use candle_core::{D, Tensor};

use super::cpu::norm::NormWeights;
use super::{Compute, KernelSet, Op, cpu};
use crate::ModelError;

/// Normalises each group of `width` elements of each row of `x [m, groups * width] f32` with `weight [width] f32`:
/// `[m, groups * width] f32`. One group is the usual case; several are the heads of a normed query or key.
///
/// The rows of `x` may be strided without cost.
pub fn rms_norm(compute: &Compute, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor, ModelError> {
    let _timer = compute.time(Op::Norm);
    let (m, row) = x.dims2()?;
    let width = weight.dims1()?;
    if width == 0 || row % width != 0 {
        return Err(ModelError::Input(format!("a norm of {width} elements for rows of {row}")));
    }
    match compute.kernels() {
        KernelSet::Reference if row == width => reference(x, weight, eps),
        KernelSet::Reference => {
            let groups = x.contiguous()?.reshape((m * (row / width), width))?;
            Ok(reference(&groups, weight, eps)?.reshape((m, row))?)
        }
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => super::cuda::elementwise::norm(compute, x, &NormWeights { weight, bias: None, eps }),
        _ => cpu::norm::norm(compute, x, &NormWeights { weight, bias: None, eps }),
    }
}

/// `sum = residual + x`, and the norm of `sum`; all `[m, width] f32`. One pass over memory instead of two.
pub fn add_rms_norm(
    compute: &Compute,
    residual: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor), ModelError> {
    let _timer = compute.time(Op::Norm);
    check_width(x, weight)?;
    check_residual(residual, x)?;
    match compute.kernels() {
        KernelSet::Reference => {
            let sum = (residual + x)?;
            let normed = reference(&sum, weight, eps)?;
            Ok((sum, normed))
        }
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => {
            super::cuda::elementwise::add_norm(compute, residual, x, &NormWeights { weight, bias: None, eps })
        }
        _ => cpu::norm::add_norm(compute, residual, x, &NormWeights { weight, bias: None, eps }),
    }
}

fn reference(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor, ModelError> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?;
    Ok(normed.broadcast_mul(weight)?)
}

pub(super) fn check_residual(residual: &Tensor, x: &Tensor) -> Result<(), ModelError> {
    if residual.dims() != x.dims() {
        let (residual, x) = (residual.dims(), x.dims());
        return Err(ModelError::Input(format!("a residual of shape {residual:?} for {x:?}")));
    }
    Ok(())
}

pub(super) fn check_width(x: &Tensor, weight: &Tensor) -> Result<(), ModelError> {
    let (_, width) = x.dims2()?;
    if weight.dims() != [width] {
        return Err(ModelError::Input(format!("a norm of shape {:?} for rows of {width}", weight.dims())));
    }
    Ok(())
}
