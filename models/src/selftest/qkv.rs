use candle_core::{Device, Tensor};

use super::numbers::Random;
use super::world::Shape;
use crate::ModelError;
use crate::ops::{Float, QkNorm};

/// What a layer has between its merged product and attention, besides its heads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct QkvFlags {
    pub(crate) bias: bool,
    pub(crate) norm: Option<NormOf>,
    /// Elements that turn.
    pub(crate) rotary_dim: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum NormOf {
    Heads,
    Tokens,
    TokensWithBias,
}

/// The parameters of a layer's flags: the bias, then weights and biases of queries' and keys' norms. f32.
pub(crate) struct QkvParameters {
    pub(crate) bias: Option<Tensor>,
    norms: Option<[Tensor; 2]>,
    norm_biases: Option<[Tensor; 2]>,
}

pub(crate) const QK_NORM_EPS: f32 = 1e-5;

impl QkvParameters {
    pub(crate) fn new(shape: Shape, flags: QkvFlags, random: &mut Random) -> Self {
        let mut vector = |len: usize| random.tensor(&[len], Float::F32);
        let row = (shape.num_heads() + 2 * shape.num_kv_heads) * shape.head_dim;
        let widths = match flags.norm {
            Some(NormOf::Heads) => [shape.head_dim; 2],
            _ => [shape.num_heads() * shape.head_dim, shape.kv_width()],
        };
        Self {
            bias: flags.bias.then(|| vector(row)),
            norms: flags.norm.map(|_| widths.map(&mut vector)),
            norm_biases: (flags.norm == Some(NormOf::TokensWithBias)).then(|| widths.map(&mut vector)),
        }
    }

    /// In the memory of `device`.
    pub(crate) fn on(&self, device: &Device) -> Result<Self, ModelError> {
        let pair = |pair: &[Tensor; 2]| Ok::<_, ModelError>([pair[0].to_device(device)?, pair[1].to_device(device)?]);
        Ok(Self {
            bias: self.bias.as_ref().map(|bias| bias.to_device(device)).transpose()?,
            norms: self.norms.as_ref().map(pair).transpose()?,
            norm_biases: self.norm_biases.as_ref().map(pair).transpose()?,
        })
    }

    /// Of queries and of keys.
    pub(crate) fn norms(&self) -> Option<(QkNorm<'_>, QkNorm<'_>)> {
        self.norm(0).zip(self.norm(1))
    }

    fn norm(&self, index: usize) -> Option<QkNorm<'_>> {
        let weight = &self.norms.as_ref()?[index];
        Some(QkNorm { weight, bias: self.norm_biases.as_ref().map(|biases| &biases[index]), eps: QK_NORM_EPS })
    }
}
