#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Activations as products of bf16 by bf16 take them: rounded to nearest even.

use half::bf16;

use super::bf16_pairs::{Bf16Pair, PairRows};
use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::row_stride::row_stride;
use super::view::Rows;
use super::workspace::Buffer;
use crate::ops::Compute;

/// Rows of an even number of elements, [`row_stride`] apart.
pub(super) struct Bf16Rows {
    pairs: Buffer<Bf16Pair>,
    num_rows: usize,
    /// In pairs.
    stride: usize,
}

impl Bf16Rows {
    /// The width of `x` is even.
    pub(super) fn new(compute: &Compute, x: &Rows<'_>) -> Self {
        let stride = row_stride::<Bf16Pair>(x.width / 2);
        let mut pairs = compute.workspace().unwritten(x.num_rows * stride);
        let (rows_per_task, num_tasks) = split_rows(x.num_rows, x.width);
        launch(compute, num_tasks, &Round { x, rows_per_task, stride, pairs: pairs.output() });
        // SAFETY: each row belongs to a task, which has written all of it, and what is behind it.
        let pairs = unsafe { pairs.written() };
        Self { pairs, num_rows: x.num_rows, stride }
    }

    pub(super) fn pairs(&self) -> PairRows<'_> {
        PairRows { pairs: &self.pairs, num_rows: self.num_rows, stride: self.stride }
    }
}

struct Round<'a> {
    x: &'a Rows<'a>,
    rows_per_task: usize,
    stride: usize,
    pairs: Output<Bf16Pair>,
}

impl Kernel for Round<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.x.num_rows) {
            // SAFETY: each row belongs to one task.
            let pairs = unsafe { self.pairs.part(row * self.stride, self.stride) };
            let (pairs, behind) = pairs.split_at_mut(self.x.width / 2);
            behind.fill(Bf16Pair([bf16::ZERO; 2]));
            for (to, from) in pairs.iter_mut().zip(self.x.row(row).as_chunks::<2>().0) {
                *to = Bf16Pair([rounded(from[0]), rounded(from[1])]);
            }
        }
    }
}

/// As [`bf16::from_f32`], without a branch.
#[inline(always)]
pub(super) fn rounded(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // What is not a number stays so, and quiet.
    let bits = if value.is_nan() { bits | 0x0040_0000 } else { nearest };
    bf16::from_bits((bits >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_type() {
        let steps = (0..u32::MAX).step_by(4093);
        let edges =
            [0x3f80_7fff, 0x3f80_8000, 0x3f80_8001, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0001, 0x8000_0000];
        for bits in steps.chain(edges) {
            let value = f32::from_bits(bits);
            assert_eq!(rounded(value).to_bits(), bf16::from_f32(value).to_bits(), "{bits:#x}");
        }
    }
}
