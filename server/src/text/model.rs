//! What a checkpoint says about text: its tokenizer, its chat template and its named special tokens.

use std::collections::BTreeMap;
use std::io;

use serde_json::{Map, Value};

use super::TextError;
use super::answer::AnswerFormat;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const DEFAULT_TEMPLATE: &str = "default";
/// Tokenizers in forms of other libraries.
const OTHER_TOKENIZERS: [&str; 5] =
    ["tekken.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.json"];
/// The largest `tokenizer_config.json`; some list a thousand added tokens.
const MAX_CONFIG_FILE_BYTES: usize = 16 << 20;

/// The text side of one model. Clone the tokenizer freely; share the rest.
#[derive(Debug)]
pub struct TextModel {
    pub tokenizer: Tokenizer,
    /// `None` for a base model.
    pub template: Option<ChatTemplate>,
    /// `bos_token` and the like, by name.
    pub special_tokens: Map<String, Value>,
    /// How answers in a chat mark reasoning and tool calls.
    pub answers: AnswerFormat,
}

impl TextModel {
    /// Reads a checkpoint's text files through `read`, which answers `None` for a file that is not there.
    pub fn load(read: impl Fn(&str) -> io::Result<Option<Vec<u8>>>) -> Result<Self, TextError> {
        let read = |file: &str| read(file).map_err(|error| fault(file, format!("cannot be read: {error}")));
        let tokenizer = match read(TOKENIZER)? {
            Some(bytes) => Tokenizer::from_bytes(&bytes)?,
            None => without_tokenizer_json(read)?,
        };
        let written = object(TOKENIZER_CONFIG, read(TOKENIZER_CONFIG)?)?;
        let fallback = object(SPECIAL_TOKENS_MAP, read(SPECIAL_TOKENS_MAP)?)?;
        let special_tokens = special_tokens(&written, &fallback, &tokenizer)?;
        let (file, sources) = match read(CHAT_TEMPLATE)? {
            Some(source) => (CHAT_TEMPLATE, only_default(text(CHAT_TEMPLATE, source)?)),
            None => (TOKENIZER_CONFIG, template_sources(written.get("chat_template"))?),
        };
        let written_for: String = sources.values().map(String::as_str).collect();
        let answers = AnswerFormat::find(&written_for, |token| tokenizer.token_id(token).is_some());
        let template = if sources.is_empty() {
            None
        } else {
            let compiled = ChatTemplate::new(sources, special_tokens.clone());
            Some(compiled.map_err(|error| fault(file, format!("chat_template: {error}")))?)
        };
        Ok(Self { tokenizer, template, special_tokens, answers })
    }

    /// The chat template, or the error that a chat request to a base model gets.
    pub fn chat_template(&self) -> Result<&ChatTemplate, TextError> {
        self.template.as_ref().ok_or(TextError::NoTemplate)
    }
}

/// A checkpoint may have no tokenizer at all; one in a form that is not read must not pass for none.
fn without_tokenizer_json(read: impl Fn(&str) -> Result<Option<Vec<u8>>, TextError>) -> Result<Tokenizer, TextError> {
    for file in OTHER_TOKENIZERS {
        if read(file)?.is_some() {
            let problem = format!(
                "is not read, and there is no {TOKENIZER}; make one with transformers, \
                 `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`, or name a model that has one with \
                 `--tokenizer SOURCE`"
            );
            return Err(fault(file, problem));
        }
    }
    for file in [TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP] {
        if read(file)?.is_some() {
            let problem =
                format!("is missing beside {file}; finish the copy, or name a model with `--tokenizer SOURCE`");
            return Err(fault(TOKENIZER, problem));
        }
    }
    Ok(Tokenizer::absent())
}

/// `bos_token` and the like as templates see them.
fn special_tokens(
    written: &Map<String, Value>,
    fallback: &Map<String, Value>,
    tokenizer: &Tokenizer,
) -> Result<Map<String, Value>, TextError> {
    let mut special_tokens = Map::new();
    for (name, value) in fallback.iter().chain(written) {
        let is_name = name.ends_with("_token") || name == "additional_special_tokens";
        if is_name && let Some(value) = special_token(value) {
            special_tokens.insert(name.clone(), value);
        }
    }
    for name in ["bos_token", "eos_token"] {
        if let Some(token) = special_tokens.get(name).and_then(Value::as_str)
            && !tokenizer.is_absent()
            && tokenizer.token_id(token).is_none()
        {
            let problem = format!("{name} is {token:?}, which {TOKENIZER} does not have; correct one of them");
            return Err(fault(TOKENIZER_CONFIG, problem));
        }
    }
    Ok(special_tokens)
}

/// A special token is written as its string, as an object with its string, or as a list of these.
fn special_token(value: &Value) -> Option<Value> {
    match value {
        Value::String(_) => Some(value.clone()),
        Value::Object(token) => token.get("content").filter(|content| content.is_string()).cloned(),
        Value::Array(tokens) => Some(tokens.iter().filter_map(special_token).collect()),
        _ => None,
    }
}

/// A template is one string, or a list of `{"name", "template"}`.
fn template_sources(written: Option<&Value>) -> Result<BTreeMap<String, String>, TextError> {
    let sources = match written {
        None | Some(Value::Null) => Some(BTreeMap::new()),
        Some(Value::String(source)) => Some(only_default(source.clone())),
        Some(Value::Array(named)) => named.iter().map(named_template).collect(),
        Some(_) => None,
    };
    let sources = sources
        .ok_or_else(|| fault(TOKENIZER_CONFIG, "chat_template is neither a string nor a list of named templates"))?;
    if sources.is_empty() || sources.contains_key(DEFAULT_TEMPLATE) {
        return Ok(sources);
    }
    Err(fault(TOKENIZER_CONFIG, "chat_template has no template named \"default\"; rename the one to use"))
}

fn named_template(entry: &Value) -> Option<(String, String)> {
    Some((entry.get("name")?.as_str()?.to_owned(), entry.get("template")?.as_str()?.to_owned()))
}

fn only_default(source: String) -> BTreeMap<String, String> {
    BTreeMap::from([(DEFAULT_TEMPLATE.to_owned(), source)])
}

fn object(file: &str, bytes: Option<Vec<u8>>) -> Result<Map<String, Value>, TextError> {
    let Some(bytes) = bytes else { return Ok(Map::new()) };
    if bytes.len() > MAX_CONFIG_FILE_BYTES {
        return Err(fault(file, format!("has {} bytes; at most {MAX_CONFIG_FILE_BYTES} are read", bytes.len())));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| fault(file, format!("is not a JSON object: {error}; fetch it again")))
}

fn text(file: &str, bytes: Vec<u8>) -> Result<String, TextError> {
    String::from_utf8(bytes).map_err(|error| fault(file, format!("is not UTF-8: {error}")))
}

fn fault(file: &str, problem: impl Into<String>) -> TextError {
    TextError::File { file: file.to_owned(), problem: problem.into() }
}

#[cfg(test)]
mod tests;
