//! The families. One short file each: how its configuration reads and what it calls its weights. No arithmetic.
//!
//! To add one, write its file, add a line to [`ARCHITECTURES`] and a fixture to `tests/fixtures/make.py`.

mod llama;

use crate::ModelError;
use crate::config::{ConfigFile, DecoderSpec, Fields};
use crate::layers::WeightNames;

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
    Architecture { name: "LlamaForCausalLM", family: "llama", read: llama::read_llama, names: llama::NAMES },
    Architecture { name: "MistralForCausalLM", family: "mistral", read: llama::read_mistral, names: llama::NAMES },
    Architecture { name: "Qwen2ForCausalLM", family: "qwen2", read: llama::read_qwen2, names: llama::NAMES },
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
