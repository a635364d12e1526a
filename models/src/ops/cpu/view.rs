//! What lies in host memory as plain slices.

use candle_core::{CpuStorage, DType, Storage, StorageRef, Tensor};

use crate::ModelError;
use crate::ops::matrix::{MatrixView, Operand};

/// The rows of a matrix, or of an f32 tensor in host memory: its first dimension, the others flattened. Rows may be strided.
pub(super) struct Rows<'a> {
    source: Source<'a>,
    start: usize,
    stride: usize,
    pub(super) num_rows: usize,
    pub(super) width: usize,
}

enum Source<'a> {
    Slice(&'a [f32]),
    Storage(StorageRef<'a>),
}

impl<'a> Rows<'a> {
    /// Errors as [`Self::of_tensor`].
    pub(super) fn new(x: &'a impl Operand) -> Result<Self, ModelError> {
        Self::of(x.view())
    }

    /// Errors as [`Self::of_tensor`], and where they are rounded.
    pub(super) fn of(x: MatrixView<'a>) -> Result<Self, ModelError> {
        match x {
            MatrixView::Host { values, num_rows, width } => {
                Ok(Self { source: Source::Slice(values), start: 0, stride: width, num_rows, width })
            }
            MatrixView::Rounded { .. } => Err(ModelError::Input("activations in bf16 where f32 is worked on".into())),
            MatrixView::Tensor(tensor) => Self::of_tensor(tensor),
        }
    }

    /// Errors when the tensor is not f32 in host memory, or an element of a row does not follow the one before.
    fn of_tensor(x: &'a Tensor) -> Result<Self, ModelError> {
        let (storage, layout) = x.storage_and_layout();
        let (dims, strides) = (layout.dims(), layout.stride());
        let mut width = 1;
        for (&dim, &stride) in dims.iter().zip(strides).skip(1).rev() {
            if dim > 1 && stride != width {
                return Err(ModelError::Input(format!("rows that are not contiguous: {dims:?} strided {strides:?}")));
            }
            width *= dim;
        }
        let num_rows = dims.first().copied().unwrap_or(1);
        let stride = if num_rows > 1 { strides[0] } else { width };
        let rows = Self { source: Source::Storage(storage), start: layout.start_offset(), stride, num_rows, width };
        rows.checked(x.dtype())
    }

    /// One row over all of `x`, which must be contiguous.
    pub(super) fn vector(x: &'a Tensor) -> Result<Self, ModelError> {
        let mut rows = Self::of_tensor(x)?;
        if rows.num_rows > 1 && rows.stride != rows.width {
            return Err(ModelError::Input("a vector that is not contiguous".into()));
        }
        (rows.width, rows.num_rows) = (rows.width * rows.num_rows, 1);
        Ok(rows)
    }

    /// Of each row `width` columns from `first` on.
    pub(super) fn columns(self, first: usize, width: usize) -> Self {
        assert!(first + width <= self.width, "columns of the rows");
        Self { start: self.start + first, width, ..self }
    }

    fn checked(self, dtype: DType) -> Result<Self, ModelError> {
        let end = match self.num_rows {
            0 => 0,
            n => self.start + (n - 1) * self.stride + self.width,
        };
        let Source::Storage(storage) = &self.source else { return Ok(self) };
        match &**storage {
            Storage::Cpu(CpuStorage::F32(values)) if end <= values.len() => Ok(self),
            Storage::Cpu(_) => Err(ModelError::Input(format!("an activation of dtype {dtype:?} instead of f32"))),
            _ => Err(ModelError::Input("an activation that is not in host memory".into())),
        }
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.as_slice()[row * self.stride..][..self.width]
    }

    /// From the first element of the first row to the end of the last row.
    #[inline(always)]
    pub(super) fn as_slice(&self) -> &[f32] {
        let values = match &self.source {
            Source::Slice(values) => *values,
            Source::Storage(storage) => match &**storage {
                Storage::Cpu(CpuStorage::F32(values)) => values,
                _ => unreachable!("checked when the view was made"),
            },
        };
        match self.num_rows {
            0 => &[],
            n => &values[self.start..self.start + (n - 1) * self.stride + self.width],
        }
    }
}
