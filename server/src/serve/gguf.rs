//! The text side of a GGUF file: which of its keys say what about the tokens.

use std::collections::BTreeMap;
use std::io;

use passerelle::text::Vocabulary;
use passerelle_models::{CheckpointFiles, GgufMetadata, ModelError};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TEMPLATE: &str = "tokenizer.chat_template";
const NAMED_TEMPLATES: &str = "tokenizer.chat_templates";

/// What other checkpoints keep in the file `file`, made of the metadata. `None` where the checkpoint is no GGUF file,
/// and for files that have no part in it.
pub(super) fn text_file(files: &CheckpointFiles, file: &str) -> io::Result<Option<Vec<u8>>> {
    let content = match file {
        "tokenizer.json" => Vocabulary::tokenizer_json,
        "tokenizer_config.json" => Vocabulary::config_json,
        _ => return Ok(None),
    };
    let Some(metadata) = files.gguf_metadata().map_err(io::Error::other)? else { return Ok(None) };
    if lacks_tokenizer(&metadata).map_err(io::Error::other)? {
        return Ok(None);
    }
    let vocabulary = read(&metadata).map_err(io::Error::other)?;
    content(&vocabulary).map(Some).map_err(io::Error::other)
}

/// Converters can leave the tokenizer out, and then say nothing or say so.
fn lacks_tokenizer(metadata: &GgufMetadata) -> Result<bool, ModelError> {
    Ok(match metadata.text(MODEL)? {
        None => !metadata.contains(TOKENS),
        Some(model) => matches!(model, "none" | "no_vocab"),
    })
}

fn read(metadata: &GgufMetadata) -> Result<Vocabulary, ModelError> {
    let token = |name: &str| metadata.count(&format!("tokenizer.ggml.{name}_token_id"));
    Ok(Vocabulary {
        model: metadata.text(MODEL)?.unwrap_or_default().to_owned(),
        pre: metadata.text("tokenizer.ggml.pre")?.map(str::to_owned),
        tokens: metadata.texts(TOKENS)?.unwrap_or_default(),
        types: metadata.numbers("tokenizer.ggml.token_type")?,
        scores: metadata.numbers("tokenizer.ggml.scores")?,
        merges: metadata.texts("tokenizer.ggml.merges")?.unwrap_or_default(),
        bos: token("bos")?,
        eos: token("eos")?,
        unknown: token("unknown")?,
        padding: token("padding")?,
        add_bos: metadata.flag("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.flag("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.flag("tokenizer.ggml.add_space_prefix")?,
        templates: templates(metadata)?,
    })
}

/// The template of the file, as `default`, and those that it lists by name.
fn templates(metadata: &GgufMetadata) -> Result<BTreeMap<String, String>, ModelError> {
    let mut templates = BTreeMap::new();
    for name in metadata.texts(NAMED_TEMPLATES)?.unwrap_or_default() {
        if let Some(source) = metadata.text(&format!("{TEMPLATE}.{name}"))? {
            templates.insert(name, source.to_owned());
        }
    }
    if let Some(source) = metadata.text(TEMPLATE)? {
        templates.insert("default".to_owned(), source.to_owned());
    }
    Ok(templates)
}
