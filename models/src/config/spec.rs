//! A decoder as data: what every family's `config.json` is turned into.
//!
//! Each layer has its own record, because windows, rotary embeddings and mixers vary from layer to layer in many
//! families. The enums with one variant are the places where further families add theirs.

use super::rope::RopeSpec;
use crate::TokenId;

/// A whole decoder, every size checked against [`super::limits`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub output_head: OutputHead,
    /// The longest sequence that the checkpoint's positions allow.
    pub max_position: usize,
    /// Any of these ends an answer. `config.json` and `generation_config.json` together, without repeats.
    pub eos_token_ids: Vec<TokenId>,
    pub bos_token_id: Option<TokenId>,
    pub final_norm: NormSpec,
    pub layers: Vec<LayerSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputHead {
    /// The embedding table is also the output projection.
    Tied,
    Separate,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    pub mixer: MixerSpec,
    pub ffn: FfnSpec,
    pub norm: NormSpec,
    pub placement: NormPlacement,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    Attention(AttentionSpec),
}

/// Causal grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub qkv_bias: Bias,
    pub output_bias: Bias,
    /// What a query-key product is multiplied with before the softmax.
    pub scale: f32,
    pub position: PositionSpec,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PositionSpec {
    Rope(RopeSpec),
}

#[derive(Debug, Clone, PartialEq)]
pub enum FfnSpec {
    /// `down(activation(gate(x)) * up(x))`
    Gated { intermediate_size: usize, activation: Activation, bias: Bias },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    Absent,
    Present,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    pub kind: NormKind,
    pub eps: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * weight`, Zhang and Sennrich 2019, arXiv:1910.07467.
    Rms,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// One norm before the mixer, one before the feed-forward network.
    Pre,
}

impl From<bool> for Bias {
    fn from(present: bool) -> Self {
        if present { Self::Present } else { Self::Absent }
    }
}

impl DecoderSpec {
    /// The attention that every layer shares in shape, as the paged cache needs it so far.
    pub fn attention(&self) -> &AttentionSpec {
        let MixerSpec::Attention(attention) = &self.layers[0].mixer;
        attention
    }
}
