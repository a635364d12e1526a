use candle_core::Tensor;

use super::linear::Linear;
use super::names::LayerNames;
use crate::ModelError;
use crate::config::{Activation, FfnSpec};
use crate::ops::{self, Compute};
use crate::weights::WeightLoader;

/// The gated feed-forward network: `down(silu(gate(x)) * up(x))`, Shazeer 2020, arXiv:2002.05202.
#[derive(Debug)]
pub(super) struct Mlp {
    gate_up: Linear,
    down: Linear,
}

impl Mlp {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &LayerNames<'_>,
        hidden_size: usize,
        spec: &FfnSpec,
    ) -> Result<Self, ModelError> {
        let FfnSpec::Gated { intermediate_size, activation: Activation::Silu, bias } = *spec;
        let gate_up = [(names.names.gate, intermediate_size), (names.names.up, intermediate_size)];
        let down = [(names.names.down, hidden_size)];
        Ok(Self {
            gate_up: Linear::load(loader, names, hidden_size, (&gate_up, bias))?,
            down: Linear::load(loader, names, intermediate_size, (&down, bias))?,
        })
    }

    /// `[m, hidden]` to `[m, hidden]`
    pub(super) fn forward(&self, compute: &Compute, x: &Tensor) -> Result<Tensor, ModelError> {
        let gate_up = self.gate_up.forward(compute, x)?;
        self.down.forward(compute, &ops::silu_mul(compute, &gate_up)?)
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.gate_up.size_bytes() + self.down.size_bytes()
    }
}
