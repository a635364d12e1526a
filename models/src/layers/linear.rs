use candle_core::Tensor;

use super::names::LayerNames;
use crate::ModelError;
use crate::config::Bias;
use crate::ops::{self, Compute, PackedWeight};
use crate::weights::WeightLoader;

/// `y = x W^T + b`, where `W` may be several matrices of the checkpoint, one below the other.
#[derive(Debug)]
pub(super) struct Linear {
    weight: PackedWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// `outputs` are the matrices' names and row counts.
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &LayerNames<'_>,
        in_features: usize,
        (outputs, bias): (&[(&str, usize)], Bias),
    ) -> Result<Self, ModelError> {
        let weights: Vec<_> = outputs.iter().map(|(name, rows)| names.weight(name, *rows)).collect();
        let weight = loader.matrix(in_features, &weights)?;
        let bias = match bias {
            Bias::Absent => None,
            Bias::Present => {
                let biases: Vec<_> = outputs.iter().map(|(name, rows)| names.bias(name, *rows)).collect();
                Some(loader.vector(&biases)?)
            }
        };
        Ok(Self { weight, bias })
    }

    /// `[m, in_features]` to `[m, sum of outputs]`
    pub(super) fn forward(&self, compute: &Compute, x: &Tensor) -> Result<Tensor, ModelError> {
        ops::linear(compute, x, &self.weight, self.bias.as_ref())
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.weight.size_bytes() + self.bias.as_ref().map_or(0, tensor_bytes)
    }
}

pub(super) fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
