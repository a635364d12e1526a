use candle_core::Tensor;

use crate::ModelError;
use crate::config::Bias;
use crate::ops::{self, Compute, Float, Gate, Matrix, Operand, PackedWeight};
use crate::weights::{MatrixPart, WeightLoader};

/// `y = x W^T + b`, where `W` may be several matrices of the checkpoint, one below the other.
#[derive(Debug)]
pub(super) struct Linear {
    weight: PackedWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// `outputs` are named without `.weight` and `.bias`.
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        in_features: usize,
        outputs: &[MatrixPart],
        bias: Bias,
    ) -> Result<Self, ModelError> {
        let complete = |ending: &str| -> Vec<MatrixPart> {
            let named = |part: &MatrixPart| MatrixPart { name: format!("{}.{ending}", part.name), ..part.clone() };
            outputs.iter().map(named).collect()
        };
        let weight = loader.matrix(in_features, &complete("weight"))?;
        let bias = match bias {
            Bias::Absent => None,
            Bias::Present => Some(loader.vector(&complete("bias"))?),
        };
        Ok(Self { weight, bias })
    }

    /// `[m, in_features]` to `[m, sum of outputs]`
    pub(super) fn forward<M: Operand>(&self, compute: &Compute, x: &M) -> Result<M, ModelError> {
        ops::linear(compute, x, &self.weight, self.bias.as_ref())
    }

    /// `[m, in_features]` to `[m, outputs / 2]`: the first half of the outputs are gates of the others. For `next` alone, which
    /// may take it in another form than any other op.
    pub(super) fn forward_gated(
        &self,
        compute: &Compute,
        x: &Matrix,
        gate: Gate,
        next: &Self,
    ) -> Result<Matrix, ModelError> {
        ops::gated_linear(compute, x, (&self.weight, self.bias.as_ref()), (gate, &next.weight))
    }

    /// As [`Self::forward`], with the bias where the next op is to add it.
    pub(super) fn forward_before_bias<M: Operand>(
        &self,
        compute: &Compute,
        x: &M,
    ) -> Result<(M, Option<&Tensor>), ModelError> {
        ops::linear_before_bias(compute, x, &self.weight, self.bias.as_ref())
    }

    /// What it takes its rows as without rounding them first.
    pub(super) fn takes(&self) -> Float {
        self.weight.takes()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.weight.size_bytes() + self.bias.as_ref().map_or(0, tensor_bytes)
    }
}

pub(super) fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
