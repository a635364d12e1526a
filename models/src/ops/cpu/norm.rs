#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! Root-mean-square normalisation, with or without the residual sum before it.

use candle_core::Tensor;

use super::launch::{Kernel, Output, launch, split_rows};
use super::vector::{LANES, Vector};
use super::view::Rows;
use crate::ModelError;
use crate::ops::Compute;

pub(crate) fn rms_norm(compute: &Compute, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor, ModelError> {
    let shape = x.shape();
    let (x, weight) = (Rows::new(x)?, Rows::vector(weight)?);
    let mut normed = vec![0.0; x.num_rows * x.width];
    let (rows_per_task, num_tasks) = split_rows(x.num_rows, x.width);
    let output = Output::new(&mut normed);
    launch(
        compute,
        num_tasks,
        &Norm { x: &x, add: None, weight: weight.as_slice(), eps, normed: output, rows_per_task },
    );
    Ok(Tensor::from_vec(normed, shape, compute.device())?)
}

pub(crate) fn add_rms_norm(
    compute: &Compute,
    residual: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor), ModelError> {
    let shape = x.shape();
    let (residual, x, weight) = (Rows::new(residual)?, Rows::new(x)?, Rows::vector(weight)?);
    let mut sum = vec![0.0; x.num_rows * x.width];
    let mut normed = vec![0.0; sum.len()];
    let (rows_per_task, num_tasks) = split_rows(x.num_rows, x.width);
    let (add, output) = (Some((&residual, Output::new(&mut sum))), Output::new(&mut normed));
    launch(compute, num_tasks, &Norm { x: &x, add, weight: weight.as_slice(), eps, normed: output, rows_per_task });
    Ok((Tensor::from_vec(sum, shape, compute.device())?, Tensor::from_vec(normed, shape, compute.device())?))
}

struct Norm<'a> {
    x: &'a Rows<'a>,
    /// What is added to `x` before the norm, and where the sum goes.
    add: Option<(&'a Rows<'a>, Output<f32>)>,
    weight: &'a [f32],
    eps: f32,
    normed: Output<f32>,
    rows_per_task: usize,
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, task: usize) {
        let width = self.x.width;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.x.num_rows) {
            // SAFETY: rows of this task, whose outputs no other task takes.
            unsafe {
                let normed = self.normed.part(row * width, width);
                let x = self.x.row(row);
                match &self.add {
                    None => normalise::<V>(x, self.weight, self.eps, normed),
                    Some((residual, sums)) => {
                        let sum = sums.part(row * width, width);
                        for (sum, (residual, x)) in sum.iter_mut().zip(residual.row(row).iter().zip(x)) {
                            *sum = residual + x;
                        }
                        normalise::<V>(sum, self.weight, self.eps, normed);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn normalise<V: Vector>(x: &[f32], weight: &[f32], eps: f32, normed: &mut [f32]) {
    let (chunks, tail) = x.as_chunks::<LANES>();
    // SAFETY: chunks hold eight elements; the launch vouches for the instructions.
    let sum = unsafe {
        let mut sums = V::splat(0.0);
        for chunk in chunks {
            let x = V::load(chunk.as_ptr());
            sums = x.mul_add(x, sums);
        }
        // Padding with zeros changes no running sum: they start at +0 and squares are not negative.
        let mut last = [0.0; LANES];
        last[..tail.len()].copy_from_slice(tail);
        let x = V::load(last.as_ptr());
        x.mul_add(x, sums).sum_of_lanes()
    };
    let factor = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for (normed, (x, weight)) in normed.iter_mut().zip(x.iter().zip(weight)) {
        *normed = x * factor * weight;
    }
}
