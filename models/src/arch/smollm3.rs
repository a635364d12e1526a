//! SmolLM3: the card of HuggingFaceTB/SmolLM3-3B. Llama in which some layers do not encode positions.

use super::common::{self, Biases, Dialect};
use crate::ModelError;
use crate::config::{DecoderSpec, Fields, OutputHead, PositionSpec, RopeDialect, limits};

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    fields.require("num_key_value_heads")?;
    // Training in slices changed nothing that this architecture's implementation computes.
    fields.ignore(&["pretraining_tp"]);
    let biases = Biases::read(fields)?;
    let rope = RopeDialect { theta: 2_000_000.0, ..RopeDialect::LLAMA };
    let dialect = Dialect { output_head: OutputHead::Tied, rope, ..Dialect::LLAMA };
    let mut spec = common::read(fields, &dialect, biases)?;
    let unencoded = read_unencoded(fields, spec.layers.len())?;
    for (layer, _) in spec.layers.iter_mut().zip(&unencoded).filter(|(_, unencoded)| **unencoded) {
        if let Some(attention) = layer.attention_mut() {
            attention.position = PositionSpec::Unencoded;
        }
    }
    let window = common::read_switched_window(fields)?;
    // No published configuration says what this is for here; where windows are used, layer_types decides.
    fields.optional_count("max_window_layers", 0..=*limits::NUM_LAYERS.end())?;
    common::read_windows(fields, &mut spec, window, |index| window.is_some() && unencoded[index])?;
    Ok(spec)
}

/// Whether each layer lacks rotary positions: `no_rope_layers` holds a 1 for each layer that has them. Without the list,
/// every `no_rope_layer_interval`th layer lacks them.
fn read_unencoded(fields: &mut Fields<'_>, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    const DEFAULT_INTERVAL: usize = 4;
    let interval = fields.optional_count("no_rope_layer_interval", limits::NUM_LAYERS)?.unwrap_or(DEFAULT_INTERVAL);
    let Some(list) = fields.per_layer("no_rope_layers", num_layers)? else {
        return Ok((1..=num_layers).map(|layer| layer.is_multiple_of(interval)).collect());
    };
    list.iter()
        .map(|value| match value.as_u64() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(fields.refuse("no_rope_layers", "each element must be 0 or 1")),
        })
        .collect()
}
