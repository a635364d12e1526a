//! BLOOM: Scao et al. 2022, arXiv:2211.05100. ALiBi, layer norms with biases, one of them on the embeddings, biases
//! everywhere, GELU without a gate, and one matrix for queries, keys and values.

use super::common::{self, NAMES};
use crate::ModelError;
use crate::config::{
    Activation, AttentionSpec, Bias, DecoderSpec, Direction, FfnSpec, Fields, LayerSpec, MixerSpec, NormKind,
    NormPlacement, NormSpec, NormWeight, OutputHead, PositionSpec, limits,
};
use crate::layers::{QkvNames, WeightNames};

pub(super) const BLOOM_NAMES: WeightNames = WeightNames {
    base_prefix: "transformer.",
    embedding: "transformer.word_embeddings",
    embedding_norm: "transformer.word_embeddings_layernorm",
    final_norm: "transformer.ln_f",
    layers: "transformer.h",
    qkv: QkvNames::PerHead("self_attention.query_key_value"),
    attention_output: "self_attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    derived: &[],
    ..NAMES
};

/// The length that the published models were trained on, for files that do not say. ALiBi itself has no limit.
const TRAINED_LENGTH: usize = 2048;

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    refuse_variants(fields)?;
    let vocab_size = fields.count("vocab_size", limits::VOCAB_SIZE)?;
    let hidden_size = fields.spelling("hidden_size", "n_embed")?;
    let hidden_size = fields.count(hidden_size, limits::HIDDEN_SIZE)?;
    let num_layers = fields.spelling("n_layer", "num_hidden_layers")?;
    let num_layers = fields.count(num_layers, limits::NUM_LAYERS)?;
    let intermediate_size = 4 * hidden_size;
    fields.neutral("n_inner", &[intermediate_size.into()], "the feed-forward network is four times the hidden size")?;
    let eps = fields.optional_number("layer_norm_epsilon", limits::NORM_EPS)?.unwrap_or(1e-5) as f32;
    let norm = NormSpec { kind: NormKind::Layer, weight: NormWeight::Stored, eps };
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(read_attention(fields, hidden_size)?),
        ffn: FfnSpec::Plain { intermediate_size, activation: Activation::GeluTanh, bias: Bias::Present },
        norm,
        placement: NormPlacement::Pre,
    };
    Ok(DecoderSpec {
        vocab_size,
        input_vocab_size: vocab_size,
        hidden_size,
        output_head: common::read_output_head(fields, OutputHead::Tied)?,
        max_position: fields.optional_count("seq_length", limits::MAX_POSITION)?.unwrap_or(TRAINED_LENGTH),
        eos_token_ids: fields.token_ids("eos_token_id", vocab_size, limits::MAX_EOS_TOKENS)?,
        bos_token_id: fields.token_ids("bos_token_id", vocab_size, 1)?.first().copied(),
        embedding_norm: Some(norm),
        final_norm: norm,
        layers: vec![layer; num_layers],
    })
}

fn read_attention(fields: &mut Fields<'_>, hidden_size: usize) -> Result<AttentionSpec, ModelError> {
    let key = fields.spelling("n_head", "num_attention_heads")?;
    let num_heads = fields.count(key, limits::NUM_HEADS)?;
    let head_dim = common::split_into_heads(fields, key, hidden_size, num_heads)?;
    Ok(AttentionSpec {
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        qkv_bias: Bias::Present,
        output_bias: Bias::Present,
        qk_norm: None,
        scale: common::default_scale(head_dim),
        direction: Direction::Causal,
        window: None,
        position: PositionSpec::Alibi,
        temperature: None,
    })
}

fn refuse_variants(fields: &mut Fields<'_>) -> Result<(), ModelError> {
    let off = [false.into()];
    fields.neutral("apply_residual_connection_post_layernorm", &off, "the residual is what comes before the norm")?;
    fields.neutral("slow_but_exact", &off, "sums are not cut into the slices of the training")?;
    fields.neutral("skip_bias_add_qkv", &off, "all biases are added")?;
    // How the training fused and sliced its kernels; and an offset that the softmax takes out.
    fields.ignore(&["attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"]);
    fields.ignore(&["offset_alibi", "pretraining_tp", "skip_bias_add"]);
    Ok(())
}
