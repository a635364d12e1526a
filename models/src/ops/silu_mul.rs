//! The gate of a SwiGLU feed-forward (Shazeer, 2020): `silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`.

use candle_core::{D, Tensor};

use super::{Compute, KernelSet, cpu};
use crate::ModelError;

/// `gate_up [m, 2 * width] f32`, the gate in the first half of each row: `[m, width] f32`.
pub fn silu_mul(compute: &Compute, gate_up: &Tensor) -> Result<Tensor, ModelError> {
    let (_, both) = gate_up.dims2()?;
    if both % 2 != 0 {
        return Err(ModelError::Input(format!("a gate and an up projection in rows of {both}")));
    }
    match compute.kernels() {
        KernelSet::Reference => reference(gate_up, both / 2),
        _ => cpu::silu_mul::silu_mul(compute, gate_up),
    }
}

fn reference(gate_up: &Tensor, width: usize) -> Result<Tensor, ModelError> {
    let gate = gate_up.narrow(D::Minus1, 0, width)?.contiguous()?;
    let up = gate_up.narrow(D::Minus1, width, width)?;
    Ok((gate.silu()? * up)?)
}
