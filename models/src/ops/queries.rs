//! Queries on their way from their product to attention.

use candle_core::Tensor;

use super::{Matrix, MatrixView, Operand};
use crate::ModelError;

/// A step's queries, `num_heads` of `head_dim` f32 for each token: the first columns of rows that may go on behind them.
#[derive(Debug)]
pub struct Queries {
    pub(super) rows: Matrix,
    pub(super) num_heads: usize,
    pub(super) head_dim: usize,
}

/// The same as attention reads them.
#[derive(Debug, Clone, Copy)]
pub struct QueriesView<'a> {
    pub(super) rows: MatrixView<'a>,
    pub(super) num_tokens: usize,
    pub(super) num_heads: usize,
    pub(super) head_dim: usize,
}

/// What attention takes: [`Queries`], or a tensor `[num_tokens, num_heads, head_dim] f32` for whoever has tensors.
pub trait QueryRows {
    /// What attention gives for them, `[num_tokens, num_heads * head_dim] f32`.
    type Attended: Operand;

    /// Errors when a tensor has another rank.
    fn queries(&self) -> Result<QueriesView<'_>, ModelError>;
}

impl Queries {
    /// A tensor `[num_tokens, num_heads, head_dim]`.
    pub(super) fn of_tensor(tensor: Tensor) -> Result<Self, ModelError> {
        let (_, num_heads, head_dim) = tensor.dims3()?;
        Ok(Self { rows: tensor.into(), num_heads, head_dim })
    }

    /// `[num_tokens, num_heads, head_dim]`, which is a copy where it was none.
    pub fn into_tensor(self) -> Result<Tensor, ModelError> {
        let (num_tokens, width) = (self.rows.num_rows(), self.num_heads * self.head_dim);
        let rows = self.rows.into_tensor()?;
        if rows.rank() == 3 {
            return Ok(rows);
        }
        Ok(rows.narrow(1, 0, width)?.contiguous()?.reshape((num_tokens, self.num_heads, self.head_dim))?)
    }
}

impl QueryRows for Queries {
    type Attended = Matrix;

    fn queries(&self) -> Result<QueriesView<'_>, ModelError> {
        let Self { rows, num_heads, head_dim } = self;
        let num_tokens = rows.num_rows();
        Ok(QueriesView { rows: rows.view(), num_tokens, num_heads: *num_heads, head_dim: *head_dim })
    }
}

impl QueryRows for Tensor {
    type Attended = Tensor;

    fn queries(&self) -> Result<QueriesView<'_>, ModelError> {
        let (num_tokens, num_heads, head_dim) = self.dims3()?;
        Ok(QueriesView { rows: self.view(), num_tokens, num_heads, head_dim })
    }
}
