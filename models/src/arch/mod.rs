//! The families. One short file each: how its configuration reads and what it calls its weights. No arithmetic.
//!
//! To add one, write its file, add a line to [`ARCHITECTURES`] and a fixture to `tests/fixtures/make.py`.

mod apertus;
mod bloom;
mod common;
mod llama;
mod mistral;
mod nemotron;
mod olmo2;
mod qwen;
mod smollm3;

use crate::ModelError;
use crate::config::{ConfigFile, DecoderSpec, Fields};
use crate::layers::WeightNames;
use common::NAMES;

/// A class of checkpoint that can be served.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// As in the `architectures` field of `config.json`.
    pub(crate) name: &'static str,
    pub(crate) family: &'static str,
    pub(crate) read: fn(&mut Fields<'_>) -> Result<DecoderSpec, ModelError>,
    pub(crate) names: WeightNames,
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "ApertusForCausalLM", family: "apertus", read: apertus::read, names: apertus::APERTUS_NAMES },
    Architecture { name: "BloomForCausalLM", family: "bloom", read: bloom::read, names: bloom::BLOOM_NAMES },
    Architecture { name: "LlamaForCausalLM", family: "llama", read: llama::read, names: NAMES },
    Architecture { name: "Ministral3ForCausalLM", family: "ministral3", read: mistral::read_ministral3, names: NAMES },
    Architecture { name: "MistralForCausalLM", family: "mistral", read: mistral::read, names: NAMES },
    Architecture { name: "NemotronForCausalLM", family: "nemotron", read: nemotron::read, names: NAMES },
    Architecture { name: "Olmo2ForCausalLM", family: "olmo2", read: olmo2::read, names: olmo2::OLMO2_NAMES },
    Architecture { name: "Qwen2ForCausalLM", family: "qwen2", read: qwen::read_qwen2, names: NAMES },
    Architecture { name: "Qwen3ForCausalLM", family: "qwen3", read: qwen::read_qwen3, names: NAMES },
    Architecture { name: "SmolLM3ForCausalLM", family: "smollm3", read: smollm3::read, names: NAMES },
];

/// The architecture that `config` names, or an error that lists the supported ones.
pub(crate) fn find(config: &ConfigFile) -> Result<&'static Architecture, ModelError> {
    let wanted = config.architecture()?;
    ARCHITECTURES.iter().find(|architecture| architecture.name == wanted).ok_or_else(|| {
        let supported: Vec<_> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        let problem = format!("{wanted:.80} is not supported; supported: {}", supported.join(", "));
        config.refuse("architectures", problem)
    })
}

#[cfg(test)]
mod tests;
