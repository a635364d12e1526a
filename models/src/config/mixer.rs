//! What lets the tokens of a sequence see each other in a layer, and what a layer keeps of them for those that follow.
//!
//! Attention is served. The other mixers are described, so that a family with a few such layers has a record for each of
//! its layers; [`shared_heads`] refuses them by name before any weight is read.

use super::spec::{AttentionSpec, LayerSpec, PositionSpec};

#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    Attention(AttentionSpec),
    LatentAttention(LatentAttentionSpec),
    Recurrent(RecurrentSpec),
}

/// Attention whose keys and values are computed from one short vector of each token, DeepSeek-AI 2024, arXiv:2405.04434.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentAttentionSpec {
    /// Elements of the vector that keys and values are computed from.
    pub latent_dim: usize,
    /// Elements of a key whose position is encoded; all heads share them, and they are kept beside the vector.
    pub rotary_dim: usize,
    pub position: PositionSpec,
}

/// A state of fixed size that every token changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecurrentSpec {
    pub kind: Recurrence,
    pub num_heads: usize,
    pub head_dim: usize,
    /// Numbers of state for each element of a head.
    pub state_dim: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recurrence {
    /// Dao and Gu 2024, arXiv:2405.21060.
    Mamba2,
    /// Yang et al. 2024, arXiv:2412.06464.
    GatedDelta,
}

/// What a layer keeps of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Of each token.
    KeysAndValues { num_kv_heads: usize, head_dim: usize },
    /// Of each token, one vector.
    Latents { width: usize },
    /// However long the sequence is.
    State { elements: usize },
}

/// The heads that all layers of a model have alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl MixerSpec {
    pub fn keeps(&self) -> Kept {
        match self {
            Self::Attention(is) => Kept::KeysAndValues { num_kv_heads: is.num_kv_heads, head_dim: is.head_dim },
            Self::LatentAttention(is) => Kept::Latents { width: is.latent_dim + is.rotary_dim },
            Self::Recurrent(is) => Kept::State { elements: is.num_heads * is.head_dim * is.state_dim },
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Attention(_) => "attention",
            Self::LatentAttention(_) => "latent attention",
            Self::Recurrent(RecurrentSpec { kind: Recurrence::Mamba2, .. }) => "Mamba-2",
            Self::Recurrent(RecurrentSpec { kind: Recurrence::GatedDelta, .. }) => "gated delta rule",
        }
    }
}

/// The one paged cache has blocks of one shape. The error says which layer does not fit, and why.
pub(crate) fn shared_heads(layers: &[LayerSpec]) -> Result<Heads, String> {
    let mut shared: Option<Heads> = None;
    for (index, layer) in layers.iter().enumerate() {
        let Some(attention) = layer.attention() else {
            return Err(format!("layer {index}: {} is not served; layers of attention are", layer.mixer.name()));
        };
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = *attention;
        let heads = Heads { num_heads, num_kv_heads, head_dim };
        match shared {
            Some(first) if first != heads => {
                return Err(format!("layer {index}: its heads differ from those of layer 0, which is not served"));
            }
            _ => shared = Some(heads),
        }
    }
    shared.ok_or_else(|| "a model without layers".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layer_runs;
    use crate::config::spec::tests::plain_layer;

    fn hybrid(mixer: MixerSpec) -> Vec<LayerSpec> {
        vec![plain_layer(), LayerSpec { mixer, ..plain_layer() }, plain_layer()]
    }

    #[test]
    fn a_layer_that_is_no_attention_is_described_and_refused_by_name() {
        let latent = LatentAttentionSpec { latent_dim: 32, rotary_dim: 8, position: PositionSpec::Unencoded };
        let mamba = RecurrentSpec { kind: Recurrence::Mamba2, num_heads: 3, head_dim: 8, state_dim: 16 };
        let delta = RecurrentSpec { kind: Recurrence::GatedDelta, ..mamba };
        for (mixer, name, kept) in [
            (MixerSpec::LatentAttention(latent), "latent attention", "40 numbers a token"),
            (MixerSpec::Recurrent(mamba), "Mamba-2", "384 numbers a sequence"),
            (MixerSpec::Recurrent(delta), "gated delta rule", "384 numbers a sequence"),
        ] {
            let mut layers = hybrid(mixer);
            let refusal = shared_heads(&layers).unwrap_err();
            assert!(refusal.contains("layer 1") && refusal.contains(name), "{refusal}");
            let runs = layer_runs(&layers);
            assert!(runs[1].layer.contains(name) && runs[1].layer.contains(kept), "{}", runs[1].layer);
            assert_eq!((runs.len(), layers[1].window(), layers[1].attention_mut()), (3, None, None));
        }
    }

    #[test]
    fn layers_share_one_cache_only_if_their_heads_are_alike() {
        let MixerSpec::Attention(attention) = plain_layer().mixer else { unreachable!("made above") };
        let expected = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 24 };
        assert_eq!(shared_heads(&hybrid(MixerSpec::Attention(attention.clone()))), Ok(expected));
        let windowed = AttentionSpec { window: Some(3), ..attention.clone() };
        assert_eq!(shared_heads(&hybrid(MixerSpec::Attention(windowed))), Ok(expected));
        let wider = AttentionSpec { head_dim: 32, ..attention };
        assert!(shared_heads(&hybrid(MixerSpec::Attention(wider))).unwrap_err().contains("layer 1"));
    }
}
