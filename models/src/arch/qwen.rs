//! Qwen2: Yang et al. 2024, arXiv:2407.10671. Qwen3: Yang et al. 2025, arXiv:2505.09388, with a norm of every head of
//! queries and keys.

use super::common::{self, Biases, Dialect};
use crate::ModelError;
use crate::config::{Bias, DecoderSpec, Fields, QkNormScope, limits};

pub(super) fn read_qwen2(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    read(fields, &Dialect::LLAMA, Biases { qkv: Bias::Present, ..Biases::NONE })
}

pub(super) fn read_qwen3(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("head_dim")?;
    let biases = Biases::read_attention(fields)?;
    read(fields, &Dialect { qk_norm: Some(QkNormScope::Head), ..Dialect::LLAMA }, biases)
}

fn read(fields: &mut Fields<'_>, dialect: &Dialect, biases: Biases) -> Result<DecoderSpec, ModelError> {
    fields.require("num_key_value_heads")?;
    let mut spec = common::read(fields, dialect, biases)?;
    let window = common::read_switched_window(fields)?;
    // The first layers attend to everything.
    let first = fields.optional_count("max_window_layers", 0..=*limits::NUM_LAYERS.end())?;
    if window.is_some() {
        fields.require("max_window_layers")?;
    }
    let slides = |index| window.is_some() && first.is_some_and(|first| index >= first);
    common::read_windows(fields, &mut spec, window, slides)?;
    Ok(spec)
}
