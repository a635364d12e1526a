//! Rotary position embedding (Su et al., 2021) in the half-split form of the Llama model card: with `h = rotary_dim / 2`,
//! elements `i` and `i + h` of a head turn together by the angle `position * inv_freq[i]`.
//!
//! Rounding follows the reference implementation: the angle is an f32 product, its cosine and sine are rounded to f32 and
//! then multiplied by the attention scaling, and `x1 * cos - x2 * sin` rounds after each operation.

use candle_core::Tensor;

use super::{AttentionPlan, Compute, Matrix, Op, Operand, cpu};
use crate::ModelError;

/// A model's rotary frequencies. The kinds of scaling are decided by whoever computes `inv_freq`.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    pub(super) inv_freq: Vec<f32>,
    pub(super) attention_scaling: f32,
    /// The frequencies on the GPU, from their first use on.
    #[cfg(feature = "cuda")]
    pub(super) on_device: std::sync::OnceLock<Tensor>,
}

/// Cosines and sines of one step's tokens, `[num_tokens, rotary_dim / 2] f32` each: computed once a step, used by every
/// layer, so that no table of all positions is held.
#[derive(Debug)]
pub struct RotaryAngles {
    pub(super) cos: Matrix,
    pub(super) sin: Matrix,
}

impl RotaryAngles {
    /// Their tokens, and half the elements of a head that turn.
    pub(super) fn dims(&self) -> (usize, usize) {
        (self.cos.num_rows(), self.cos.width())
    }
}

impl RotaryEmbedding {
    /// `inv_freq [rotary_dim / 2]`, and the factor that some scalings apply to cosine and sine (else 1).
    pub fn new(inv_freq: Vec<f32>, attention_scaling: f32) -> Self {
        Self {
            inv_freq,
            attention_scaling,
            #[cfg(feature = "cuda")]
            on_device: std::sync::OnceLock::new(),
        }
    }

    /// Elements of a head that turn; the rest pass unchanged.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// The angles of a step's tokens. A GPU computes them where it uses them, with cosines and sines of its own.
    pub fn angles_of_step(&self, compute: &Compute, plan: &AttentionPlan<'_>) -> Result<RotaryAngles, ModelError> {
        #[cfg(feature = "cuda")]
        if compute.kernels() == super::KernelSet::Cuda {
            return super::cuda::angles::angles(compute, self, plan);
        }
        self.angles(compute, plan.input().positions())
    }

    /// The angles of tokens at `positions`.
    pub fn angles(&self, compute: &Compute, positions: &[u32]) -> Result<RotaryAngles, ModelError> {
        let cos = self.of_each(compute, positions, f32::cos);
        let sin = self.of_each(compute, positions, f32::sin);
        if compute.kernels().keeps_rows_equal() {
            return Ok(RotaryAngles { cos, sin });
        }
        Ok(RotaryAngles { cos: cos.into_tensor()?.into(), sin: sin.into_tensor()?.into() })
    }

    fn of_each(&self, compute: &Compute, positions: &[u32], function: fn(f32) -> f32) -> Matrix {
        let half = self.inv_freq.len();
        let at = |index: usize| positions[index / half] as f32 * self.inv_freq[index % half];
        let values = (0..positions.len() * half).map(|index| function(at(index)) * self.attention_scaling);
        Matrix::host(compute.workspace().copy_of(values), positions.len(), half)
    }
}

/// Turns each head of `x [m, heads * head_dim] f32` by its row's angles: `[m, heads, head_dim] f32`.
///
/// The rows of `x` may be strided (a slice of the columns of a merged QKV product) without cost.
pub fn rope(compute: &Compute, x: &Tensor, head_dim: usize, angles: &RotaryAngles) -> Result<Tensor, ModelError> {
    let _timer = compute.time(Op::Rope);
    let (m, width) = x.dims2()?;
    let (num_angles, half) = angles.dims();
    if head_dim == 0 || width % head_dim != 0 || 2 * half > head_dim || num_angles != m {
        return Err(ModelError::Input(format!(
            "rotating {m} rows of {width} in heads of {head_dim} by {num_angles} rows of {half} angles"
        )));
    }
    match compute.kernels() {
        kernels if kernels.keeps_rows_equal() => {
            let turned = cpu::rope::rope(compute, x.view(), head_dim, angles)?;
            Ok(turned.into_tensor()?.reshape((m, width / head_dim, head_dim))?)
        }
        _ => reference(x, head_dim, angles),
    }
}

fn reference(x: &Tensor, head_dim: usize, angles: &RotaryAngles) -> Result<Tensor, ModelError> {
    let (m, width) = x.dims2()?;
    let (_, half) = angles.dims();
    let x = x.contiguous()?.reshape((m, width / head_dim, head_dim))?;
    let (cos, sin) = (angles.cos.to_tensor()?.unsqueeze(1)?, angles.sin.to_tensor()?.unsqueeze(1)?);
    let (first, second) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let mut parts = vec![turned_first, turned_second];
    if head_dim > 2 * half {
        parts.push(x.narrow(2, 2 * half, head_dim - 2 * half)?);
    }
    Ok(Tensor::cat(&parts, 2)?)
}
