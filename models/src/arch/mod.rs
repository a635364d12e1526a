//! The families. One short file each: how its configuration reads and what it calls its weights. No arithmetic.
//!
//! To add one, write its file, add a line to [`ARCHITECTURES`] and a fixture to `tests/fixtures/make.py`.

mod apertus;
mod bert;
mod bloom;
mod common;
mod encoders;
pub(crate) mod gguf;
mod llama;
mod mistral;
mod modernbert;
mod nemotron;
mod olmo2;
mod qwen;
mod smollm3;

use crate::ModelError;
use crate::config::{ConfigFile, DecoderSpec, Fields};
use crate::layers::WeightNames;
use common::NAMES;
pub(crate) use encoders::{EncoderArchitecture, is_encoder, read_encoder};

/// A class of checkpoint that can be served.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// As in the `architectures` field of `config.json`.
    pub(crate) name: &'static str,
    pub(crate) family: &'static str,
    pub(crate) read: ReadDecoder,
    pub(crate) names: WeightNames,
    /// Fields beside `text_config` that say how other inputs than text are read, which is not served.
    pub(crate) other_inputs: &'static [&'static str],
}

type ReadDecoder = fn(&mut Fields<'_>) -> Result<DecoderSpec, ModelError>;

const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        other_inputs: apertus::MEDIA_FIELDS,
        ..text("Apertus1p5ForConditionalGeneration", "apertus", apertus::read, apertus::MULTIMODAL_NAMES)
    },
    text("Apertus1p5TextForCausalLM", "apertus", apertus::read, apertus::APERTUS_NAMES),
    text("ApertusForCausalLM", "apertus", apertus::read, apertus::APERTUS_NAMES),
    text("BloomForCausalLM", "bloom", bloom::read, bloom::BLOOM_NAMES),
    text("LlamaForCausalLM", "llama", llama::read, NAMES),
    text("Ministral3ForCausalLM", "ministral3", mistral::read_ministral3, NAMES),
    Architecture {
        other_inputs: mistral::IMAGE_FIELDS,
        ..text("Mistral3ForConditionalGeneration", "mistral3", mistral::read_mistral3, mistral::MISTRAL3_NAMES)
    },
    text("MinistralForCausalLM", "ministral", mistral::read_ministral, NAMES),
    text("MistralForCausalLM", "mistral", mistral::read, NAMES),
    text("NemotronForCausalLM", "nemotron", nemotron::read, NAMES),
    text("Olmo2ForCausalLM", "olmo2", olmo2::read, olmo2::OLMO2_NAMES),
    text("Qwen2ForCausalLM", "qwen2", qwen::read_qwen2, NAMES),
    text("Qwen3ForCausalLM", "qwen3", qwen::read_qwen3, NAMES),
    text("SmolLM3ForCausalLM", "smollm3", smollm3::read, NAMES),
];

const fn text(name: &'static str, family: &'static str, read: ReadDecoder, names: WeightNames) -> Architecture {
    Architecture { name, family, read, names, other_inputs: &[] }
}

/// The architecture that `config` names, or an error that lists the supported ones.
pub(crate) fn find(config: &ConfigFile) -> Result<&'static Architecture, ModelError> {
    let wanted = config.architecture()?;
    ARCHITECTURES.iter().find(|architecture| architecture.name == wanted).ok_or_else(|| {
        let supported: Vec<_> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        let why = missing_piece(wanted)
            .map(|piece| format!(" (it has {piece}; vLLM as an upstream serves it)"))
            .unwrap_or_default();
        let problem = format!("{wanted:.80} is not supported{why}; supported: {}", supported.join(", "));
        config.refuse("architectures", problem)
    })
}

/// What the layers of a well-known family need that is not served.
fn missing_piece(class: &str) -> Option<&'static str> {
    const PIECES: [(&str, &[&str]); 4] = [
        ("layers with a recurrent state", &["NemotronH", "Qwen3Next", "Qwen3_5", "GraniteMoeHybrid", "Lfm2"]),
        ("latent attention", &["DeepseekV2", "DeepseekV3", "Mistral4", "MistralLarge3", "Glm4MoeLite"]),
        ("mixtures of experts", &["Mixtral", "Qwen3Moe", "GptOss", "Glm4Moe", "Llama4"]),
        ("soft-caps or norms on both sides of a block", &["Gemma"]),
    ];
    let matching = |prefixes: &[&str]| prefixes.iter().any(|prefix| class.starts_with(prefix));
    PIECES.iter().find(|(_, prefixes)| matching(prefixes)).map(|(piece, _)| *piece)
}

#[cfg(test)]
mod tests;
