//! Apertus: Hernández-Cano et al. 2025, arXiv:2509.14233. xIELU without a gate, and a norm of every head of queries and
//! keys. Version 1.5 reads more tokens than it writes: images and sound are ids above those of the output head. It is
//! published with what makes ids of images and sound (the card of swiss-ai/Apertus-v1.5-8B); its text is served, and
//! such ids are read.

use super::common::{self, Biases, Dialect, FfnDialect, NAMES};
use crate::ModelError;
use crate::config::{Activation, DecoderSpec, Fields, OutputHead, QkNormScope, RopeDialect};
use crate::layers::WeightNames;

pub(super) const APERTUS_NAMES: WeightNames =
    WeightNames { mixer_norm: "attention_layernorm", ffn_norm: "feedforward_layernorm", ..NAMES };

pub(super) const MULTIMODAL_NAMES: WeightNames = WeightNames {
    embedding: "model.language_model.embed_tokens",
    final_norm: "model.language_model.norm",
    layers: "model.language_model.layers",
    other_inputs: &["model.audio_tokenizer.", "model.vision_tokenizer."],
    ..APERTUS_NAMES
};

pub(super) const MEDIA_FIELDS: &[&str] =
    &["audio_config", "audio_token_id", "audio_token_offset", "image_token_id", "image_token_offset", "vision_config"];

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    // Where both are absent, the implementations fill in a whole scaling.
    fields.require_one_of(&["rope_parameters", "rope_scaling"])?;
    fields.neutral("post_norm", &[false.into()], "the norms of this architecture come first")?;
    fields.neutral("qk_norm", &[true.into()], "this architecture norms queries and keys")?;
    let biases = Biases::read_attention(fields)?;
    let dialect = Dialect {
        norm_eps: ("rms_norm_eps", 1e-5),
        qk_norm: Some(QkNormScope::Head),
        ffn: FfnDialect::Plain(Activation::Xielu, "xielu"),
        rope: RopeDialect { theta: 12_000_000.0, ..RopeDialect::LLAMA },
        ..Dialect::LLAMA
    };
    let mut spec = common::read(fields, &dialect, biases)?;
    common::read_windows(fields, &mut spec, None, |_| false)?;
    read_output_vocabulary(fields, &mut spec)?;
    Ok(spec)
}

fn read_output_vocabulary(fields: &mut Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    let key = "output_vocab_size";
    let Some(size) = fields.optional_count(key, 1..=spec.input_vocab_size)? else { return Ok(()) };
    if size != spec.input_vocab_size && spec.output_head == OutputHead::Tied {
        return Err(fields.refuse(key, "a head tied to the embeddings has as many rows as they have"));
    }
    if let Some(token) = spec.eos_token_ids.iter().find(|&&token| token as usize >= size) {
        return Err(fields.refuse("eos_token_id", format!("token {token} is outside the output vocabulary of {size}")));
    }
    spec.vocab_size = size;
    Ok(())
}
