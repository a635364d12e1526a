//! Some rows of a matrix, in the order asked for.

use candle_core::Tensor;

use super::{Compute, Op};
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
