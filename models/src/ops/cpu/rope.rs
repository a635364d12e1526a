#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Rotary position embedding. Plain arithmetic, which the compiler turns into vector code where it is enabled.

use candle_core::Tensor;

use super::instructions::Instructions;
use super::launch::{Kernel, Output, Unwritten, launch, split_rows};
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, RotaryAngles};

pub(crate) fn rope(
    compute: &Compute,
    x: &Tensor,
    head_dim: usize,
    angles: &RotaryAngles,
) -> Result<Tensor, ModelError> {
    let (x, cos, sin) = (Rows::new(x)?, Rows::new(&angles.cos)?, Rows::new(&angles.sin)?);
    let (num_rows, width) = (x.num_rows, x.width);
    let mut turned = Unwritten::new(num_rows * width);
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    launch(compute, num_tasks, &Rope { x, cos, sin, head_dim, turned: turned.output(), rows_per_task });
    // SAFETY: each row belongs to a task, which has written all of it.
    let turned = unsafe { turned.written() };
    Ok(Tensor::from_vec(turned, (num_rows, width / head_dim, head_dim), compute.device())?)
}

struct Rope<'a> {
    x: Rows<'a>,
    cos: Rows<'a>,
    sin: Rows<'a>,
    head_dim: usize,
    turned: Output<f32>,
    rows_per_task: usize,
}

impl Kernel for Rope<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let width = self.x.width;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.x.num_rows) {
            // SAFETY: a row of this task, which no other task takes.
            let turned = unsafe { self.turned.part(row * width, width) };
            let heads = self.x.row(row).chunks_exact(self.head_dim);
            for (to, from) in turned.chunks_exact_mut(self.head_dim).zip(heads) {
                turn(from, self.cos.row(row), self.sin.row(row), to);
            }
        }
    }
}

#[inline(always)]
fn turn(from: &[f32], cos: &[f32], sin: &[f32], to: &mut [f32]) {
    let half = cos.len();
    let (first, rest) = from.split_at(half);
    let (second, unturned) = rest.split_at(half);
    let (to_first, to_rest) = to.split_at_mut(half);
    let (to_second, to_unturned) = to_rest.split_at_mut(half);
    for i in 0..half {
        to_first[i] = first[i] * cos[i] - second[i] * sin[i];
        to_second[i] = second[i] * cos[i] + first[i] * sin[i];
    }
    to_unturned.copy_from_slice(unturned);
}
