#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! Root-mean-square and layer normalisation, with or without the residual sum before it.

use candle_core::Tensor;

use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::new_rows::{NewRows, RowOutput, STRETCH};
use super::vector::{LANES, Vector};
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, Float, Matrix, MatrixView};

/// A norm's parameters, `[width] f32` each. With a bias the norm is a layer norm, without it a root-mean-square norm.
#[derive(Clone, Copy)]
pub(crate) struct NormWeights<'a> {
    pub(crate) weight: &'a Tensor,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) eps: f32,
}

/// Shapes are checked by the caller: rows of `x` are whole groups of `width` elements, each normalised alone.
pub(crate) fn norm(
    compute: &Compute,
    x: MatrixView<'_>,
    weights: &NormWeights<'_>,
    form: Float,
) -> Result<Matrix, ModelError> {
    let (x, views) = (Rows::of(x)?, Views::new(weights)?);
    let mut normed = NewRows::new(compute, form, x.num_rows, x.width);
    let (rows_per_task, num_tasks) = split_rows(x.num_rows, x.width);
    let norm = Norm { x: &x, add: None, params: views.params(), normed: normed.output(), rows_per_task };
    launch(compute, num_tasks, &norm);
    // SAFETY: each row belongs to a task, which has written all of it.
    Ok(unsafe { normed.written() })
}

/// The sum, and its norm in the wanted form.
pub(crate) fn add_norm(
    compute: &Compute,
    residual: MatrixView<'_>,
    x: MatrixView<'_>,
    weights: &NormWeights<'_>,
    form: Float,
) -> Result<(Matrix, Matrix), ModelError> {
    let (residual, x, views) = (Rows::of(residual)?, Rows::of(x)?, Views::new(weights)?);
    let mut sum = compute.workspace().unwritten(x.num_rows * x.width);
    let mut normed = NewRows::new(compute, form, x.num_rows, x.width);
    let (rows_per_task, num_tasks) = split_rows(x.num_rows, x.width);
    let (add, output) = (Some((&residual, sum.output())), normed.output());
    launch(compute, num_tasks, &Norm { x: &x, add, params: views.params(), normed: output, rows_per_task });
    // SAFETY: each row belongs to a task, which has written all of it.
    let (sum, normed) = unsafe { (sum.written(), normed.written()) };
    Ok((Matrix::host(sum, x.num_rows, x.width), normed))
}

/// The parameters' memory, borrowed for one launch.
pub(super) struct Views<'a> {
    weight: Rows<'a>,
    bias: Option<Rows<'a>>,
    eps: f32,
}

impl<'a> Views<'a> {
    pub(super) fn new(weights: &NormWeights<'a>) -> Result<Self, ModelError> {
        let bias = weights.bias.map(Rows::vector).transpose()?;
        Ok(Self { weight: Rows::vector(weights.weight)?, bias, eps: weights.eps })
    }

    pub(super) fn params(&self) -> Params<'_> {
        Params { weight: self.weight.as_slice(), bias: self.bias.as_ref().map(Rows::as_slice), eps: self.eps }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Params<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

struct Norm<'a> {
    x: &'a Rows<'a>,
    /// What is added to `x` before the norm, and where the sum goes.
    add: Option<(&'a Rows<'a>, Output<f32>)>,
    params: Params<'a>,
    normed: RowOutput,
    rows_per_task: usize,
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let width = self.x.width;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.x.num_rows) {
            // SAFETY: rows of this task, whose outputs no other task takes.
            unsafe {
                let x = self.x.row(row);
                let x = match &self.add {
                    None => x,
                    Some((residual, sums)) => {
                        let sum = sums.part(row * width, width);
                        for (sum, (residual, x)) in sum.iter_mut().zip(residual.row(row).iter().zip(x)) {
                            *sum = residual + x;
                        }
                        &*sum
                    }
                };
                let group = self.params.weight.len();
                for (index, x) in x.chunks_exact(group).enumerate() {
                    self.group::<I::Vector>(row, index * group, x);
                }
            }
        }
    }
}

impl Norm<'_> {
    /// # Safety
    /// A row of the task that runs; the CPU must have `V`'s instructions.
    #[inline(always)]
    unsafe fn group<V: Vector>(&self, row: usize, column: usize, x: &[f32]) {
        // SAFETY: passed on.
        let moments = unsafe { Moments::of::<V>(x, self.params) };
        let mut numbers = [0.0; STRETCH];
        for (index, x) in x.chunks(STRETCH).enumerate() {
            let (first, numbers) = (index * STRETCH, &mut numbers[..x.len()]);
            moments.scale(x, &self.params.weight[first..], numbers);
            if let Some(bias) = self.params.bias {
                add(numbers, &bias[first..]);
            }
            // SAFETY: passed on.
            unsafe { self.normed.write::<V>(row, column + first, numbers) };
        }
    }
}

/// Each group of as many elements as there are weights, in its place.
///
/// # Safety
/// The CPU must have `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn normalise_groups<V: Vector>(x: &mut [f32], params: Params<'_>) {
    for x in x.chunks_exact_mut(params.weight.len()) {
        // SAFETY: passed on.
        let moments = unsafe { Moments::of::<V>(x, params) };
        for (x, weight) in x.iter_mut().zip(params.weight) {
            *x = moments.scaled(*x, *weight);
        }
        if let Some(bias) = params.bias {
            add(x, bias);
        }
    }
}

/// What the elements of a group have in common once they are normed.
#[derive(Clone, Copy)]
struct Moments {
    /// What is subtracted: nothing, but in a layer norm.
    centre: f32,
    factor: f32,
}

impl Moments {
    /// # Safety
    /// The CPU must have `V`'s instructions.
    #[inline(always)]
    unsafe fn of<V: Vector>(x: &[f32], params: Params<'_>) -> Self {
        // SAFETY: passed on.
        unsafe {
            let centre = if params.bias.is_some() { sum::<V>(x) / x.len() as f32 } else { 0.0 };
            let square = sum_of_squares::<V>(x, centre) / x.len() as f32;
            Self { centre, factor: 1.0 / (square + params.eps).sqrt() }
        }
    }

    #[inline(always)]
    fn scale(self, x: &[f32], weights: &[f32], to: &mut [f32]) {
        for (to, (x, weight)) in to.iter_mut().zip(x.iter().zip(weights)) {
            *to = self.scaled(*x, *weight);
        }
    }

    #[inline(always)]
    fn scaled(self, x: f32, weight: f32) -> f32 {
        (x - self.centre) * self.factor * weight
    }
}

#[inline(always)]
fn add(x: &mut [f32], bias: &[f32]) {
    x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
}

#[inline(always)]
unsafe fn sum<V: Vector>(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    // SAFETY: chunks hold eight elements; the launch vouches for the instructions.
    unsafe {
        let mut sums = V::splat(0.0);
        for chunk in chunks {
            sums = sums.add(V::load(chunk.as_ptr()));
        }
        sums.add(V::load(padded(tail, 0.0).as_ptr())).sum_of_lanes()
    }
}

/// Of the distances from `centre`.
#[inline(always)]
unsafe fn sum_of_squares<V: Vector>(x: &[f32], centre: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    // SAFETY: chunks hold eight elements; the launch vouches for the instructions.
    unsafe {
        let (mut sums, centred) = (V::splat(0.0), V::splat(centre));
        for chunk in chunks {
            let x = V::load(chunk.as_ptr()).sub(centred);
            sums = x.mul_add(x, sums);
        }
        // The padding's distance is zero, which changes no running sum: they start at +0 and squares are not negative.
        let x = V::load(padded(tail, centre).as_ptr()).sub(centred);
        x.mul_add(x, sums).sum_of_lanes()
    }
}

#[inline(always)]
fn padded(tail: &[f32], with: f32) -> [f32; LANES] {
    let mut lanes = [with; LANES];
    lanes[..tail.len()].copy_from_slice(tail);
    lanes
}
