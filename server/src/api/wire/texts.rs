//! What the routes of encoders read alike: texts, and how they are cut.

use std::collections::BTreeMap;

use passerelle_models::TokenId;
use serde_json::Value;

use super::sampling::token_ids;
use crate::api::errors::ApiError;
use crate::api::fields::{Field, Fields, honoured, invalid, required, too_many, wrong_type};
use crate::gateway::Attribution;

pub(crate) const TEXT_FIELDS: &[Field] =
    &[honoured("model"), honoured("user"), honoured("truncate_prompt_tokens"), honoured("add_special_tokens")];

/// Every text of a request, and what is done to it.
#[derive(Debug)]
pub(crate) struct Texts {
    /// The field that they came in.
    pub(crate) field: &'static str,
    pub(crate) items: Vec<TextItem>,
    /// What is put before each text, by its name in the checkpoint.
    pub(crate) prompt_name: Option<String>,
    pub(crate) add_special_tokens: bool,
    pub(crate) truncate: Truncate,
    /// The second text of each pair is cut to this many tokens, its frame not counted.
    pub(crate) max_document_tokens: Option<usize>,
    /// Whom they are read for; written down with what that takes.
    pub(crate) attribution: Attribution,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TextItem {
    Text(String),
    /// Used as they are.
    Tokens(Vec<TokenId>),
    Pair(String, String),
    /// The second text of a pair that is read apart from the first.
    Document(String),
}

/// What happens to a text that is longer than the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truncate {
    /// It is refused.
    Never,
    /// Its end is cut off.
    ToModel,
    /// Its end is cut off so that this many tokens are left, its frame included.
    To(usize),
}

impl Texts {
    pub(crate) fn read(fields: &mut Fields, field: &'static str, items: Vec<TextItem>) -> Result<Self, ApiError> {
        let attribution = Attribution::new(fields.string("user")?.as_deref(), &BTreeMap::new());
        let truncate = match fields.integer("truncate_prompt_tokens", -1..=i64::from(u32::MAX))? {
            None => Truncate::Never,
            Some(-1) => Truncate::ToModel,
            Some(0) => {
                return Err(invalid("truncate_prompt_tokens", "must be at least 1, or -1 for the model's own length"));
            }
            Some(tokens) => Truncate::To(usize::try_from(tokens).unwrap_or(usize::MAX)),
        };
        let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
        let (prompt_name, max_document_tokens) = (None, None);
        Ok(Self { field, items, prompt_name, add_special_tokens, truncate, max_document_tokens, attribution })
    }
}

pub(crate) fn read_model(fields: &mut Fields) -> Result<String, ApiError> {
    required(fields.string("model")?, "model")
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
pub(crate) fn read_inputs(name: &str, value: Value, most: usize) -> Result<Vec<TextItem>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![TextItem::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type(name, "a string, token ids, or a list of these", &other)),
    };
    match items.first() {
        None => Err(invalid(name, "must not be empty")),
        Some(Value::Number(_)) => Ok(vec![read_tokens(name, &items)?]),
        Some(_) if items.len() > most => Err(too_many(name, most, items.len())),
        Some(_) => {
            let read = |(index, item)| match item {
                Value::String(text) => Ok(TextItem::Text(text)),
                Value::Array(ids) => read_tokens(&format!("{name}[{index}]"), &ids),
                other => Err(wrong_type(&format!("{name}[{index}]"), "a string or an array of token ids", &other)),
            };
            items.into_iter().enumerate().map(read).collect()
        }
    }
}

/// A string or a list of strings, or of objects that hold one as `text`.
pub(crate) fn read_strings(name: &str, value: Value, most: usize) -> Result<Vec<String>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![text]),
        Value::Array(items) => items,
        other => return Err(wrong_type(name, "a string or a list of strings", &other)),
    };
    if items.is_empty() {
        return Err(invalid(name, "must not be empty"));
    }
    if items.len() > most {
        return Err(too_many(name, most, items.len()));
    }
    let read = |(index, item)| match item {
        Value::String(text) => Ok(text),
        Value::Object(mut object) => match (object.shift_remove("text"), object.is_empty()) {
            (Some(Value::String(text)), true) => Ok(text),
            _ => Err(invalid(&format!("{name}[{index}]"), "an object holds `text`, a string, and nothing else")),
        },
        other => Err(wrong_type(&format!("{name}[{index}]"), "a string, or an object with `text`", &other)),
    };
    items.into_iter().enumerate().map(read).collect()
}

fn read_tokens(name: &str, items: &[Value]) -> Result<TextItem, ApiError> {
    if items.is_empty() {
        return Err(invalid(name, "must hold at least one token"));
    }
    Ok(TextItem::Tokens(token_ids(name, items)?))
}
