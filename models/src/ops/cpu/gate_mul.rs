#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! The gate of a gated feed-forward network.

use super::activation::{Curve, GeluErf, GeluTanh, Silu};
use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::vector::{LANES, Vector};
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, Gate, Matrix, MatrixView};

pub(crate) fn gate_mul(compute: &Compute, gate_up: MatrixView<'_>, gate: Gate) -> Result<Matrix, ModelError> {
    let gate_up = Rows::of(gate_up)?;
    let (num_rows, width) = (gate_up.num_rows, gate_up.width / 2);
    let mut out = compute.workspace().unwritten(num_rows * width);
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    launch(compute, num_tasks, &GateMul { gate_up, gate, out: out.output(), rows_per_task });
    // SAFETY: each row belongs to a task, which has written all of it.
    let out = unsafe { out.written() };
    Ok(Matrix::host(out, num_rows, width))
}

struct GateMul<'a> {
    gate_up: Rows<'a>,
    gate: Gate,
    out: Output<f32>,
    rows_per_task: usize,
}

impl Kernel for GateMul<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let width = self.gate_up.width / 2;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.gate_up.num_rows) {
            let (gates, ups) = self.gate_up.row(row).split_at(width);
            // SAFETY: a row of this task; the launch vouches for the instructions.
            unsafe { gated::<I::Vector>(self.gate, gates, ups, self.out.part(row * width, width)) }
        }
    }
}

/// `activation(gate) * up` of each element.
///
/// # Safety
/// Three slices of the same length; the CPU must have `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn gated<V: Vector>(gate: Gate, gates: &[f32], ups: &[f32], out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe {
        match gate {
            Gate::Silu => each::<V, _>(gates, ups, out, Silu),
            Gate::GeluErf => each::<V, _>(gates, ups, out, GeluErf),
            Gate::GeluTanh => each::<V, _>(gates, ups, out, GeluTanh),
        }
    }
}

/// # Safety
/// As [`gated`].
#[inline(always)]
unsafe fn each<V: Vector, C: Curve>(gates: &[f32], ups: &[f32], out: &mut [f32], curve: C) {
    let ((gates, last_gate), (ups, last_up)) = (gates.as_chunks::<LANES>(), ups.as_chunks::<LANES>());
    let (outs, last_out) = out.as_chunks_mut::<LANES>();
    // SAFETY: eight elements each; the caller has the instructions.
    unsafe {
        for (out, (gate, up)) in outs.iter_mut().zip(gates.iter().zip(ups)) {
            eight::<V, C>(gate, up, curve).store(out.as_mut_ptr());
        }
        if !last_gate.is_empty() {
            let last = eight::<V, C>(&padded(last_gate), &padded(last_up), curve).to_array();
            last_out.copy_from_slice(&last[..last_gate.len()]);
        }
    }
}

#[inline(always)]
unsafe fn eight<V: Vector, C: Curve>(gate: &[f32; LANES], up: &[f32; LANES], curve: C) -> V {
    // SAFETY: passed on.
    unsafe { curve.at(V::load(gate.as_ptr())).mul(V::load(up.as_ptr())) }
}

#[inline(always)]
fn padded(tail: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..tail.len()].copy_from_slice(tail);
    lanes
}
