use candle_core::Tensor;

use super::linear::tensor_bytes;
use crate::ModelError;
use crate::config::{NormKind, NormSpec};
use crate::ops::{self, Compute};
use crate::weights::{MatrixPart, WeightLoader};

#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    eps: f32,
}

impl Norm {
    pub(super) fn load(loader: &mut WeightLoader<'_>, weight: MatrixPart, spec: NormSpec) -> Result<Self, ModelError> {
        let NormKind::Rms = spec.kind;
        Ok(Self { weight: loader.vector(&[weight])?, eps: spec.eps })
    }

    /// The residual stream with `x` added, and its norm; all `[m, hidden]`. Without `x` the stream is normed as it is.
    pub(super) fn forward(
        &self,
        compute: &Compute,
        residual: Tensor,
        x: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor), ModelError> {
        match x {
            Some(x) => ops::add_rms_norm(compute, &residual, x, &self.weight, self.eps),
            None => {
                let normed = ops::rms_norm(compute, &residual, &self.weight, self.eps)?;
                Ok((residual, normed))
            }
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        tensor_bytes(&self.weight)
    }
}
