//! The sum of two matrices where no norm follows that could add them on its way.

use super::norm::check_residual;
use super::{Compute, Matrix, MatrixView, Operand, cpu};
use crate::ModelError;

/// `a + b`, both `[m, width] f32`, each element rounded once, on any device.
pub fn add(compute: &Compute, a: &Matrix, b: &Matrix) -> Result<Matrix, ModelError> {
    check_residual(a.view(), b.view())?;
    match (a.view(), b.view()) {
        (MatrixView::Tensor(a), MatrixView::Tensor(b)) => Ok((a + b)?.into()),
        (a, b) => cpu::add::add(compute, a, b),
    }
}
