//! ModernBERT: Warner et al. 2024, arXiv:2412.13663. Norms come first and have no bias, the feed-forward network is gated,
//! and layers that see everything alternate with layers that see a window, each kind with rotary positions of its own.

use serde_json::Value;

use super::common::{self, NAMES as DECODER_NAMES};
use crate::ModelError;
use crate::config::{
    AttentionSpec, Bias, ClassifierSpec, Direction, EncoderSpec, FfnSpec, Fields, LayerSpec, MixerSpec, NormKind,
    NormPlacement, NormSpec, NormWeight, Pooling, PositionSpec, RopeContext, RopeDialect, RopeSpec, limits,
    read_labels, read_rope_object, read_score_activation,
};
use crate::layers::{ClassifierNames, EncoderNames, QkvNames, WeightNames};

pub(super) const NAMES: EncoderNames = EncoderNames {
    block: WeightNames {
        embedding: "model.embeddings.tok_embeddings",
        embedding_norm: "model.embeddings.norm",
        final_norm: "model.final_norm",
        mixer_norm: "attn_norm",
        qkv: QkvNames::Stacked("attn.Wqkv"),
        attention_output: "attn.Wo",
        ffn_norm: "mlp_norm",
        gate_up: Some("mlp.Wi"),
        down: "mlp.Wo",
        ..DECODER_NAMES
    },
    position: "",
    token_type: "",
    classifier: ClassifierNames { dense: "head.dense", norm: "head.norm", output: "classifier" },
    unused: &["head.", "decoder.", "classifier.", "rotary_emb."],
};

pub(super) fn read(fields: &mut Fields<'_>) -> Result<EncoderSpec, ModelError> {
    // Of a classifier, which a checkpoint without one may still describe.
    fields.ignore(&["classifier_activation", "classifier_bias", "classifier_pooling"]);
    read_body(fields)
}

pub(super) fn read_classifier(fields: &mut Fields<'_>) -> Result<EncoderSpec, ModelError> {
    let labels = read_labels(fields)?;
    let scores = read_score_activation(fields, labels.len())?;
    let pooling = match fields.text("classifier_pooling")?.unwrap_or("cls") {
        "cls" => Pooling::First,
        "mean" => Pooling::Mean,
        other => {
            let problem = format!("{other:.80} is not supported; supported: cls, mean");
            return Err(fields.refuse("classifier_pooling", problem));
        }
    };
    let classifier = ClassifierSpec {
        labels,
        pooling,
        dense: fields.flag("classifier_bias", false)?.into(),
        activation: common::read_activation(fields, "classifier_activation")?,
        norm: Some(read_norm(fields)?),
        scores,
    };
    Ok(EncoderSpec { classifier: Some(classifier), ..read_body(fields)? })
}

fn read_body(fields: &mut Fields<'_>) -> Result<EncoderSpec, ModelError> {
    let hidden_size = fields.count("hidden_size", limits::HIDDEN_SIZE)?;
    let num_layers = fields.count("num_hidden_layers", limits::NUM_LAYERS)?;
    let norm = read_norm(fields)?;
    let ffn = FfnSpec::Gated {
        intermediate_size: fields.count("intermediate_size", limits::INTERMEDIATE_SIZE)?,
        activation: common::read_gate_activation(fields, "hidden_activation")?,
        bias: fields.flag("mlp_bias", false)?.into(),
    };
    let layer = |index: usize, attention: &AttentionSpec| LayerSpec {
        mixer: MixerSpec::Attention(attention.clone()),
        ffn: ffn.clone(),
        norm,
        placement: if index == 0 { NormPlacement::PreFfnOnly } else { NormPlacement::Pre },
    };
    let kinds = read_attention(fields, hidden_size)?;
    let slides = read_sliding_layers(fields, num_layers)?;
    let layers = slides.iter().enumerate().map(|(index, &slides)| layer(index, &kinds[usize::from(slides)])).collect();
    ignore_training(fields);
    Ok(EncoderSpec {
        vocab_size: fields.count("vocab_size", limits::VOCAB_SIZE)?,
        hidden_size,
        max_position: fields.count("max_position_embeddings", limits::MAX_POSITION)?,
        position_table: None,
        token_types: 0,
        embedding_norm: Some(norm),
        layers,
        final_norm: Some(norm),
        classifier: None,
    })
}

fn read_norm(fields: &mut Fields<'_>) -> Result<NormSpec, ModelError> {
    let eps = fields.optional_number("norm_eps", limits::NORM_EPS)?.unwrap_or(1e-5) as f32;
    let kind = if fields.flag("norm_bias", false)? { NormKind::Layer } else { NormKind::LayerUnbiased };
    Ok(NormSpec { kind, weight: NormWeight::Stored, eps })
}

/// Of the layers that see everything, and of those that see a window.
fn read_attention(fields: &mut Fields<'_>, hidden_size: usize) -> Result<[AttentionSpec; 2], ModelError> {
    let num_heads = fields.count("num_attention_heads", limits::NUM_HEADS)?;
    let head_dim = common::split_into_heads(fields, "num_attention_heads", hidden_size, num_heads)?;
    let bias = Bias::from(fields.flag("attention_bias", false)?);
    let [global, local] = read_ropes(fields, head_dim)?;
    // Both sides together, so that half of it, and the token itself, are seen on each.
    let reach = fields.optional_count("local_attention", limits::WINDOW)?.unwrap_or(128) / 2;
    let attention = |rope, window| AttentionSpec {
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: None,
        scale: common::default_scale(head_dim),
        direction: Direction::Both,
        window,
        position: PositionSpec::Rope(rope),
        temperature: None,
    };
    Ok([attention(global, None), attention(local, Some(reach + 1))])
}

/// In both key styles: a base for each kind of layer, or an object for each.
fn read_ropes(fields: &mut Fields<'_>, head_dim: usize) -> Result<[RopeSpec; 2], ModelError> {
    let max_position = fields.count("max_position_embeddings", limits::MAX_POSITION)?;
    let written = [
        fields.optional_number("global_rope_theta", limits::ROPE_THETA)?,
        fields.optional_number("local_rope_theta", limits::ROPE_THETA)?,
    ];
    fields.neutral("rope_scaling", &[], "give the scaling of each kind of layer in rope_parameters")?;
    let mut objects = fields.object("rope_parameters")?;
    let mut read = |kind: &str, written: Option<f64>, default: f64| {
        let theta = written.unwrap_or(default);
        let dialect = RopeDialect { theta, ..RopeDialect::LLAMA };
        let context = RopeContext { head_dim, max_position, dialect };
        let object = objects.as_mut().map(|objects| objects.object(kind)).transpose()?.flatten();
        read_rope_object(fields, object, context)
    };
    let ropes = [read("full_attention", written[0], 160_000.0)?, read("sliding_attention", written[1], 10_000.0)?];
    objects.map_or(Ok(()), Fields::finish)?;
    Ok(ropes)
}

/// For each layer, whether it sees a window only.
fn read_sliding_layers(fields: &mut Fields<'_>, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    let every = fields.optional_count("global_attn_every_n_layers", limits::NUM_LAYERS)?.unwrap_or(3);
    let Some(types) = fields.per_layer("layer_types", num_layers)? else {
        return Ok((0..num_layers).map(|index| !index.is_multiple_of(every)).collect());
    };
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(fields.refuse("layer_types", "each layer must be full_attention or sliding_attention")),
    };
    types.iter().map(slides).collect()
}

fn ignore_training(fields: &mut Fields<'_>) {
    fields.ignore(&["classifier_dropout", "embedding_dropout", "mlp_dropout", "initializer_cutoff_factor"]);
    fields.ignore(&["decoder_bias", "sparse_prediction", "sparse_pred_ignore_index", "repad_logits_with_grad"]);
    fields.ignore(&["deterministic_flash_attn", "reference_compile", "tie_word_embeddings"]);
    fields.ignore(&["bos_token_id", "cls_token_id", "eos_token_id"]);
    // Written by exporters of this architecture, which never reads them.
    fields.ignore(&["layer_norm_eps", "position_embedding_type"]);
}
