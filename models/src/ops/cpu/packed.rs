//! A weight matrix as the CPU bodies hold it: one part below the other, each in its own dtype.

use super::block_panels::BlockPanels;
use super::panels::Panels;
use crate::ops::{Compute, WeightPart};
use crate::{ModelError, StoredDtype};

/// Some outputs of a weight, all of one dtype.
#[derive(Debug)]
pub(crate) enum PackedPart {
    Floats(Panels),
    Blocks(BlockPanels),
}

impl PackedPart {
    /// `parts` hold whole rows of `in_features` elements, at least one, and are rounded to `dtype` where they differ.
    pub(crate) fn pack(
        compute: &Compute,
        dtype: StoredDtype,
        in_features: usize,
        parts: &[WeightPart<'_>],
    ) -> Result<Self, ModelError> {
        let rows = StackedRows::new(in_features, parts);
        Ok(if dtype.is_quantised() {
            Self::Blocks(BlockPanels::pack(compute, dtype, &rows)?)
        } else {
            Self::Floats(Panels::pack(compute, dtype, &rows)?)
        })
    }

    pub(crate) fn out_features(&self) -> usize {
        match self {
            Self::Floats(panels) => panels.out_features,
            Self::Blocks(panels) => panels.out_features,
        }
    }

    pub(crate) fn dtype(&self) -> StoredDtype {
        match self {
            Self::Floats(panels) => panels.dtype(),
            Self::Blocks(panels) => panels.dtype,
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::Floats(panels) => panels.size_bytes(),
            Self::Blocks(panels) => panels.size_bytes(),
        }
    }
}

/// The rows of stacked parts, found by their number.
pub(super) struct StackedRows<'a> {
    pub(super) width: usize,
    pub(super) num_rows: usize,
    parts: &'a [WeightPart<'a>],
    /// The number of each part's first row.
    starts: Vec<usize>,
}

impl<'a> StackedRows<'a> {
    fn new(width: usize, parts: &'a [WeightPart<'a>]) -> Self {
        let mut starts = Vec::with_capacity(parts.len());
        let mut num_rows = 0;
        for part in parts {
            starts.push(num_rows);
            num_rows += part.dtype.elements_in(part.bytes.len()) / width;
        }
        Self { width, num_rows, parts, starts }
    }

    /// A row's dtype and bytes.
    pub(super) fn row(&self, row: usize) -> (StoredDtype, &'a [u8]) {
        let index = self.starts.partition_point(|start| *start <= row) - 1;
        let part = &self.parts[index];
        let row_bytes = self.width / part.dtype.block_len() * part.dtype.block_bytes();
        (part.dtype, &part.bytes[(row - self.starts[index]) * row_bytes..][..row_bytes])
    }
}
