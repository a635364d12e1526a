//! The rows that meet a weight, as the op before has given them.

use super::bf16_pairs::{Bf16Pair, PairRows};
use super::packed::PackedPart;
use super::row_stride::row_stride;
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Float, MatrixView};

pub(super) enum Inputs<'a> {
    Floats(Rows<'a>),
    /// For a weight all of whose parts take them so.
    Rounded(PairRows<'a>),
}

impl<'a> Inputs<'a> {
    /// Errors as [`Rows::of`], and where rows are rounded for a weight that does not take them so.
    pub(super) fn of(x: MatrixView<'a>, parts: &[PackedPart]) -> Result<Self, ModelError> {
        match x {
            MatrixView::Rounded { values, num_rows, width } if takes(parts) == Float::Bf16 => {
                let stride = row_stride::<Bf16Pair>(width / 2);
                // Bodies read through pointers.
                assert!(values.len() >= num_rows * 2 * stride, "rows as long as they are said to be");
                Ok(Self::Rounded(PairRows { pairs: Bf16Pair::all_of(values), num_rows, stride }))
            }
            x => Ok(Self::Floats(Rows::of(x)?)),
        }
    }

    pub(super) fn num_rows(&self) -> usize {
        match self {
            Self::Floats(rows) => rows.num_rows,
            Self::Rounded(rows) => rows.num_rows,
        }
    }

    pub(super) fn floats(&self) -> &Rows<'a> {
        match self {
            Self::Floats(rows) => rows,
            Self::Rounded(_) => unreachable!("no part of the weight takes floats"),
        }
    }
}

/// What a weight takes its rows as without rounding them first.
pub(crate) fn takes(parts: &[PackedPart]) -> Float {
    let takes_pairs = |part: &PackedPart| matches!(part, PackedPart::Floats(panels) if panels.are_of_pairs());
    if parts.iter().all(takes_pairs) { Float::Bf16 } else { Float::F32 }
}

/// The rows of `x`, as the weights meet them.
pub(super) struct FactorRows<'a, F> {
    pub(super) values: &'a [F],
    pub(super) stride: usize,
    pub(super) num_rows: usize,
}

impl<'a> From<&'a Rows<'_>> for FactorRows<'a, f32> {
    fn from(rows: &'a Rows<'_>) -> Self {
        Self { values: rows.as_slice(), stride: rows.stride(), num_rows: rows.num_rows }
    }
}

impl<'a> From<PairRows<'a>> for FactorRows<'a, Bf16Pair> {
    fn from(rows: PairRows<'a>) -> Self {
        Self { values: rows.pairs, stride: rows.stride, num_rows: rows.num_rows }
    }
}
