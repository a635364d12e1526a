//! One layer of a decoder or an encoder: attention, then a feed-forward network, each with its norm.

use candle_core::{DType, Tensor};

use super::attention::{Attention, Step};
use super::mlp::Mlp;
use super::names::LayerNames;
use super::norm::Norm;
use super::positions::Positions;
use crate::ModelError;
use crate::config::{LayerSpec, NormPlacement};
use crate::kv_cache::KvLayer;
use crate::ops::{self, Compute, Float, Matrix};
use crate::weights::WeightLoader;

#[derive(Debug)]
pub(super) struct Block {
    /// `None` for [`NormPlacement::PreFfnOnly`].
    mixer_norm: Option<Norm>,
    attention: Attention,
    ffn_norm: Norm,
    mlp: Mlp,
    placement: NormPlacement,
}

/// The residual stream as what stands and what is to be added to it, so that the norm that follows does the addition.
pub(super) type Stream = (Matrix, Option<Matrix>);

impl Block {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &LayerNames<'_>,
        hidden_size: usize,
        spec: &LayerSpec,
        positions: &mut Positions,
    ) -> Result<Self, ModelError> {
        let mut norm = |name: &str| Norm::load(loader, &names.path(name), hidden_size, spec.norm);
        let mixer_norm = match spec.placement {
            NormPlacement::PreFfnOnly => None,
            _ => Some(norm(names.names.mixer_norm)?),
        };
        let ffn_norm = norm(names.names.ffn_norm)?;
        let attention =
            spec.attention().ok_or_else(|| ModelError::Input(format!("{} is not served", spec.mixer.name())))?;
        Ok(Self {
            mixer_norm,
            attention: Attention::load(loader, names, hidden_size, attention, positions)?,
            ffn_norm,
            mlp: Mlp::load(loader, names, hidden_size, &spec.ffn)?,
            placement: spec.placement,
        })
    }

    pub(super) fn forward(&self, step: &Step<'_>, stream: Stream, cache: &mut KvLayer) -> Result<Stream, ModelError> {
        match self.placement {
            NormPlacement::Pre | NormPlacement::PreFfnOnly => {
                let (residual, normed) = self.before_mixer(step, stream)?;
                let attended = self.attention.forward(step, normed.as_ref().unwrap_or(&residual), cache)?;
                drop(normed);
                let form = self.mlp.takes();
                let (residual, normed) = self.ffn_norm.forward(step.compute, residual, Some(&attended), form)?;
                Ok((residual, Some(self.mlp.forward(step.compute, &normed)?)))
            }
            NormPlacement::Post => {
                let residual = total(step.compute, stream)?;
                let attended = self.attention.forward(step, &residual, cache)?;
                let residual = ops::add(step.compute, &residual, &self.after_mixer(step, attended)?)?;
                let output = self.mlp.forward(step.compute, &residual)?;
                Ok((residual, Some(self.ffn_norm.apply(step.compute, &output)?)))
            }
            NormPlacement::OnSum => {
                let residual = total(step.compute, stream)?;
                let attended = self.attention.forward(step, &residual, cache)?;
                let residual = self.after_mixer(step, ops::add(step.compute, &residual, &attended)?)?;
                let output = self.mlp.forward(step.compute, &residual)?;
                let (_, normed) = self.ffn_norm.forward(step.compute, residual, Some(&output), Float::F32)?;
                Ok((normed, None))
            }
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        let norms = self.mixer_norm.as_ref().map_or(0, Norm::size_bytes) + self.ffn_norm.size_bytes();
        norms + self.attention.size_bytes() + self.mlp.size_bytes()
    }

    /// The stream, and what of it the mixer reads, unless that is the stream itself.
    fn before_mixer(&self, step: &Step<'_>, stream: Stream) -> Result<Stream, ModelError> {
        let Some(norm) = &self.mixer_norm else { return Ok((total(step.compute, stream)?, None)) };
        let (residual, addend) = stream;
        let form = self.attention.takes();
        let (residual, normed) = norm.forward(step.compute, residual, addend.as_ref(), form)?;
        Ok((residual, Some(normed)))
    }

    fn after_mixer(&self, step: &Step<'_>, x: Matrix) -> Result<Matrix, ModelError> {
        match &self.mixer_norm {
            Some(norm) => norm.apply(step.compute, &x),
            None => Ok(x),
        }
    }
}

pub(super) fn total(compute: &Compute, (residual, addend): Stream) -> Result<Matrix, ModelError> {
    match addend {
        Some(addend) => ops::add(compute, &residual, &addend),
        None => Ok(residual),
    }
}

/// The same, as a tensor of f32 for whoever looks on.
pub(super) fn shown(compute: &Compute, (residual, addend): &Stream) -> Result<Tensor, ModelError> {
    let total = match addend {
        Some(addend) => ops::add(compute, residual, addend)?.into_tensor()?,
        None => residual.to_tensor()?,
    };
    Ok(total.to_dtype(DType::F32)?)
}
