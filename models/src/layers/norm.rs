use candle_core::Tensor;

use super::linear::tensor_bytes;
use crate::ModelError;
use crate::config::{NormKind, NormSpec, NormWeight};
use crate::ops::{self, Compute, Float, LayerNormParams, Matrix, Operand, QkNorm, RmsNormParams};
use crate::weights::{MatrixPart, WeightLoader};

#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    /// A layer norm's; without it, the norm is a root-mean-square norm.
    bias: Option<Tensor>,
    eps: f32,
}

impl Norm {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        path: &str,
        width: usize,
        spec: NormSpec,
    ) -> Result<Self, ModelError> {
        let stored = loader.vector(&[MatrixPart::whole(format!("{path}.weight"), width)])?;
        let weight = match spec.weight {
            NormWeight::Stored => stored,
            NormWeight::OnePlusStored => (stored + 1.0)?,
        };
        let bias = match spec.kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(loader.vector(&[MatrixPart::whole(format!("{path}.bias"), width)])?),
            NormKind::LayerUnbiased => Some(weight.zeros_like()?),
        };
        Ok(Self { weight, bias, eps: spec.eps })
    }

    /// `[m, groups * width]` to the same, each group of `width` elements normed alone. Layer norms take one group only.
    pub(super) fn apply<M: Operand>(&self, compute: &Compute, x: &M) -> Result<M, ModelError> {
        match &self.bias {
            None => ops::rms_norm(compute, x, &self.weight, self.eps),
            Some(bias) => ops::layer_norm(compute, x, self.layer_params(bias)),
        }
    }

    /// As attention norms its queries or keys.
    pub(super) fn of_heads(&self) -> QkNorm<'_> {
        QkNorm { weight: &self.weight, bias: self.bias.as_ref(), eps: self.eps }
    }

    /// The residual stream with `x` added, and its norm, in the form that its only reader takes; all `[m, hidden]`. Without
    /// `x` the stream is normed as it is.
    pub(super) fn forward(
        &self,
        compute: &Compute,
        residual: Matrix,
        x: Option<&Matrix>,
        form: Float,
    ) -> Result<(Matrix, Matrix), ModelError> {
        let rms = RmsNormParams { weight: &self.weight, eps: self.eps };
        let stream = residual.view();
        let normed = match (x.map(Matrix::view), &self.bias) {
            (Some(x), None) => return ops::rms_summed(compute, stream, x, rms, form),
            (Some(x), Some(bias)) => {
                return ops::layer_summed(compute, stream, x, self.layer_params(bias), form);
            }
            (None, None) => ops::rms_normed(compute, stream, rms, form)?,
            (None, Some(bias)) => ops::layer_normed(compute, stream, self.layer_params(bias), form)?,
        };
        Ok((residual, normed))
    }

    pub(super) fn size_bytes(&self) -> usize {
        tensor_bytes(&self.weight) + self.bias.as_ref().map_or(0, tensor_bytes)
    }

    fn layer_params<'a>(&'a self, bias: &'a Tensor) -> LayerNormParams<'a> {
        LayerNormParams { weight: &self.weight, bias, eps: self.eps }
    }
}
