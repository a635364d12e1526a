use super::linear::Linear;
use super::names::LayerNames;
use crate::ModelError;
use crate::config::{Activation, FfnSpec, GateActivation};
use crate::ops::{self, Compute, Float, Gate, Matrix, Xielu};
use crate::weights::{MatrixPart, WeightLoader};

/// The feed-forward network of a layer.
#[derive(Debug)]
pub(super) enum Mlp {
    /// `down(activation(gate(x)) * up(x))`, Shazeer 2020, arXiv:2002.05202; gate and up in one product.
    Gated { gate_up: Linear, gate: Gate, down: Linear },
    /// `down(activation(up(x)))`
    Plain { up: Linear, activation: ops::Activation, down: Linear },
}

impl Mlp {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &LayerNames<'_>,
        hidden_size: usize,
        spec: &FfnSpec,
    ) -> Result<Self, ModelError> {
        let part = |name: &str, rows: usize| MatrixPart::whole(names.path(name), rows);
        match *spec {
            FfnSpec::Gated { intermediate_size, activation, bias } => {
                let gate_up = match names.names.gate_up {
                    Some(both) => vec![part(both, 2 * intermediate_size)],
                    None => vec![part(names.names.gate, intermediate_size), part(names.names.up, intermediate_size)],
                };
                let gate_up = Linear::load(loader, hidden_size, &gate_up, bias)?;
                let gate = match activation {
                    GateActivation::Silu => Gate::Silu,
                    GateActivation::GeluErf => Gate::GeluErf,
                    GateActivation::GeluTanh => Gate::GeluTanh,
                };
                let down = Linear::load(loader, intermediate_size, &[part(names.names.down, hidden_size)], bias)?;
                Ok(Self::Gated { gate_up, gate, down })
            }
            FfnSpec::Plain { intermediate_size, activation, bias } => {
                let up = Linear::load(loader, hidden_size, &[part(names.names.up, intermediate_size)], bias)?;
                let activation = load_activation(loader, names, activation)?;
                let down = Linear::load(loader, intermediate_size, &[part(names.names.down, hidden_size)], bias)?;
                Ok(Self::Plain { up, activation, down })
            }
        }
    }

    /// `[m, hidden]` to `[m, hidden]`
    pub(super) fn forward(&self, compute: &Compute, x: &Matrix) -> Result<Matrix, ModelError> {
        match self {
            Self::Gated { gate_up, gate, down } => {
                let gated = gate_up.forward_gated(compute, x, *gate, down)?;
                down.forward(compute, &gated)
            }
            Self::Plain { up, activation, down } => {
                let up = up.forward(compute, x)?;
                let activated = ops::activate(compute, &up, *activation)?;
                drop(up);
                down.forward(compute, &activated)
            }
        }
    }

    /// What it takes its rows as without rounding them first.
    pub(super) fn takes(&self) -> Float {
        match self {
            Self::Gated { gate_up: up, .. } | Self::Plain { up, .. } => up.takes(),
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Gated { gate_up: up, down, .. } | Self::Plain { up, down, .. } => up.size_bytes() + down.size_bytes(),
        }
    }
}

fn load_activation(
    loader: &mut WeightLoader<'_>,
    names: &LayerNames<'_>,
    activation: Activation,
) -> Result<ops::Activation, ModelError> {
    if let Some(plain) = unlearned(activation) {
        return Ok(plain);
    }
    let path = |name: &str| names.path(&format!("{}.{name}", names.names.activation));
    // Constants that some exporters store and some do not; these are the published values.
    let (default_beta, default_eps) = (0.5, -1e-6);
    let beta = loader.optional_scalar(&path("beta"))?.unwrap_or(default_beta);
    Ok(ops::Activation::Xielu(Xielu {
        alpha_positive: softplus(loader.scalar(&path("alpha_p"))?),
        alpha_negative: beta + softplus(loader.scalar(&path("alpha_n"))?),
        beta,
        eps: loader.optional_scalar(&path("eps"))?.unwrap_or(default_eps),
    }))
}

/// The activation as the ops know it, unless it has learned scalars.
pub(super) fn unlearned(activation: Activation) -> Option<ops::Activation> {
    match activation {
        Activation::Relu2 => Some(ops::Activation::Relu2),
        Activation::GeluTanh => Some(ops::Activation::GeluTanh),
        Activation::GeluErf => Some(ops::Activation::GeluErf),
        Activation::Relu => Some(ops::Activation::Relu),
        Activation::Silu => Some(ops::Activation::Silu),
        Activation::Tanh => Some(ops::Activation::Tanh),
        Activation::Xielu => None,
    }
}

/// `ln(1 + exp(x))`, without overflow.
fn softplus(x: f32) -> f32 {
    let x = f64::from(x);
    (x.max(0.0) + (-x.abs()).exp().ln_1p()) as f32
}
