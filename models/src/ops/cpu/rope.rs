#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Rotary position embedding. Plain arithmetic, which the compiler turns into vector code where it is enabled.

use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, Matrix, MatrixView, RotaryAngles};

/// The heads of each row are turned and stay where they are.
pub(crate) fn rope(
    compute: &Compute,
    x: MatrixView<'_>,
    head_dim: usize,
    angles: &RotaryAngles,
) -> Result<Matrix, ModelError> {
    let (x, angles) = (Rows::of(x)?, Angles::new(angles)?);
    let (num_rows, width) = (x.num_rows, x.width);
    let mut turned = compute.workspace().unwritten(num_rows * width);
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    launch(compute, num_tasks, &Rope { x, angles, head_dim, turned: turned.output(), rows_per_task });
    // SAFETY: each row belongs to a task, which has written all of it.
    Ok(Matrix::host(unsafe { turned.written() }, num_rows, width))
}

/// The angles' memory, borrowed for one launch.
pub(super) struct Angles<'a> {
    cos: Rows<'a>,
    sin: Rows<'a>,
}

impl<'a> Angles<'a> {
    pub(super) fn new(angles: &'a RotaryAngles) -> Result<Self, ModelError> {
        Ok(Self { cos: Rows::new(&angles.cos)?, sin: Rows::new(&angles.sin)? })
    }

    /// Turns each head of row `row` in its place.
    #[inline(always)]
    pub(super) fn turn(&self, row: usize, heads: &mut [f32], head_dim: usize) {
        let (cos, sin) = (self.cos.row(row), self.sin.row(row));
        for head in heads.chunks_exact_mut(head_dim) {
            let (first, rest) = head.split_at_mut(cos.len());
            let pairs = first.iter_mut().zip(rest);
            for ((first, second), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                (*first, *second) = (*first * cos - *second * sin, *second * cos + *first * sin);
            }
        }
    }
}

struct Rope<'a> {
    x: Rows<'a>,
    angles: Angles<'a>,
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
            turned.copy_from_slice(self.x.row(row));
            self.angles.turn(row, turned, self.head_dim);
        }
    }
}
