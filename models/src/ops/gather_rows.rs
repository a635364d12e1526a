//! Some rows of a matrix, in the order asked for.

use candle_core::Tensor;

use super::{AttentionPlan, Compute, Op};
use crate::ModelError;

/// The rows `rows` of `x [m, width]`, any dtype: `[rows.len(), width]`. Errors when a row is out of range.
pub fn gather_rows(compute: &Compute, x: &Tensor, rows: &[usize]) -> Result<Tensor, ModelError> {
    let _timer = compute.time(Op::GatherRows);
    let (m, width) = x.dims2()?;
    if let Some(row) = rows.iter().find(|&&row| row >= m) {
        return Err(ModelError::Input(format!("row {row} of {m}")));
    }
    if rows.is_empty() {
        return Ok(Tensor::zeros((0, width), x.dtype(), compute.device())?);
    }
    if rows.len() == m && rows.iter().enumerate().all(|(index, &row)| index == row) {
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

/// As [`gather_rows`], of the rows of a step whose logits are wanted.
pub fn sampled_rows(compute: &Compute, x: &Tensor, plan: &AttentionPlan<'_>) -> Result<Tensor, ModelError> {
    let rows = plan.input().rows_to_sample();
    #[cfg(feature = "cuda")]
    if compute.kernels() == super::KernelSet::Cuda && (1..plan.input().num_tokens()).contains(&rows.len()) {
        let _timer = compute.time(Op::GatherRows);
        return super::cuda::rows::gather_sampled(compute, x, plan);
    }
    gather_rows(compute, x, rows)
}
