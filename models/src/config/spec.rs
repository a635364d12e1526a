//! A decoder as data: what every family's `config.json` is turned into. Encoders are made of the same layers
//! ([`super::EncoderSpec`]).
//!
//! Each layer has its own record, because windows, rotary embeddings and mixers vary from layer to layer in many families.

use super::mixer::MixerSpec;
use super::rope::RopeSpec;
use crate::TokenId;
pub use crate::ops::Direction;

/// A whole decoder, every size checked against the bounds of `limits.rs`.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Columns of the logits.
    pub vocab_size: usize,
    /// Rows of the embedding table; more than `vocab_size` where some tokens are only ever read.
    pub input_vocab_size: usize,
    pub hidden_size: usize,
    pub output_head: OutputHead,
    /// The longest sequence that the checkpoint's positions allow.
    pub max_position: usize,
    /// Any of these ends an answer. `config.json` and `generation_config.json` together, without repeats.
    pub eos_token_ids: Vec<TokenId>,
    pub bos_token_id: Option<TokenId>,
    /// Between the embedding and the first layer.
    pub embedding_norm: Option<NormSpec>,
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

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub qkv_bias: Bias,
    pub output_bias: Bias,
    /// Norms of queries and keys, before their positions are encoded.
    pub qk_norm: Option<QkNormSpec>,
    /// What a query-key product is multiplied with before the softmax.
    pub scale: f32,
    pub direction: Direction,
    /// A query sees the tokens less than this many positions away, its own included.
    pub window: Option<usize>,
    pub position: PositionSpec,
    pub temperature: Option<TemperatureSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNormSpec {
    pub scope: QkNormScope,
    pub norm: NormSpec,
}

/// Which elements are normed together, Henry et al. 2020, arXiv:2010.04245.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormScope {
    /// Each head alone, all with the same weights of `head_dim` elements.
    Head,
    /// All heads of a token, as many weights as the heads have elements together.
    Token,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PositionSpec {
    Rope(RopeSpec),
    /// Nothing but the causal mask orders the tokens, Kazemnejad et al. 2023, arXiv:2305.19466.
    Unencoded,
    /// Scores fall linearly with distance, each head with its own slope ([`alibi_slopes`]).
    Alibi,
}

/// Queries grow with their position: `1 + beta * ln(1 + floor(position / original_max_position))` (the Llama 4 model card).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemperatureSpec {
    pub beta: f64,
    pub original_max_position: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FfnSpec {
    /// `down(activation(gate(x)) * up(x))`
    Gated { intermediate_size: usize, activation: GateActivation, bias: Bias },
    /// `down(activation(up(x)))`
    Plain { intermediate_size: usize, activation: Activation, bias: Bias },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateActivation {
    Silu,
    GeluErf,
    GeluTanh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Relu2,
    GeluTanh,
    GeluErf,
    Relu,
    Silu,
    Tanh,
    /// With two learned scalars a layer.
    Xielu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    Absent,
    Present,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    pub kind: NormKind,
    pub weight: NormWeight,
    pub eps: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * weight`, Zhang and Sennrich 2019, arXiv:1910.07467.
    Rms,
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`, Ba et al. 2016, arXiv:1607.06450.
    Layer,
    /// The same without `bias`.
    LayerUnbiased,
}

/// What a norm multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormWeight {
    /// What the checkpoint stores.
    Stored,
    /// 1 more than the checkpoint stores.
    OnePlusStored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x + f(norm(x))`, for the mixer and for the feed-forward network.
    Pre,
    /// As `Pre`, but the mixer takes the stream as it is, which the embeddings' norm has just left.
    PreFfnOnly,
    /// `x + norm(f(x))`, for both.
    Post,
    /// `norm(x + f(x))`, for both, Vaswani et al. 2017, arXiv:1706.03762.
    OnSum,
}

impl From<bool> for Bias {
    fn from(present: bool) -> Self {
        if present { Self::Present } else { Self::Absent }
    }
}

impl LayerSpec {
    /// `None` where something else mixes the tokens.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            MixerSpec::Attention(attention) => Some(attention),
            MixerSpec::LatentAttention(_) | MixerSpec::Recurrent(_) => None,
        }
    }

    pub(crate) fn attention_mut(&mut self) -> Option<&mut AttentionSpec> {
        match &mut self.mixer {
            MixerSpec::Attention(attention) => Some(attention),
            MixerSpec::LatentAttention(_) | MixerSpec::Recurrent(_) => None,
        }
    }

    /// How far a token sees; `None` where it sees all that came before.
    pub fn window(&self) -> Option<usize> {
        self.attention().and_then(|attention| attention.window)
    }
}

/// ALiBi's slopes, Press et al. 2022, arXiv:2108.12409: a geometric sequence that starts at its own ratio `2^(-8 / n)`. For
/// a number of heads that is no power of two, the sequence of the power below and then every other slope of the sequence
/// of the power above.
pub fn alibi_slopes(num_heads: usize) -> Vec<f32> {
    let below = 1 << num_heads.ilog2();
    let sequence = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2() as f32);
    sequence(below).chain(sequence(2 * below).step_by(2)).take(num_heads).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of a small decoder without positions.
    pub(in crate::config) fn plain_layer() -> LayerSpec {
        let norm = NormSpec { kind: NormKind::Rms, weight: NormWeight::Stored, eps: 1e-5 };
        let attention = AttentionSpec {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 24,
            qkv_bias: Bias::Absent,
            output_bias: Bias::Absent,
            qk_norm: None,
            scale: 0.2,
            direction: Direction::Causal,
            window: None,
            position: PositionSpec::Unencoded,
            temperature: None,
        };
        let ffn = FfnSpec::Plain { intermediate_size: 88, activation: Activation::Relu, bias: Bias::Absent };
        LayerSpec { mixer: MixerSpec::Attention(attention), ffn, norm, placement: NormPlacement::Pre }
    }

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.031_25, 0.015_625, 0.007_812_5, 0.003_906_25]);
        assert_eq!(alibi_slopes(6), [0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]);
        assert_eq!(alibi_slopes(1), [0.003_906_25]);
    }
}
