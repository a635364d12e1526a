//! The gate of a gated feed-forward network (Shazeer, 2020): `activation(gate) * up`.

use candle_core::{D, Tensor};

use super::{Compute, KernelSet, Matrix, MatrixView, Op, Operand, cpu};
use crate::ModelError;

/// The activation of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + exp(-x))`: SwiGLU.
    Silu,
    /// [`super::Activation::GeluErf`]: GeGLU.
    GeluErf,
    /// [`super::Activation::GeluTanh`].
    GeluTanh,
}

/// `gate_up [m, 2 * width] f32`, the gate in the first half of each row: `[m, width] f32`.
pub fn gate_mul<M: Operand>(compute: &Compute, gate_up: &M, gate: Gate) -> Result<M, ModelError> {
    M::of(gated(compute, gate_up.view(), gate)?)
}

fn gated(compute: &Compute, gate_up: MatrixView<'_>, gate: Gate) -> Result<Matrix, ModelError> {
    let _timer = compute.time(Op::GateMul);
    let (_, both) = gate_up.dims2()?;
    if both % 2 != 0 {
        return Err(ModelError::Input(format!("a gate and an up projection in rows of {both}")));
    }
    match compute.kernels() {
        KernelSet::Reference => Ok(reference(gate_up.tensor()?, both / 2, gate)?.into()),
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => Ok(super::cuda::elementwise::gate_mul(compute, gate_up.tensor()?, gate)?.into()),
        _ => cpu::gate_mul::gate_mul(compute, gate_up, gate),
    }
}

fn reference(gate_up: &Tensor, width: usize, kind: Gate) -> Result<Tensor, ModelError> {
    let gate = gate_up.narrow(D::Minus1, 0, width)?.contiguous()?;
    let up = gate_up.narrow(D::Minus1, width, width)?;
    let activated = match kind {
        Gate::Silu => gate.silu()?,
        Gate::GeluErf => gate.gelu_erf()?,
        Gate::GeluTanh => gate.gelu()?,
    };
    Ok((activated * up)?)
}
