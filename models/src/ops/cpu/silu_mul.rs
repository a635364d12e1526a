#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! The gate of a SwiGLU feed-forward.

use candle_core::Tensor;

use super::launch::{Kernel, Output, launch, split_rows};
use super::vector::{LANES, Vector};
use super::view::Rows;
use crate::ModelError;
use crate::ops::Compute;

pub(crate) fn silu_mul(compute: &Compute, gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let gate_up = Rows::new(gate_up)?;
    let (num_rows, width) = (gate_up.num_rows, gate_up.width / 2);
    let mut out = vec![0.0; num_rows * width];
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    let output = Output::new(&mut out);
    launch(compute, num_tasks, &SiluMul { gate_up, out: output, rows_per_task });
    Ok(Tensor::from_vec(out, (num_rows, width), compute.device())?)
}

struct SiluMul<'a> {
    gate_up: Rows<'a>,
    out: Output<f32>,
    rows_per_task: usize,
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, task: usize) {
        let width = self.gate_up.width / 2;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.gate_up.num_rows) {
            let (gate, up) = self.gate_up.row(row).split_at(width);
            // SAFETY: a row of this task; slices of eight elements; the launch vouches for the instructions.
            unsafe {
                let out = self.out.part(row * width, width);
                let whole = width - width % LANES;
                for i in (0..whole).step_by(LANES) {
                    gated::<V>(&gate[i..i + LANES], &up[i..i + LANES]).store(out[i..i + LANES].as_mut_ptr());
                }
                let (mut last_gate, mut last_up) = ([0.0; LANES], [0.0; LANES]);
                last_gate[..width - whole].copy_from_slice(&gate[whole..]);
                last_up[..width - whole].copy_from_slice(&up[whole..]);
                let last = gated::<V>(&last_gate, &last_up).to_array();
                out[whole..].copy_from_slice(&last[..width - whole]);
            }
        }
    }
}

/// # Safety
/// Eight elements each; the CPU must have `V`'s instructions.
#[inline(always)]
unsafe fn gated<V: Vector>(gate: &[f32], up: &[f32]) -> V {
    // SAFETY: as above.
    unsafe {
        let (gate, up) = (V::load(gate.as_ptr()), V::load(up.as_ptr()));
        let denominator = V::splat(1.0).add(V::splat(0.0).sub(gate).exp());
        gate.div(denominator).mul(up)
    }
}
