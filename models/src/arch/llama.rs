//! Llama and the families that are Llama with a few fields read differently.
//!
//! Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783. Mistral 7B: Jiang et al. 2023,
//! arXiv:2310.06825. Qwen2: Yang et al. 2024, arXiv:2407.10671.

use crate::ModelError;
use crate::config::limits;
use crate::config::{
    Activation, AttentionSpec, Bias, DecoderSpec, FfnSpec, Fields, LayerSpec, MixerSpec, NormKind, NormPlacement,
    NormSpec, OutputHead, PositionSpec, RopeContext, RopeScaling, read_rope,
};
use crate::layers::WeightNames;

pub(super) const NAMES: WeightNames = WeightNames {
    embedding: "model.embed_tokens",
    final_norm: "model.norm",
    output_head: "lm_head",
    layers: "model.layers",
    mixer_norm: "input_layernorm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    attention_output: "self_attn.o_proj",
    ffn_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    derived: &["rotary_emb.inv_freq"],
};

pub(super) fn read_llama(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let attention = Bias::from(fields.flag("attention_bias", false)?);
    let mlp = Bias::from(fields.flag("mlp_bias", false)?);
    fields.neutral("pretraining_tp", &[1.into()], "merge the slices into a checkpoint with 1")?;
    fields.neutral("sliding_window", &[], "this architecture attends to everything")?;
    read(fields, Biases { qkv: attention, output: attention, mlp })
}

pub(super) fn read_mistral(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("num_key_value_heads")?;
    fields.require("sliding_window")?;
    fields.neutral("sliding_window", &[], "only full attention is served; use a version whose window is null")?;
    fields.neutral("attention_bias", &[false.into()], "this architecture has no biases")?;
    fields.neutral("mlp_bias", &[false.into()], "this architecture has no biases")?;
    read(fields, Biases { qkv: Bias::Absent, output: Bias::Absent, mlp: Bias::Absent })
}

pub(super) fn read_qwen2(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("num_key_value_heads")?;
    fields.neutral("use_sliding_window", &[false.into()], "only full attention is served")?;
    // Both mean nothing while use_sliding_window is false.
    fields.ignore(&["sliding_window", "max_window_layers"]);
    read(fields, Biases { qkv: Bias::Present, output: Bias::Absent, mlp: Bias::Absent })
}

/// What the three families fix differently.
#[derive(Debug, Clone, Copy)]
struct Biases {
    qkv: Bias,
    output: Bias,
    mlp: Bias,
}

fn read(fields: &mut Fields<'_>, biases: Biases) -> Result<DecoderSpec, ModelError> {
    let vocab_size = fields.count("vocab_size", limits::VOCAB_SIZE)?;
    let hidden_size = fields.count("hidden_size", limits::HIDDEN_SIZE)?;
    let num_layers = fields.count("num_hidden_layers", limits::NUM_LAYERS)?;
    let written_max_position = fields.count("max_position_embeddings", limits::MAX_POSITION)?;
    let attention = read_attention(fields, hidden_size, (written_max_position, biases))?;
    fields.neutral("max_sequence_length", &[written_max_position.into()], "it contradicts max_position_embeddings")?;
    fields.neutral("rope_interleaved", &[false.into()], "only the half-split rotary form is served")?;
    fields.neutral("use_mrope", &[false.into()], "only one-dimensional positions are served")?;
    check_layer_types(fields, num_layers)?;
    let eps = fields.optional_number("rms_norm_eps", limits::NORM_EPS)?.unwrap_or(1e-6) as f32;
    let norm = NormSpec { kind: NormKind::Rms, eps };
    let layer = LayerSpec {
        ffn: read_ffn(fields, biases.mlp)?,
        norm,
        placement: NormPlacement::Pre,
        mixer: MixerSpec::Attention(attention.clone()),
    };
    let tied = fields.flag("tie_word_embeddings", false)?;
    Ok(DecoderSpec {
        vocab_size,
        hidden_size,
        output_head: if tied { OutputHead::Tied } else { OutputHead::Separate },
        max_position: reach(&attention.position, written_max_position),
        eos_token_ids: fields.token_ids("eos_token_id", vocab_size, limits::MAX_EOS_TOKENS)?,
        bos_token_id: fields.token_ids("bos_token_id", vocab_size, 1)?.first().copied(),
        final_norm: norm,
        layers: vec![layer; num_layers],
    })
}

fn read_attention(
    fields: &mut Fields<'_>,
    hidden_size: usize,
    (max_position, biases): (usize, Biases),
) -> Result<AttentionSpec, ModelError> {
    let num_heads = fields.count("num_attention_heads", limits::NUM_HEADS)?;
    let num_kv_heads = fields.optional_count("num_key_value_heads", limits::NUM_HEADS)?.unwrap_or(num_heads);
    if !num_heads.is_multiple_of(num_kv_heads) {
        let problem = format!("{num_kv_heads} does not divide the {num_heads} attention heads");
        return Err(fields.refuse("num_key_value_heads", problem));
    }
    let head_dim = match fields.optional_count("head_dim", limits::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let problem = format!("{num_heads} does not divide the hidden size {hidden_size}, and head_dim is absent");
            return Err(fields.refuse("num_attention_heads", problem));
        }
    };
    Ok(AttentionSpec {
        num_heads,
        num_kv_heads,
        head_dim,
        qkv_bias: biases.qkv,
        output_bias: biases.output,
        scale: (1.0 / (head_dim as f64).sqrt()) as f32,
        position: PositionSpec::Rope(read_rope(fields, RopeContext { head_dim, max_position })?),
    })
}

fn read_ffn(fields: &mut Fields<'_>, bias: Bias) -> Result<FfnSpec, ModelError> {
    let intermediate_size = fields.count("intermediate_size", limits::INTERMEDIATE_SIZE)?;
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(FfnSpec::Gated { intermediate_size, activation: Activation::Silu, bias }),
        Some(other) => Err(fields.refuse("hidden_act", format!("{other} is not supported; supported: silu"))),
    }
}

fn check_layer_types(fields: &mut Fields<'_>, num_layers: usize) -> Result<(), ModelError> {
    let full = serde_json::Value::from(vec!["full_attention"; num_layers]);
    fields.neutral("layer_types", &[full], "each of the layers must be full_attention")
}

/// YaRN states how far it stretches the original context; some configurations still write the original as the maximum.
fn reach(position: &PositionSpec, written_max_position: usize) -> usize {
    let PositionSpec::Rope(rope) = position;
    match &rope.scaling {
        RopeScaling::Yarn(yarn) => {
            let stretched = (yarn.original_max_position as f64 * yarn.factor) as usize;
            stretched.clamp(written_max_position, *limits::MAX_POSITION.end())
        }
        _ => written_max_position,
    }
}
