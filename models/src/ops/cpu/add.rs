#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, Matrix, MatrixView};

/// Shapes are checked by the caller.
pub(crate) fn add(compute: &Compute, a: MatrixView<'_>, b: MatrixView<'_>) -> Result<Matrix, ModelError> {
    let (a, b) = (Rows::of(a)?, Rows::of(b)?);
    let (num_rows, width) = (a.num_rows, a.width);
    let mut sum = compute.workspace().unwritten(num_rows * width);
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    launch(compute, num_tasks, &Add { a, b, sum: sum.output(), rows_per_task });
    // SAFETY: each row belongs to a task, which has written all of it.
    Ok(Matrix::host(unsafe { sum.written() }, num_rows, width))
}

struct Add<'a> {
    a: Rows<'a>,
    b: Rows<'a>,
    sum: Output<f32>,
    rows_per_task: usize,
}

impl Kernel for Add<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let width = self.a.width;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.a.num_rows) {
            // SAFETY: a row of this task, which no other task takes.
            let sum = unsafe { self.sum.part(row * width, width) };
            for (sum, (a, b)) in sum.iter_mut().zip(self.a.row(row).iter().zip(self.b.row(row))) {
                *sum = a + b;
            }
        }
    }
}
