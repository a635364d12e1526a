//! The models that are served, and what may be a name.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::checked::{EngineConfig, check_exists};
use super::{ActivationDtype, ConfigError, KvDtype, Reasoning, ToolCalls, WeightDtype, WrittenModel};

/// Names stand in URLs (`/v1/models/NAME`) and metric labels.
const MAX_NAME_BYTES: usize = 200;

#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub name: String,
    pub source: String,
    pub dtype: WeightDtype,
    pub kv_dtype: KvDtype,
    pub activation_dtype: ActivationDtype,
    /// `None`: what the checkpoint allows.
    pub max_model_len: Option<usize>,
    /// `None`: the checkpoint's own.
    pub tokenizer: Option<String>,
    pub chat_template: Option<PathBuf>,
    pub tool_calls: ToolCalls,
    pub reasoning: Reasoning,
    /// The account that it belongs to; `None`: everybody may use it.
    pub account: Option<String>,
    /// One of `partitions`; `None`: it runs in the server's own process.
    pub partition: Option<String>,
}

impl ModelConfig {
    /// A model found in a folder: everything but its name and place is the engine's default.
    pub fn found(name: String, source: String, engine: &EngineConfig) -> Self {
        Self {
            name,
            source,
            dtype: engine.dtype,
            kv_dtype: engine.kv_dtype,
            activation_dtype: engine.activation_dtype,
            max_model_len: engine.max_model_len,
            tokenizer: engine.tokenizer.clone(),
            chat_template: engine.chat_template.clone(),
            tool_calls: ToolCalls::Auto,
            reasoning: Reasoning::Auto,
            account: None,
            partition: None,
        }
    }
}

pub(super) fn check_models(written: Vec<WrittenModel>, engine: &EngineConfig) -> Result<Vec<ModelConfig>, ConfigError> {
    let named = written.into_iter().map(|model| ModelConfig {
        name: model.name.unwrap_or_else(|| default_name(&model.source).to_owned()),
        dtype: model.dtype.unwrap_or(engine.dtype),
        kv_dtype: model.kv_dtype.unwrap_or(engine.kv_dtype),
        activation_dtype: model.activation_dtype.unwrap_or(engine.activation_dtype),
        max_model_len: model.max_model_len.map(usize::from).or(engine.max_model_len),
        tokenizer: model.tokenizer.or_else(|| engine.tokenizer.clone()),
        chat_template: model.chat_template.or_else(|| engine.chat_template.clone()),
        tool_calls: model.tool_calls.unwrap_or_default(),
        reasoning: model.reasoning.unwrap_or_default(),
        account: model.account,
        partition: model.partition,
        source: model.source,
    });
    let models: Vec<ModelConfig> = named.collect();
    check_names(&models)?;
    for (place, ModelConfig { name, chat_template, .. }) in models.iter().enumerate() {
        let Some(template) = chat_template else { continue };
        check_exists(&format!("models[{place}].chat_template of `{name}`"), template, Path::is_file)?;
    }
    Ok(models)
}

/// Every model has a name that requests can use, and no two have the same.
fn check_names(models: &[ModelConfig]) -> Result<(), ConfigError> {
    let mut names = HashSet::new();
    for (place, ModelConfig { name, .. }) in models.iter().enumerate() {
        let key = || format!("models[{place}].name (--model)");
        if !fits_as_name(name) {
            return Err(ConfigError::value(key(), no_name(name, "NAME=SOURCE")));
        }
        if !names.insert(name) {
            let problem = format!("two models are named `{name}`; give each its own with NAME=SOURCE");
            return Err(ConfigError::value(key(), problem));
        }
    }
    Ok(())
}

/// `./runs/step-900/` is `step-900`, `org/model@main` is `model`, `model.gguf` is `model`. Only a hub id has a revision:
/// in a path, `@` is part of the name.
pub(super) fn default_name(source: &str) -> &str {
    let is_path = source.starts_with(['.', '/']) || source.ends_with('/');
    let last = source.trim_end_matches('/').rsplit('/').next().unwrap_or(source);
    let last = if is_path { last } else { last.split_once('@').map_or(last, |(id, _)| id) };
    [".gguf", ".GGUF"].iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last)
}

pub(super) fn fits_as_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.chars().all(fits) && !name.starts_with(['.', '-'])
}

/// `name` or `name@revision`, as checkpoints of a folder are called.
pub fn fits_as_checkpoint(name: &str) -> bool {
    name.split_once('@')
        .map_or_else(|| fits_as_name(name), |(name, revision)| fits_as_name(name) && fits_as_name(revision))
}

/// What is said of one that does not fit. `written`: what stands for one that does.
pub(super) fn no_name(name: &str, written: &str) -> String {
    format!(
        "`{name}` is not a name; write {written} with letters, digits and - _ . : /, neither . nor - first, at most \
         {MAX_NAME_BYTES}"
    )
}
