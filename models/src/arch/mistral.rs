//! Mistral: Jiang et al. 2023, arXiv:2310.06825. Ministral: the same with windows in some layers. Ministral 3: the card of
//! mistralai/Ministral-3-8B-Base-2512, YaRN with a temperature that grows with the position. Mistral 3: either of them
//! inside a model that also reads images; its text is served.

use super::common::{self, Biases, Dialect, NAMES};
use crate::ModelError;
use crate::config::{DecoderSpec, Fields, RopeDialect, Temperature, limits};
use crate::layers::WeightNames;

pub(super) const MISTRAL3_NAMES: WeightNames = WeightNames {
    base_prefix: "language_model.",
    embedding: "language_model.model.embed_tokens",
    final_norm: "language_model.model.norm",
    output_head: "language_model.lm_head",
    layers: "language_model.model.layers",
    other_inputs: &["vision_tower.", "multi_modal_projector."],
    ..NAMES
};

pub(super) const IMAGE_FIELDS: &[&str] = &[
    "image_token_id",
    "image_token_index",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "spatial_merge_size",
    "vision_config",
    "vision_feature_layer",
];

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("sliding_window")?;
    let (spec, window) = read_windows(fields, &Dialect::LLAMA)?;
    one_window(fields, spec, window)
}

pub(super) fn read_ministral(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("sliding_window")?;
    Ok(read_windows(fields, &Dialect::LLAMA)?.0)
}

pub(super) fn read_mistral3(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    match fields.text("model_type")? {
        Some("mistral") => read(fields),
        Some("ministral3") => read_ministral3(fields),
        _ => Err(fields.refuse("model_type", "expected mistral or ministral3")),
    }
}

pub(super) fn read_ministral3(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("head_dim")?;
    // Where it is absent, the implementations fill in a whole scaling.
    fields.require_one_of(&["rope_parameters"])?;
    let rope = RopeDialect { temperature: Temperature::Honoured, ..RopeDialect::LLAMA };
    let dialect = Dialect { norm_eps: ("rms_norm_eps", 1e-5), rope, ..Dialect::LLAMA };
    let (spec, window) = read_windows(fields, &dialect)?;
    one_window(fields, spec, window)
}

/// The window is that of all layers, or of those that `layer_types` names.
fn read_windows(fields: &mut Fields<'_>, dialect: &Dialect) -> Result<(DecoderSpec, Option<usize>), ModelError> {
    fields.require("num_key_value_heads")?;
    for key in ["attention_bias", "mlp_bias"] {
        fields.neutral(key, &[false.into()], "this architecture has no biases")?;
    }
    let mut spec = common::read(fields, dialect, Biases::NONE)?;
    let window = fields.optional_count("sliding_window", limits::WINDOW)?;
    common::read_windows(fields, &mut spec, window, |_| window.is_some())?;
    Ok((spec, window))
}

/// The implementations of these families read past `layer_types`.
fn one_window(fields: &Fields<'_>, spec: DecoderSpec, window: Option<usize>) -> Result<DecoderSpec, ModelError> {
    match spec.layers.iter().position(|layer| layer.window() != window) {
        Some(layer) => Err(fields.refuse("layer_types", format!("layer {layer} contradicts sliding_window"))),
        None => Ok(spec),
    }
}
