//! Some rows of a matrix, in the order asked for.

use candle_core::Tensor;

use super::{AttentionPlan, Compute, Matrix, MatrixView, Op, Operand, cpu};
use crate::ModelError;

/// The rows `rows` of `x [m, width]`, any dtype: `[rows.len(), width]`. Errors when a row is out of range.
pub fn gather_rows(compute: &Compute, x: &Tensor, rows: &[usize]) -> Result<Tensor, ModelError> {
    let _timer = compute.time(Op::GatherRows);
    let (m, width) = x.dims2()?;
    check(rows, m)?;
    if rows.is_empty() {
        return Ok(Tensor::zeros((0, width), x.dtype(), compute.device())?);
    }
    if are_all(rows, m) {
        return Ok(x.clone());
    }
    let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    #[cfg(feature = "cuda")]
    if compute.kernels() == super::KernelSet::Cuda {
        return super::cuda::rows::gather(compute, x, &rows);
    }
    let indexes = Tensor::from_slice(&rows, rows.len(), compute.device())?;
    Ok(x.contiguous()?.index_select(&indexes, 0)?)
}

/// As [`gather_rows`], of the rows of a step whose logits are wanted. Nothing is copied where those are all.
pub fn sampled_rows(compute: &Compute, x: Matrix, plan: &AttentionPlan<'_>) -> Result<Matrix, ModelError> {
    let rows = plan.input().rows_to_sample();
    if are_all(rows, x.num_rows()) {
        return Ok(x);
    }
    let tensor = match x.view() {
        MatrixView::Host { num_rows, .. } | MatrixView::Rounded { num_rows, .. } => {
            let _timer = compute.time(Op::GatherRows);
            check(rows, num_rows)?;
            return cpu::gather_rows::gather_rows(compute, x.view(), rows);
        }
        MatrixView::Tensor(tensor) => tensor,
    };
    #[cfg(feature = "cuda")]
    if compute.kernels() == super::KernelSet::Cuda && (1..plan.input().num_tokens()).contains(&rows.len()) {
        let _timer = compute.time(Op::GatherRows);
        return Ok(super::cuda::rows::gather_sampled(compute, tensor, plan)?.into());
    }
    Ok(gather_rows(compute, tensor, rows)?.into())
}

fn are_all(rows: &[usize], m: usize) -> bool {
    rows.len() == m && rows.iter().enumerate().all(|(index, &row)| index == row)
}

fn check(rows: &[usize], m: usize) -> Result<(), ModelError> {
    match rows.iter().find(|&&row| row >= m) {
        Some(row) => Err(ModelError::Input(format!("row {row} of {m}"))),
        None => Ok(()),
    }
}
