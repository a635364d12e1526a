//! The activations of feed-forward networks without a gate and of heads, element by element.

use candle_core::Tensor;

use super::{Compute, KernelSet, Matrix, MatrixView, Op, Operand, cpu};
use crate::ModelError;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `max(x, 0)^2`, So et al. 2021, arXiv:2109.08668.
    Relu2,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, Hendrycks and Gimpel 2016, arXiv:1606.08415. Computed as
    /// `x / (1 + exp(-2 u))` with `u` the argument of the tangent, which is the same.
    GeluTanh,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`, from the same paper. The complementary error function is within 1.2e-7 of
    /// itself (Press et al. 1992, Numerical Recipes, section 6.2).
    GeluErf,
    /// `max(x, 0)`
    Relu,
    /// `x / (1 + exp(-x))`, Elfwing et al. 2017, arXiv:1702.03118.
    Silu,
    Tanh,
    Xielu(Xielu),
}

impl Activation {
    /// One of each kind, for whoever compares bodies.
    pub const EACH: [Self; 7] = [
        Self::Relu2,
        Self::GeluTanh,
        Self::GeluErf,
        Self::Relu,
        Self::Silu,
        Self::Tanh,
        Self::Xielu(Xielu { alpha_positive: 0.8, alpha_negative: 1.3, beta: 0.5, eps: -1e-6 }),
    ];
}

/// Huang and Schlag 2024, arXiv:2411.13010:
///
/// ```text
/// x > 0    alpha_positive * x^2 + beta * x
/// else     alpha_negative * (exp(min(x, eps)) - 1 - x) + beta * x
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    pub alpha_positive: f32,
    pub alpha_negative: f32,
    pub beta: f32,
    pub eps: f32,
}

/// `x [m, width] f32` to `[m, width] f32`.
pub fn activate<M: Operand>(compute: &Compute, x: &M, activation: Activation) -> Result<M, ModelError> {
    M::of(activated(compute, x.view(), activation)?)
}

fn activated(compute: &Compute, x: MatrixView<'_>, activation: Activation) -> Result<Matrix, ModelError> {
    let _timer = compute.time(Op::Activation);
    x.dims2()?;
    match compute.kernels() {
        KernelSet::Reference => Ok(reference(x.tensor()?, activation)?.into()),
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => Ok(super::cuda::elementwise::activate(compute, x.tensor()?, activation)?.into()),
        _ => cpu::activation::activate(compute, x, activation),
    }
}

fn reference(x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
    Ok(match activation {
        Activation::Relu2 => x.relu()?.sqr()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::GeluErf => x.gelu_erf()?,
        Activation::Relu => x.relu()?,
        Activation::Silu => x.silu()?,
        Activation::Tanh => x.tanh()?,
        Activation::Xielu(Xielu { alpha_positive, alpha_negative, beta, eps }) => {
            let linear = (x * f64::from(beta))?;
            let above = ((x.sqr()? * f64::from(alpha_positive))? + &linear)?;
            let excess = ((x.minimum(eps)?.exp()? - 1.0)? - x)?;
            let below = ((excess * f64::from(alpha_negative))? + &linear)?;
            x.gt(0f32)?.where_cond(&above, &below)?
        }
    })
}
