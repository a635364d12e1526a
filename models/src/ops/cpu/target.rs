#![expect(unsafe_code, reason = "threads fill disjoint parts of one output")]

//! Where the sums of a product go, and what is added to them at the end.

use super::lanes::Lanes;
use super::launch::Output;
use super::panels::PANEL;

/// Columns of a row-major output. A weight that is held in several parts fills the columns of each part in its turn.
pub(super) struct Target<'a> {
    y: &'a Output<f32>,
    stride: usize,
    /// Where row 0 has its column 0: before the output, where that is but a part of it.
    origin: isize,
    bias: Option<&'a [f32]>,
}

impl<'a> Target<'a> {
    /// Columns from `first_column` on, of rows of `stride` elements; `bias` is that of all columns.
    pub(super) fn new(y: &'a Output<f32>, stride: usize, first_column: usize, bias: Option<&'a [f32]>) -> Self {
        Self { y, stride, origin: first_column as isize, bias: bias.map(|bias| &bias[first_column..]) }
    }

    /// A part of the rows and columns, which begins at `row` and `column`, in rows of `stride` elements.
    pub(super) fn of_part(y: &'a Output<f32>, stride: usize, row: usize, column: usize) -> Self {
        Self { y, stride, origin: -((row * stride + column) as isize), bias: None }
    }

    /// The same, where `bias` is that of all columns, and each row begins with `before` columns of another part.
    pub(super) fn behind(self, before: usize, bias: Option<&'a [f32]>) -> Self {
        Self { origin: self.origin + before as isize, bias, ..self }
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    #[inline(always)]
    fn place(&self, row: usize, column: usize) -> usize {
        (row * self.stride + column).wrapping_add_signed(self.origin)
    }

    /// # Safety
    /// As [`Output::at`].
    #[inline(always)]
    pub(super) unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: passed on.
        unsafe { self.y.at(self.place(row, column)) }
    }

    /// Asks for the lines that a tile will write at its end: one that is yet to be fetched then holds up whatever is written
    /// behind it.
    #[inline(always)]
    pub(super) fn ask<L: Lanes, const ROWS: usize, const PANELS: usize>(&self, row: usize, column: usize) {
        for row in row..row + ROWS {
            for panel in 0..PANELS {
                L::prefetch_to_second_level(self.y.address(self.place(row, column + panel * PANEL)));
            }
        }
    }

    /// # Safety
    /// As [`Output::part`].
    #[expect(clippy::mut_from_ref, reason = "a tile's own columns")]
    #[inline(always)]
    pub(super) unsafe fn columns(&self, row: usize, column: usize, num_columns: usize) -> &mut [f32] {
        // SAFETY: passed on.
        unsafe { self.y.part(self.place(row, column), num_columns) }
    }

    /// # Safety
    /// As [`Output::part`].
    #[inline(always)]
    pub(super) unsafe fn add_bias(&self, row: usize, column: usize, num_columns: usize) {
        let Some(bias) = self.bias else { return };
        // SAFETY: passed on.
        let y = unsafe { self.columns(row, column, num_columns) };
        for (y, bias) in y.iter_mut().zip(&bias[column..]) {
            *y += bias;
        }
    }
}
