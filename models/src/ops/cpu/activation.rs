#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! The activations of feed-forward networks without a gate.

use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::vector::{LANES, Vector};
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Activation, Compute, Matrix, MatrixView, Xielu};

pub(crate) fn activate(compute: &Compute, x: MatrixView<'_>, activation: Activation) -> Result<Matrix, ModelError> {
    let x = Rows::of(x)?;
    let (num_rows, width) = (x.num_rows, x.width);
    let mut out = compute.workspace().unwritten(num_rows * width);
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    launch(compute, num_tasks, &Activate { x, activation, out: out.output(), rows_per_task });
    // SAFETY: each row belongs to a task, which has written all of it.
    let out = unsafe { out.written() };
    Ok(Matrix::host(out, num_rows, width))
}

struct Activate<'a> {
    x: Rows<'a>,
    activation: Activation,
    out: Output<f32>,
    rows_per_task: usize,
}

impl Kernel for Activate<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.x.num_rows) {
            // SAFETY: a row of this task; the launch vouches for the instructions.
            unsafe {
                let out = self.out.part(row * self.x.width, self.x.width);
                match self.activation {
                    Activation::Relu2 => each::<I::Vector, _>(self.x.row(row), out, Relu2),
                    Activation::GeluTanh => each::<I::Vector, _>(self.x.row(row), out, GeluTanh),
                    Activation::GeluErf => each::<I::Vector, _>(self.x.row(row), out, GeluErf),
                    Activation::Relu => each::<I::Vector, _>(self.x.row(row), out, Relu),
                    Activation::Silu => each::<I::Vector, _>(self.x.row(row), out, Silu),
                    Activation::Tanh => each::<I::Vector, _>(self.x.row(row), out, Tanh),
                    Activation::Xielu(params) => each::<I::Vector, _>(self.x.row(row), out, params),
                }
            }
        }
    }
}

/// A function of each element. No closure: the compiler may leave a closure a function of its own, which does not have the
/// instructions that its caller enables and calls each of them.
pub(super) trait Curve: Copy {
    /// # Safety
    /// The CPU must have `V`'s instructions.
    unsafe fn at<V: Vector>(self, x: V) -> V;
}

#[inline(always)]
unsafe fn each<V: Vector, C: Curve>(x: &[f32], out: &mut [f32], curve: C) {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (out_chunks, out_tail) = out.as_chunks_mut::<LANES>();
    let mut last = [0.0; LANES];
    last[..tail.len()].copy_from_slice(tail);
    // SAFETY: eight elements each; the launch vouches for the instructions.
    unsafe {
        for (x, out) in chunks.iter().zip(out_chunks) {
            curve.at(V::load(x.as_ptr())).store(out.as_mut_ptr());
        }
        out_tail.copy_from_slice(&curve.at(V::load(last.as_ptr())).to_array()[..tail.len()]);
    }
}

#[derive(Clone, Copy)]
struct Relu;
#[derive(Clone, Copy)]
struct Relu2;
#[derive(Clone, Copy)]
struct Tanh;
#[derive(Clone, Copy)]
pub(super) struct Silu;
#[derive(Clone, Copy)]
pub(super) struct GeluTanh;
#[derive(Clone, Copy)]
pub(super) struct GeluErf;

impl Curve for Relu {
    #[inline(always)]
    unsafe fn at<V: Vector>(self, x: V) -> V {
        // SAFETY: passed on, here and below.
        unsafe { V::splat(0.0).max(x) }
    }
}

impl Curve for Relu2 {
    #[inline(always)]
    unsafe fn at<V: Vector>(self, x: V) -> V {
        // SAFETY: as above.
        unsafe {
            let x = Relu.at(x);
            x.mul(x)
        }
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    unsafe fn at<V: Vector>(self, x: V) -> V {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        // SAFETY: as above.
        unsafe {
            let curve = V::splat(0.044_715).mul_add(x.mul(x), V::splat(1.0));
            let argument = x.mul(V::splat(-2.0 * SQRT_2_OVER_PI)).mul(curve);
            x.div(V::splat(1.0).add(argument.exp()))
        }
    }
}

impl Curve for GeluErf {
    /// `x * P`, where `P`, the normal distribution up to `x`, is `q` below 0 and `1 - q` above, with
    /// `q = erfc(|x| / sqrt(2)) / 2` and `erfc(z) = t * exp(-z^2 + polynomial(t))`, `t = 1 / (1 + z / 2)`.
    #[inline(always)]
    unsafe fn at<V: Vector>(self, x: V) -> V {
        const POLYNOMIAL: [f32; 10] = [
            0.170_872_77,
            -0.822_152_2,
            1.488_515_9,
            -1.135_204,
            0.278_868_07,
            -0.186_288_06,
            0.096_784_18,
            0.374_091_96,
            1.000_023_7,
            -1.265_512_2,
        ];
        // SAFETY: as above.
        unsafe {
            let z = x.max(V::splat(0.0).sub(x)).mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = V::splat(1.0).div(z.mul_add(V::splat(0.5), V::splat(1.0)));
            let mut sum = V::splat(POLYNOMIAL[0]);
            for &coefficient in &POLYNOMIAL[1..] {
                sum = sum.mul_add(t, V::splat(coefficient));
            }
            let q = V::splat(0.0).sub(z).mul_add(z, sum).exp().mul(t).mul(V::splat(0.5));
            x.mul(x.if_positive(V::splat(1.0).sub(q), q))
        }
    }
}

impl Curve for Silu {
    #[inline(always)]
    unsafe fn at<V: Vector>(self, x: V) -> V {
        // SAFETY: as above.
        unsafe { x.div(V::splat(1.0).add(V::splat(0.0).sub(x).exp())) }
    }
}

impl Curve for Tanh {
    /// `e / (e + 2)` with `e = exp(2 x) - 1`, which keeps its digits near 0.
    #[inline(always)]
    unsafe fn at<V: Vector>(self, x: V) -> V {
        // SAFETY: as above.
        unsafe {
            let e = x.add(x).exp_m1();
            e.div(e.add(V::splat(2.0)))
        }
    }
}

impl Curve for Xielu {
    #[inline(always)]
    unsafe fn at<V: Vector>(self, x: V) -> V {
        // SAFETY: as above.
        unsafe {
            let linear = x.mul(V::splat(self.beta));
            let above = x.mul(x).mul_add(V::splat(self.alpha_positive), linear);
            let excess = x.min(V::splat(self.eps)).exp_m1().sub(x);
            x.if_positive(above, excess.mul_add(V::splat(self.alpha_negative), linear))
        }
    }
}
