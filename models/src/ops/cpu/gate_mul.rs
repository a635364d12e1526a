#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! The gate of a gated feed-forward network.

use candle_core::Tensor;

use super::activation::{gelu_erf, gelu_tanh, silu};
use super::launch::{Kernel, Output, launch, split_rows};
use super::vector::{LANES, Vector};
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, Gate};

pub(crate) fn gate_mul(compute: &Compute, gate_up: &Tensor, gate: Gate) -> Result<Tensor, ModelError> {
    let gate_up = Rows::new(gate_up)?;
    let (num_rows, width) = (gate_up.num_rows, gate_up.width / 2);
    let mut out = vec![0.0; num_rows * width];
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    let output = Output::new(&mut out);
    launch(compute, num_tasks, &GateMul { gate_up, gate, out: output, rows_per_task });
    Ok(Tensor::from_vec(out, (num_rows, width), compute.device())?)
}

struct GateMul<'a> {
    gate_up: Rows<'a>,
    gate: Gate,
    out: Output<f32>,
    rows_per_task: usize,
}

impl Kernel for GateMul<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, task: usize) {
        let width = self.gate_up.width / 2;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.gate_up.num_rows) {
            let halves = self.gate_up.row(row).split_at(width);
            // SAFETY: a row of this task; the launch vouches for the instructions.
            unsafe {
                let out = self.out.part(row * width, width);
                match self.gate {
                    Gate::Silu => each::<V>(halves, out, |gate| silu(gate)),
                    Gate::GeluErf => each::<V>(halves, out, |gate| gelu_erf(gate)),
                    Gate::GeluTanh => each::<V>(halves, out, |gate| gelu_tanh(gate)),
                }
            }
        }
    }
}

/// # Safety
/// Three slices of the same length; the CPU must have `V`'s instructions.
#[inline(always)]
unsafe fn each<V: Vector>((gate, up): (&[f32], &[f32]), out: &mut [f32], activation: impl Fn(V) -> V) {
    let whole = out.len() - out.len() % LANES;
    let (mut last_gate, mut last_up) = ([0.0; LANES], [0.0; LANES]);
    last_gate[..gate.len() - whole].copy_from_slice(&gate[whole..]);
    last_up[..up.len() - whole].copy_from_slice(&up[whole..]);
    // SAFETY: slices of eight elements; the caller has the instructions.
    unsafe {
        let gated = |gate: &[f32], up: &[f32]| activation(V::load(gate.as_ptr())).mul(V::load(up.as_ptr()));
        for i in (0..whole).step_by(LANES) {
            gated(&gate[i..i + LANES], &up[i..i + LANES]).store(out[i..i + LANES].as_mut_ptr());
        }
        let last = gated(&last_gate, &last_up).to_array();
        let rest = out.len() - whole;
        out[whole..].copy_from_slice(&last[..rest]);
    }
}
