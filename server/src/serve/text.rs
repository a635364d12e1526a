//! The text side of a model: from its own files, from another model's, or from a template that somebody wrote.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use passerelle::config::{HubConfig, ModelConfig, Reasoning, ToolCalls};
use passerelle::hub::Wanted;
use passerelle::text::{AnswerFormat, ReasoningFormat, TextError, TextModel, ToolFormat};
use passerelle_models::CheckpointFiles;

use super::gguf;
use super::models::find_files;

/// The largest tokenizer or template that is read.
const MAX_TEXT_FILE_BYTES: u64 = 256 << 20;
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// What errors call one that the configuration names.
const CHAT_TEMPLATE_KEY: &str = "chat_template (--chat-template)";

/// A tokenizer that the configuration names replaces the model's own, with everything that belongs to it; a template that
/// it names replaces any other.
pub(crate) fn load(model: &ModelConfig, files: &CheckpointFiles, hub: &HubConfig) -> Result<TextModel> {
    let other = model.tokenizer.as_ref().map(|source| find_files(source, Wanted::Tokenizer, hub)).transpose();
    let other = other.context("tokenizer (--tokenizer)")?;
    let template = model.chat_template.as_deref().map(read_template).transpose()?;
    let read = |file: &str| match (&template, &other) {
        (Some(template), _) if file == CHAT_TEMPLATE => Ok(Some(template.clone())),
        (None, Some(other)) if file == CHAT_TEMPLATE => Ok(read(files, file)?.or(read(other, file)?)),
        (_, Some(other)) => read(other, file),
        (_, None) => read(files, file),
    };
    let source = other.as_ref().unwrap_or(files);
    let mut text = TextModel::load(read).map_err(|error| blame(error, model.chat_template.as_deref(), source))?;
    text.answers = answers(model, text.answers);
    if let Some(other) = &other {
        ensure!(!text.tokenizer.is_absent(), "tokenizer (--tokenizer): {} holds none", other.root().display());
    }
    Ok(text)
}

/// Of a model that is served: where its weights cannot be loaded, that alone is told.
pub(super) fn warn_of_none(model: &str, text: &TextModel) {
    if text.tokenizer.is_absent() {
        tracing::warn!(model, "no tokenizer: prompts are token ids alone; --tokenizer SOURCE gives one");
    }
}

/// With the file that cannot be used, wherever that was read from. `template`: the configuration's, if it names one.
fn blame(error: TextError, template: Option<&Path>, source: &CheckpointFiles) -> anyhow::Error {
    match (error, template) {
        (TextError::File { file, problem }, Some(template)) if file == CHAT_TEMPLATE => {
            anyhow!("{CHAT_TEMPLATE_KEY}: {}: {problem}", template.display())
        }
        (error, _) => match source.gguf_metadata() {
            // It has none of the files that a tokenizer is read from, and is itself what cannot be read.
            Err(damaged) => damaged.into(),
            Ok(_) => anyhow::Error::new(error).context(source.root().display().to_string()),
        },
    }
}

/// That of a checkpoint whose weights are elsewhere.
#[cfg(feature = "upstream")]
pub(super) fn load_alone(files: &CheckpointFiles) -> Result<TextModel> {
    TextModel::load(|file| read(files, file)).with_context(|| files.root().display().to_string())
}

fn read(files: &CheckpointFiles, file: &str) -> io::Result<Option<Vec<u8>>> {
    if let Some(content) = gguf::text_file(files, file)? {
        return Ok(Some(content));
    }
    let content = files.read(file, MAX_TEXT_FILE_BYTES).map_err(io::Error::other)?;
    Ok(content.map(Cow::into_owned))
}

fn read_template(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{CHAT_TEMPLATE_KEY}: {}", path.display()))
}

/// What the configuration says wins over what was found.
fn answers(model: &ModelConfig, found: AnswerFormat) -> AnswerFormat {
    let tools = match model.tool_calls {
        ToolCalls::Auto => found.tools,
        ToolCalls::Hermes => ToolFormat::Hermes,
        ToolCalls::Llama3 => ToolFormat::Llama3,
        ToolCalls::Mistral => ToolFormat::Mistral,
        ToolCalls::MistralNamed => ToolFormat::MistralNamed,
        ToolCalls::Apertus => ToolFormat::Apertus,
        ToolCalls::Nemotron => ToolFormat::Nemotron,
        ToolCalls::Json => ToolFormat::Json,
    };
    let reasoning = match model.reasoning {
        Reasoning::Auto => found.reasoning,
        Reasoning::Off => None,
        Reasoning::Think => Some(ReasoningFormat::Think),
        Reasoning::Mistral => Some(ReasoningFormat::Mistral),
        Reasoning::Apertus => Some(ReasoningFormat::Apertus),
    };
    AnswerFormat { tools, reasoning }
}
