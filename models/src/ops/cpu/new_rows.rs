#![expect(unsafe_code, reason = "threads fill disjoint parts of one output")]

//! Rows that an op makes, in the form in which the next one takes them.

use std::ops::Range;

use half::bf16;

use super::bf16_rows::rounded;
use super::lanes::Lanes;
use super::launch::Output;
use super::row_stride::{CACHE_LINE, row_stride};
use super::vector::{LANES, Vector};
use super::workspace::Unwritten;
use crate::ops::{Compute, Float, Matrix};

/// Numbers that are made before they are written: they stay in the first-level cache.
pub(super) const STRETCH: usize = 64;

const CHUNK: usize = 2 * LANES;

/// `[num_rows, width]`
pub(super) struct NewRows {
    held: Held,
    num_rows: usize,
    width: usize,
}

enum Held {
    F32(Unwritten<f32>),
    /// Rounded to nearest even, [`row_stride`] apart.
    Bf16(Unwritten<bf16>),
}

/// The same as the tasks of a launch write them.
pub(super) struct RowOutput {
    to: To,
    width: usize,
}

enum To {
    F32(Output<f32>),
    Bf16(Output<bf16>),
}

impl NewRows {
    pub(super) fn new(compute: &Compute, form: Float, num_rows: usize, width: usize) -> Self {
        let len = |stride| num_rows.checked_mul(stride).expect("fewer numbers than there are addresses");
        let workspace = compute.workspace();
        let held = match form {
            Float::F32 => Held::F32(workspace.unwritten(len(width))),
            Float::Bf16 => Held::Bf16(workspace.unwritten(len(row_stride::<bf16>(width)))),
        };
        Self { held, num_rows, width }
    }

    /// `self` must outlive the launch.
    pub(super) fn output(&mut self) -> RowOutput {
        let to = match &mut self.held {
            Held::F32(rows) => To::F32(rows.output()),
            Held::Bf16(rows) => To::Bf16(rows.output()),
        };
        RowOutput { to, width: self.width }
    }

    /// # Safety
    /// Every element of every row has been written.
    pub(super) unsafe fn written(self) -> Matrix {
        let Self { num_rows, width, .. } = self;
        // SAFETY: passed on; what is behind a row was written with its last element.
        unsafe {
            match self.held {
                Held::F32(rows) => Matrix::host(rows.written(), num_rows, width),
                Held::Bf16(rows) => Matrix::rounded(rows.written(), num_rows, width),
            }
        }
    }
}

impl RowOutput {
    /// Asks memory for what will be written: a store that misses the caches waits as long as a load, and keeps those behind it
    /// waiting.
    #[inline(always)]
    pub(super) fn ask<L: Lanes>(&self, row: usize, columns: Range<usize>) {
        match &self.to {
            To::F32(to) => ask::<L, _>(to, row * self.width, columns),
            To::Bf16(to) => ask::<L, _>(to, row * row_stride::<bf16>(self.width), columns),
        }
    }

    /// # Safety
    /// As [`Output::part`]; the CPU must have `V`'s instructions.
    #[inline(always)]
    pub(super) unsafe fn write<V: Vector>(&self, row: usize, column: usize, values: &[f32]) {
        let len = values.len();
        let (chunks, rest) = values.as_chunks::<CHUNK>();
        // SAFETY: passed on; a chunk is two vectors.
        unsafe {
            match &self.to {
                To::F32(to) => {
                    let (to, to_rest) = to.part(row * self.width + column, len).as_chunks_mut::<CHUNK>();
                    to.iter_mut().zip(chunks).for_each(|(to, chunk)| *to = *chunk);
                    to_rest.iter_mut().zip(rest).for_each(|(to, value)| *to = *value);
                }
                To::Bf16(to) => {
                    let stride = row_stride::<bf16>(self.width);
                    // Whoever has the last columns has what is behind them.
                    let end = if column + len == self.width { stride } else { column + len };
                    let (to, behind) = to.part(row * stride + column, end - column).split_at_mut(len);
                    behind.fill(bf16::ZERO);
                    let (to, to_rest) = to.as_chunks_mut::<CHUNK>();
                    for (to, chunk) in to.iter_mut().zip(chunks) {
                        let [low, high] = [V::load(chunk.as_ptr()), V::load(chunk.as_ptr().add(LANES))];
                        V::store_rounded(low, high, to.as_mut_ptr());
                    }
                    to_rest.iter_mut().zip(rest).for_each(|(to, value)| *to = rounded(*value));
                }
            }
        }
    }
}

/// Whatever is at some columns of a row.
#[inline(always)]
fn ask<L: Lanes, T>(output: &Output<T>, row_start: usize, columns: Range<usize>) {
    for column in columns.step_by(CACHE_LINE / size_of::<T>()) {
        L::prefetch_to_second_level(output.address(row_start + column));
    }
}

#[cfg(test)]
mod tests;
