//! Mistral: Jiang et al. 2023, arXiv:2310.06825. Ministral 3: the card of mistralai/Ministral-3-8B-Base-2512, YaRN with a
//! temperature that grows with the position.

use super::common::{self, Biases, Dialect};
use crate::ModelError;
use crate::config::{DecoderSpec, Fields, RopeDialect, Temperature, limits};

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("sliding_window")?;
    read_dialect(fields, &Dialect::LLAMA)
}

pub(super) fn read_ministral3(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("head_dim")?;
    // Where it is absent, the implementations fill in a whole scaling.
    fields.require_one_of(&["rope_parameters"])?;
    let rope = RopeDialect { temperature: Temperature::Honoured, ..RopeDialect::LLAMA };
    read_dialect(fields, &Dialect { norm_eps: ("rms_norm_eps", 1e-5), rope, ..Dialect::LLAMA })
}

/// One window for all layers.
fn read_dialect(fields: &mut Fields<'_>, dialect: &Dialect) -> Result<DecoderSpec, ModelError> {
    fields.require("num_key_value_heads")?;
    for key in ["attention_bias", "mlp_bias"] {
        fields.neutral(key, &[false.into()], "this architecture has no biases")?;
    }
    let mut spec = common::read(fields, dialect, Biases::NONE)?;
    let window = fields.optional_count("sliding_window", limits::WINDOW)?;
    common::read_windows(fields, &mut spec, (window, |_| window.is_some()))?;
    match spec.layers.iter().position(|layer| layer.attention().window != window) {
        Some(layer) => Err(fields.refuse("layer_types", format!("layer {layer} contradicts sliding_window"))),
        None => Ok(spec),
    }
}
