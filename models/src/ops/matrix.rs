//! What ops hand to each other.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::cpu::row_stride::row_stride;
use super::cpu::workspace::{Buffer, Workspace};
use crate::ModelError;

/// Activations, `[num_rows, width]`: f32 in host memory that the steps of a model use in turns, the same as a product takes
/// them, or a tensor for bodies that work on tensors.
#[derive(Debug)]
pub struct Matrix {
    held: Held,
    num_rows: usize,
    width: usize,
}

#[derive(Debug)]
enum Held {
    Host(Buffer<f32>),
    Rounded(Buffer<bf16>),
    Tensor(Tensor),
}

/// A matrix as an op reads it.
#[derive(Debug, Clone, Copy)]
pub enum MatrixView<'a> {
    Host {
        values: &'a [f32],
        num_rows: usize,
        width: usize,
    },
    /// For a product with weights that meet bf16, and nobody else; rows are [`row_stride`] apart.
    Rounded {
        values: &'a [bf16],
        num_rows: usize,
        width: usize,
    },
    Tensor(&'a Tensor),
}

/// What an op takes and gives: a [`Matrix`], or a tensor for whoever has tensors.
pub trait Operand: Sized {
    fn view(&self) -> MatrixView<'_>;

    /// Errors when memory is short.
    fn of(matrix: Matrix) -> Result<Self, ModelError>;
}

impl Matrix {
    pub(super) fn host(values: Buffer<f32>, num_rows: usize, width: usize) -> Self {
        debug_assert_eq!(values.len(), num_rows * width, "whole rows");
        Self { held: Held::Host(values), num_rows, width }
    }

    /// What a product with weights that meet bf16 would round anyway, in rows [`row_stride`] apart.
    pub(super) fn rounded(values: Buffer<bf16>, num_rows: usize, width: usize) -> Self {
        debug_assert_eq!(values.len(), num_rows * row_stride::<bf16>(width), "whole rows");
        Self { held: Held::Rounded(values), num_rows, width }
    }

    /// No row.
    pub(crate) fn none(width: usize) -> Self {
        Self::host(Arc::<Workspace>::default().copy_of(std::iter::empty()), 0, width)
    }

    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// The matrix as a tensor, which is a copy where it was none.
    pub fn into_tensor(self) -> Result<Tensor, ModelError> {
        match self.held {
            Held::Tensor(tensor) => Ok(tensor),
            _ => self.to_tensor(),
        }
    }

    /// The same beside the matrix.
    pub fn to_tensor(&self) -> Result<Tensor, ModelError> {
        self.view().to_tensor()
    }

    /// The numbers, if they lie in host memory that is this matrix' own.
    pub(crate) fn into_host(self) -> Result<Buffer<f32>, Self> {
        match self.held {
            Held::Host(values) => Ok(values),
            Held::Rounded(_) | Held::Tensor(_) => Err(self),
        }
    }
}

impl From<Tensor> for Matrix {
    /// The first dimension counts rows, the others are flattened.
    fn from(tensor: Tensor) -> Self {
        let (num_rows, width) = match tensor.dims() {
            [num_rows, others @ ..] => (*num_rows, others.iter().product()),
            [] => (1, 1),
        };
        Self { held: Held::Tensor(tensor), num_rows, width }
    }
}

impl<'a> MatrixView<'a> {
    /// Errors when it is a tensor of another rank.
    pub(super) fn dims2(self) -> Result<(usize, usize), ModelError> {
        match self {
            Self::Host { num_rows, width, .. } | Self::Rounded { num_rows, width, .. } => Ok((num_rows, width)),
            Self::Tensor(tensor) => Ok(tensor.dims2()?),
        }
    }

    /// For bodies that work on tensors, which find nothing else.
    pub(super) fn tensor(self) -> Result<&'a Tensor, ModelError> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::Host { .. } | Self::Rounded { .. } => {
                Err(ModelError::Input("activations in host memory where a tensor is worked on".into()))
            }
        }
    }

    fn to_tensor(self) -> Result<Tensor, ModelError> {
        match self {
            Self::Host { values, num_rows, width } => Ok(Tensor::from_slice(values, (num_rows, width), &Device::Cpu)?),
            Self::Rounded { values, num_rows, width } => {
                let rows = Tensor::from_slice(values, (num_rows, row_stride::<bf16>(width)), &Device::Cpu)?;
                Ok(rows.narrow(1, 0, width)?.to_dtype(DType::F32)?)
            }
            Self::Tensor(tensor) => Ok(tensor.clone()),
        }
    }
}

impl Operand for Matrix {
    fn view(&self) -> MatrixView<'_> {
        match &self.held {
            Held::Host(values) => MatrixView::Host { values, num_rows: self.num_rows, width: self.width },
            Held::Rounded(values) => MatrixView::Rounded { values, num_rows: self.num_rows, width: self.width },
            Held::Tensor(tensor) => MatrixView::Tensor(tensor),
        }
    }

    fn of(matrix: Matrix) -> Result<Self, ModelError> {
        Ok(matrix)
    }
}

impl Operand for Tensor {
    fn view(&self) -> MatrixView<'_> {
        MatrixView::Tensor(self)
    }

    fn of(matrix: Matrix) -> Result<Self, ModelError> {
        matrix.into_tensor()
    }
}
