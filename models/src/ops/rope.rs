//! Rotary position embedding (Su et al., 2021) in the half-split form of the Llama model card: with `h = rotary_dim / 2`,
//! elements `i` and `i + h` of a head turn together by the angle `position * inv_freq[i]`.
//!
//! Rounding follows the reference implementation: the angle is an f32 product, its cosine and sine are rounded to f32 and
//! then multiplied by the attention scaling, and `x1 * cos - x2 * sin` rounds after each operation.

use candle_core::Tensor;

use super::{AttentionPlan, Compute, Op, cpu};
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
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
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
        let mut cos = Vec::with_capacity(positions.len() * self.inv_freq.len());
        let mut sin = Vec::with_capacity(cos.capacity());
        for &position in positions {
            for &inv_freq in &self.inv_freq {
                let (s, c) = (position as f32 * inv_freq).sin_cos();
                cos.push(c * self.attention_scaling);
                sin.push(s * self.attention_scaling);
            }
        }
        let shape = (positions.len(), self.inv_freq.len());
        Ok(RotaryAngles {
            cos: Tensor::from_vec(cos, shape, compute.device())?,
            sin: Tensor::from_vec(sin, shape, compute.device())?,
        })
    }
}

/// Turns each head of `x [m, heads * head_dim] f32` by its row's angles: `[m, heads, head_dim] f32`.
///
/// The rows of `x` may be strided (a slice of the columns of a merged QKV product) without cost.
pub fn rope(compute: &Compute, x: &Tensor, head_dim: usize, angles: &RotaryAngles) -> Result<Tensor, ModelError> {
    let _timer = compute.time(Op::Rope);
    let (m, width) = x.dims2()?;
    let (num_angles, half) = angles.cos.dims2()?;
    if head_dim == 0 || width % head_dim != 0 || 2 * half > head_dim || num_angles != m {
        return Err(ModelError::Input(format!(
            "rotating {m} rows of {width} in heads of {head_dim} by {num_angles} rows of {half} angles"
        )));
    }
    match compute.kernels() {
        kernels if kernels.keeps_rows_equal() => cpu::rope::rope(compute, x, head_dim, angles),
        _ => reference(x, head_dim, angles),
    }
}

fn reference(x: &Tensor, head_dim: usize, angles: &RotaryAngles) -> Result<Tensor, ModelError> {
    let (m, width) = x.dims2()?;
    let half = angles.cos.dims2()?.1;
    let x = x.contiguous()?.reshape((m, width / head_dim, head_dim))?;
    let (cos, sin) = (angles.cos.unsqueeze(1)?, angles.sin.unsqueeze(1)?);
    let (first, second) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let mut parts = vec![turned_first, turned_second];
    if head_dim > 2 * half {
        parts.push(x.narrow(2, 2 * half, head_dim - 2 * half)?);
    }
    Ok(Tensor::cat(&parts, 2)?)
}
