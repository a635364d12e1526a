//! What most families write under the same names: read here once, with what a family means by it in a [`Dialect`].

use serde_json::Value;

use crate::ModelError;
use crate::config::{
    Activation, AttentionSpec, Bias, DecoderSpec, Direction, FfnSpec, Fields, GateActivation, LayerSpec, MixerSpec,
    NormKind, NormPlacement, NormSpec, NormWeight, OutputHead, PositionSpec, QkNormScope, QkNormSpec, RopeContext,
    RopeDialect, RopeScaling, RopeSpec, limits, read_rope,
};
use crate::layers::{QkvNames, RotaryRows, WeightNames};

/// The names that most families use.
pub(super) const NAMES: WeightNames = WeightNames {
    base_prefix: "model.",
    embedding: "model.embed_tokens",
    embedding_norm: "model.embed_norm",
    final_norm: "model.norm",
    output_head: "lm_head",
    layers: "model.layers",
    mixer_norm: "input_layernorm",
    qkv: QkvNames::Separate { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
    rotary_rows: RotaryRows::Halves,
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    attention_output: "self_attn.o_proj",
    ffn_norm: "post_attention_layernorm",
    gate_up: None,
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    activation: "mlp.act_fn",
    derived: &["rotary_emb.inv_freq"],
    other_inputs: &[],
};

/// What a family fixes, whatever its files say, and what it takes where they say nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    /// The field of the norms' epsilon and its default.
    pub(super) norm_eps: (&'static str, f64),
    pub(super) norm_kind: NormKind,
    pub(super) norm_weight: NormWeight,
    pub(super) placement: NormPlacement,
    pub(super) qk_norm: Option<QkNormScope>,
    pub(super) ffn: FfnDialect,
    /// Where `tie_word_embeddings` is absent.
    pub(super) output_head: OutputHead,
    pub(super) rope: RopeDialect,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum FfnDialect {
    /// SwiGLU.
    Gated,
    /// Without a gate: the activation, and what `hidden_act` calls it.
    Plain(Activation, &'static str),
}

/// Which linear layers have one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Biases {
    pub(super) qkv: Bias,
    pub(super) output: Bias,
    pub(super) mlp: Bias,
}

impl Dialect {
    pub(super) const LLAMA: Self = Self {
        norm_eps: ("rms_norm_eps", 1e-6),
        norm_kind: NormKind::Rms,
        norm_weight: NormWeight::Stored,
        placement: NormPlacement::Pre,
        qk_norm: None,
        ffn: FfnDialect::Gated,
        output_head: OutputHead::Separate,
        rope: RopeDialect::LLAMA,
    };
}

impl Biases {
    pub(super) const NONE: Self = Self { qkv: Bias::Absent, output: Bias::Absent, mlp: Bias::Absent };

    /// As `attention_bias` and `mlp_bias` say.
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, ModelError> {
        let attention = Bias::from(fields.flag("attention_bias", false)?);
        Ok(Self { qkv: attention, output: attention, mlp: fields.flag("mlp_bias", false)?.into() })
    }

    /// As `attention_bias` says, for a family whose feed-forward network never has one.
    pub(super) fn read_attention(fields: &mut Fields<'_>) -> Result<Self, ModelError> {
        fields.neutral("mlp_bias", &[false.into()], "this architecture's feed-forward network has no biases")?;
        Self::read(fields)
    }
}

/// A decoder whose layers are all alike and attend to everything; a family changes its layers afterwards.
pub(super) fn read(fields: &mut Fields<'_>, dialect: &Dialect, biases: Biases) -> Result<DecoderSpec, ModelError> {
    let vocab_size = fields.count("vocab_size", limits::VOCAB_SIZE)?;
    let hidden_size = fields.count("hidden_size", limits::HIDDEN_SIZE)?;
    let num_layers = fields.count("num_hidden_layers", limits::NUM_LAYERS)?;
    let written_max_position = fields.count("max_position_embeddings", limits::MAX_POSITION)?;
    let attention = read_attention(fields, hidden_size, dialect, biases)?;
    fields.neutral("max_sequence_length", &[written_max_position.into()], "it contradicts max_position_embeddings")?;
    fields.neutral("rope_interleaved", &[false.into()], "only the half-split rotary form is served")?;
    fields.neutral("use_mrope", &[false.into()], "only one-dimensional positions are served")?;
    let norm = read_norm(fields, dialect)?;
    let max_position = reach(&attention.position, written_max_position);
    let layer = LayerSpec {
        ffn: read_ffn(fields, dialect.ffn, biases.mlp)?,
        norm,
        placement: dialect.placement,
        mixer: MixerSpec::Attention(attention),
    };
    Ok(DecoderSpec {
        vocab_size,
        input_vocab_size: vocab_size,
        hidden_size,
        output_head: read_output_head(fields, dialect.output_head)?,
        max_position,
        eos_token_ids: fields.token_ids("eos_token_id", vocab_size, limits::MAX_EOS_TOKENS)?,
        bos_token_id: fields.token_ids("bos_token_id", vocab_size, 1)?.first().copied(),
        embedding_norm: None,
        final_norm: norm,
        layers: vec![layer; num_layers],
    })
}

pub(super) fn read_output_head(fields: &mut Fields<'_>, default: OutputHead) -> Result<OutputHead, ModelError> {
    let tied = fields.flag("tie_word_embeddings", default == OutputHead::Tied)?;
    Ok(if tied { OutputHead::Tied } else { OutputHead::Separate })
}

fn read_norm(fields: &mut Fields<'_>, dialect: &Dialect) -> Result<NormSpec, ModelError> {
    let (key, default) = dialect.norm_eps;
    let eps = fields.optional_number(key, limits::NORM_EPS)?.unwrap_or(default) as f32;
    Ok(NormSpec { kind: dialect.norm_kind, weight: dialect.norm_weight, eps })
}

fn read_attention(
    fields: &mut Fields<'_>,
    hidden_size: usize,
    dialect: &Dialect,
    biases: Biases,
) -> Result<AttentionSpec, ModelError> {
    let num_heads = fields.count("num_attention_heads", limits::NUM_HEADS)?;
    let num_kv_heads = fields.optional_count("num_key_value_heads", limits::NUM_HEADS)?.unwrap_or(num_heads);
    if !num_heads.is_multiple_of(num_kv_heads) {
        let problem = format!("{num_kv_heads} does not divide the {num_heads} attention heads");
        return Err(fields.refuse("num_key_value_heads", problem));
    }
    let head_dim = match fields.optional_count("head_dim", limits::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None => split_into_heads(fields, "num_attention_heads", hidden_size, num_heads)?,
    };
    let max_position = fields.count("max_position_embeddings", limits::MAX_POSITION)?;
    let (rope, temperature) = read_rope(fields, RopeContext { head_dim, max_position, dialect: dialect.rope })?;
    let norm = read_norm(fields, dialect)?;
    Ok(AttentionSpec {
        num_heads,
        num_kv_heads,
        head_dim,
        qkv_bias: biases.qkv,
        output_bias: biases.output,
        qk_norm: dialect.qk_norm.map(|scope| QkNormSpec { scope, norm }),
        scale: default_scale(head_dim),
        direction: Direction::Causal,
        window: None,
        position: PositionSpec::Rope(rope),
        temperature,
    })
}

/// The size of a head where no field gives it; `key` holds `num_heads`.
pub(super) fn split_into_heads(
    fields: &Fields<'_>,
    key: &str,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, ModelError> {
    if !hidden_size.is_multiple_of(num_heads) {
        let problem = format!("{num_heads} does not divide the hidden size {hidden_size}, and head_dim is absent");
        return Err(fields.refuse(key, problem));
    }
    let head_dim = hidden_size / num_heads;
    if !limits::HEAD_DIM.contains(&head_dim) {
        let (least, most) = limits::HEAD_DIM.into_inner();
        let problem = format!("{num_heads} heads of {head_dim} elements each; heads of {least} to {most} are served");
        return Err(fields.refuse(key, problem));
    }
    Ok(head_dim)
}

pub(super) fn default_scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

fn read_ffn(fields: &mut Fields<'_>, dialect: FfnDialect, bias: Bias) -> Result<FfnSpec, ModelError> {
    let intermediate_size = fields.count("intermediate_size", limits::INTERMEDIATE_SIZE)?;
    let (names, ffn): (&[&str], _) = match dialect {
        FfnDialect::Gated => {
            (&["silu", "swish"], FfnSpec::Gated { intermediate_size, activation: GateActivation::Silu, bias })
        }
        FfnDialect::Plain(activation, name) => (&[name], FfnSpec::Plain { intermediate_size, activation, bias }),
    };
    match fields.text("hidden_act")? {
        Some(other) if !names.contains(&other) => {
            Err(fields.refuse("hidden_act", format!("{other:.80} is not supported; supported: {}", names[0])))
        }
        _ => Ok(ffn),
    }
}

/// The activation that `key` names, of an encoder; GELU where it is absent.
pub(super) fn read_activation(fields: &mut Fields<'_>, key: &str) -> Result<Activation, ModelError> {
    match fields.text(key)?.unwrap_or("gelu") {
        "gelu" => Ok(Activation::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        "tanh" => Ok(Activation::Tanh),
        other => {
            let supported = "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh";
            Err(fields.refuse(key, format!("{other:.80} is not supported; supported: {supported}")))
        }
    }
}

/// As [`read_activation`], of a gate.
pub(super) fn read_gate_activation(fields: &mut Fields<'_>, key: &str) -> Result<GateActivation, ModelError> {
    match read_activation(fields, key)? {
        Activation::GeluErf => Ok(GateActivation::GeluErf),
        Activation::GeluTanh => Ok(GateActivation::GeluTanh),
        Activation::Silu => Ok(GateActivation::Silu),
        _ => Err(fields.refuse(key, "not supported for a gate; supported: gelu, gelu_pytorch_tanh, silu")),
    }
}

/// Gives each layer the window that `layer_types` says, or without that field `window` to those that `slides` picks.
pub(super) fn read_windows(
    fields: &mut Fields<'_>,
    spec: &mut DecoderSpec,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    let types = fields.per_layer("layer_types", spec.layers.len())?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let slides = match types.map(|types| &types[index]) {
            None => slides(index),
            Some(Value::String(kind)) if kind == "sliding_attention" => true,
            Some(Value::String(kind)) if kind == "full_attention" => false,
            Some(_) => {
                let problem = format!("layer {index} must be full_attention or sliding_attention");
                return Err(fields.refuse("layer_types", problem));
            }
        };
        if slides && window.is_none() {
            let problem = format!("layer {index} is sliding_attention, but no window is set: full_attention?");
            return Err(fields.refuse("layer_types", problem));
        }
        if let Some(attention) = layer.attention_mut() {
            attention.window = window.filter(|_| slides);
        }
    }
    Ok(())
}

/// The window of the families where `use_sliding_window` decides whether `sliding_window` means anything.
pub(super) fn read_switched_window(fields: &mut Fields<'_>) -> Result<Option<usize>, ModelError> {
    let used = fields.flag("use_sliding_window", false)?;
    let window = fields.optional_count("sliding_window", limits::WINDOW)?;
    Ok(window.filter(|_| used))
}

/// YaRN states how far it stretches the original context; some configurations still write the original as the maximum.
pub(super) fn reach(position: &PositionSpec, written_max_position: usize) -> usize {
    match position {
        PositionSpec::Rope(RopeSpec { scaling: RopeScaling::Yarn(yarn), .. }) => {
            let stretched = (yarn.original_max_position as f64 * yarn.factor) as usize;
            stretched.clamp(written_max_position, *limits::MAX_POSITION.end())
        }
        _ => written_max_position,
    }
}
