//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `x / sqrt(mean(x^2) + eps) * weight`.
//!
//! Order of the sum of squares, on the CPU: eight running sums, element `i` going to sum `i % 8` by a fused multiply-add
//! in ascending order, then the sums are added pairwise as `((0+4)+(2+6)) + ((1+5)+(3+7))`.

use candle_core::{D, Tensor};

use super::{Compute, KernelSet, cpu};
use crate::ModelError;

/// Normalises each row of `x [m, width] f32` with `weight [width] f32`: `[m, width] f32`.
pub fn rms_norm(compute: &Compute, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor, ModelError> {
    check_width(x, weight)?;
    match compute.kernels() {
        KernelSet::Reference => reference(x, weight, eps),
        _ => cpu::norm::rms_norm(compute, x, weight, eps),
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
    check_width(x, weight)?;
    if residual.dims() != x.dims() {
        let (residual, x) = (residual.dims(), x.dims());
        return Err(ModelError::Input(format!("a residual of shape {residual:?} for {x:?}")));
    }
    match compute.kernels() {
        KernelSet::Reference => {
            let sum = (residual + x)?;
            let normed = reference(&sum, weight, eps)?;
            Ok((sum, normed))
        }
        _ => cpu::norm::add_rms_norm(compute, residual, x, weight, eps),
    }
}

fn reference(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor, ModelError> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?;
    Ok(normed.broadcast_mul(weight)?)
}

fn check_width(x: &Tensor, weight: &Tensor) -> Result<(), ModelError> {
    let (_, width) = x.dims2()?;
    if weight.dims() != [width] {
        return Err(ModelError::Input(format!("a norm of shape {:?} for rows of {width}", weight.dims())));
    }
    Ok(())
}
