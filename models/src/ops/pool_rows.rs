//! Several rows to one: how the hidden states of a sequence become one vector.
//!
//! Order of the sums: each column's elements are added in f32 by ascending row, on any device.

use candle_core::{DType, Tensor};

use super::{Compute, Op, cpu};
use crate::ModelError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowPool {
    Mean,
    /// The largest element of each column.
    Max,
    /// The sum over the square root of the number of rows.
    MeanSqrtLen,
    /// The first row counts once, the second twice, and so on: Muennighoff 2022, arXiv:2202.08904.
    WeightedMean,
}

impl RowPool {
    /// What row `index` of a sequence counts.
    pub(super) fn weight(self, index: usize) -> f32 {
        match self {
            Self::WeightedMean => (index + 1) as f32,
            _ => 1.0,
        }
    }

    /// What the sum over `num_rows` rows is divided by.
    pub(super) fn divisor(self, num_rows: usize) -> f32 {
        match self {
            Self::Mean => num_rows as f32,
            Self::Max => 1.0,
            Self::MeanSqrtLen => (num_rows as f32).sqrt(),
            Self::WeightedMean => (0..num_rows).map(|index| self.weight(index)).sum(),
        }
    }
}

/// `x [m, width] f32`, whose rows `starts[i]..starts[i + 1]` belong to sequence `i`: `[starts.len() - 1, width] f32`.
///
/// Errors when a sequence has no row, or the sequences are not all of `x`.
pub fn pool_rows(compute: &Compute, x: &Tensor, starts: &[usize], pool: RowPool) -> Result<Tensor, ModelError> {
    let _timer = compute.time(Op::PoolRows);
    let (m, width) = x.dims2()?;
    let whole = starts.first() == Some(&0) && starts.last() == Some(&m);
    if !whole || starts.len() < 2 || !starts.is_sorted_by(|a, b| a < b) {
        return Err(ModelError::Input(format!("{m} rows cut at {starts:?}")));
    }
    match compute.kernels() {
        kernels if kernels.keeps_rows_equal() => cpu::pool_rows::pool_rows(compute, x, starts, pool, width),
        _ => reference(x, starts, pool),
    }
}

fn reference(x: &Tensor, starts: &[usize], pool: RowPool) -> Result<Tensor, ModelError> {
    let rows = starts.windows(2).map(|range| {
        let len = range[1] - range[0];
        let rows = x.narrow(0, range[0], len)?;
        if pool == RowPool::Max {
            return Ok(rows.max_keepdim(0)?);
        }
        let weights: Vec<f32> = (0..len).map(|index| pool.weight(index)).collect();
        let weights = Tensor::from_vec(weights, (len, 1), x.device())?.to_dtype(DType::F32)?;
        Ok((rows.broadcast_mul(&weights)?.sum_keepdim(0)? / f64::from(pool.divisor(len)))?)
    });
    Ok(Tensor::cat(&rows.collect::<Result<Vec<_>, ModelError>>()?, 0)?)
}
