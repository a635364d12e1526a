//! `POST /v1/responses`: its fields, and the chat request they stand for. Nothing is stored: every request brings its
//! whole conversation.
//!
//! The body is rewritten as the body of a chat and read by the chat's own reader, so every bound and every field means
//! the same behind both doors. What that reader refuses is told under the names of this route.

use serde_json::{Map, Value, json};

use super::chat::read_chat;
use super::request::{Prompt, ReadRequest, RequestBounds};
use super::response_answer::{Included, Inclusion};
use super::response_items::{NOTHING_IS_STORED, read_input};
use super::sampling::{LengthField, SAMPLING_FIELDS};
use crate::api::errors::{ApiError, renamed};
use crate::api::fields::{Field, Fields, Reader, honoured, invalid, neutral, required, unsupported, wrong_type};

pub(crate) const RESPONSE_FIELDS: &[Field] = &[
    honoured("input"),
    honoured("instructions"),
    honoured("max_output_tokens"),
    honoured("tools"),
    honoured("tool_choice"),
    honoured("text"),
    honoured("reasoning"),
    honoured("include"),
    honoured("top_logprobs"),
    honoured("stream_options"),
    honoured("client_metadata"),
    neutral("store", "[false]"),
    neutral("previous_response_id", "[]"),
    neutral("conversation", "[]"),
    neutral("background", "[false]"),
    neutral("prompt", "[]"),
    neutral("truncation", r#"["disabled"]"#),
    neutral("max_tool_calls", "[]"),
    neutral("access_programs", "[]"),
    neutral("background_options", "[]"),
    neutral("context_management", "[]"),
    neutral("image", "[]"),
    neutral("moderation", "[]"),
];

/// Fields that, like those of sampling, mean the same in a chat and go there as they are.
pub(crate) const PASSED_FIELDS: &[Field] = &[
    honoured("model"),
    honoured("parallel_tool_calls"),
    honoured("skip_special_tokens"),
    honoured("chat_template_kwargs"),
];

pub(crate) const TEXT_FIELDS: &[Field] = &[honoured("format"), neutral("verbosity", r#"["medium"]"#)];
pub(crate) const REASONING_FIELDS: &[Field] = &[
    honoured("effort"),
    neutral("summary", r#"["auto"]"#),
    neutral("generate_summary", r#"["auto"]"#),
    neutral("context", "[]"),
    neutral("mode", "[]"),
];
pub(crate) const TOOL_FIELDS: &[Field] = &[
    honoured("type"),
    honoured("name"),
    honoured("description"),
    honoured("parameters"),
    honoured("strict"),
    neutral("async", "[false]"),
    neutral("allowed_callers", "[]"),
    neutral("defer_loading", "[false]"),
    neutral("output_schema", "[]"),
];
pub(crate) const STREAM_OPTIONS: &[Field] = &[neutral("include_obfuscation", "[false]")];
const LOGPROBS: &str = "message.output_text.logprobs";
const CARRIED_REASONING: &str = "reasoning.encrypted_content";

/// What the chat's reader calls a thing, and what this route calls it.
const NAMES: &[(&str, &str)] = &[
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("].function", "]"),
    ("tool_choice.function", "tool_choice"),
];

/// A checked request, what its answer repeats of it, and what that holds beside the text.
#[derive(Debug)]
pub(crate) struct ReadResponse {
    pub(crate) request: ReadRequest,
    pub(crate) repeated: Map<String, Value>,
    pub(crate) included: Included,
}

pub(crate) fn read_response(body: Value, mut reader: Reader, bounds: &RequestBounds) -> Result<ReadResponse, ApiError> {
    refuse_earlier_response(&body)?;
    let mut repeated = repeated(&body);
    let chat_reader = reader.fresh();
    let mut fields = reader.open(body, "", &[SAMPLING_FIELDS, PASSED_FIELDS, RESPONSE_FIELDS])?;
    let mut chat = Map::new();
    let messages = read_messages(&mut fields, &mut reader, bounds)?;
    chat.insert("messages".to_owned(), Value::Array(messages));
    for Field { name, .. } in SAMPLING_FIELDS.iter().chain(PASSED_FIELDS) {
        set(&mut chat, name, fields.value(name));
    }
    set(&mut chat, "max_completion_tokens", fields.value("max_output_tokens"));
    let carried_reasoning = read_include(&mut fields, &mut chat)?;
    set(&mut chat, "tools", read_tools(&mut fields, &mut reader)?);
    set(&mut chat, "tool_choice", read_tool_choice(&mut fields)?);
    set(&mut chat, "response_format", read_format(&mut fields, &mut reader)?);
    set(&mut chat, "reasoning_effort", read_effort(&mut fields, &mut reader)?);
    check_stream_options(&mut fields, &mut reader)?;
    check_client_metadata(&mut fields)?;
    reader.finish(fields)?;
    let request = read_chat(Value::Object(chat), chat_reader, bounds).map_err(|error| error.renamed(NAMES))?;
    let ignored = [reader.into_ignored(), request.ignored].concat();
    let mut request = ReadRequest { ignored, ..request };
    repeat_whole(&mut repeated);
    // What is refused later is told under this route's names too.
    request.generate.sampling.length_field = LengthField::Responses;
    if let Prompt::Chat(chat) = &mut request.prompt {
        (chat.field, chat.effort_field) = ("input", "reasoning.effort");
    }
    if let Some(structure) = &mut request.generate.structure {
        structure.param = renamed(&structure.param, NAMES);
    }
    let logprobs = Inclusion::when(request.generate.output.logprobs.is_some());
    Ok(ReadResponse { request, repeated, included: Included { logprobs, carried_reasoning } })
}

/// The table of fields would refuse it too, without a word of what to do.
fn refuse_earlier_response(body: &Value) -> Result<(), ApiError> {
    const NAME: &str = "previous_response_id";
    match body.get(NAME) {
        None | Some(Value::Null) => Ok(()),
        Some(_) => Err(unsupported(NAME, NOTHING_IS_STORED)),
    }
}

fn set(chat: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        chat.insert(name.to_owned(), value);
    }
}

/// OpenAI's answer says again what was asked for.
fn repeated(body: &Value) -> Map<String, Value> {
    let or = |name: &str, default: Value| {
        let value = body.get(name).filter(|value| !value.is_null()).cloned();
        (name.to_owned(), value.unwrap_or(default))
    };
    Map::from_iter([
        or("instructions", Value::Null),
        or("max_output_tokens", Value::Null),
        or("metadata", json!({})),
        or("parallel_tool_calls", json!(true)),
        or("prompt_cache_key", Value::Null),
        or("reasoning", json!({"effort": null, "summary": null})),
        or("safety_identifier", Value::Null),
        or("temperature", Value::Null),
        or("text", json!({"format": {"type": "text"}})),
        or("tool_choice", json!("auto")),
        or("tools", json!([])),
        or("top_logprobs", Value::Null),
        or("top_p", Value::Null),
        or("user", Value::Null),
    ])
}

/// A whole number that was written `31.0` comes back as `31`: clients with types read no float there.
fn repeat_whole(repeated: &mut Map<String, Value>) {
    for name in ["max_output_tokens", "top_logprobs"] {
        if let Some(float) = repeated[name].as_f64() {
            repeated.insert(name.to_owned(), json!(float as i64));
        }
    }
}

fn read_messages(fields: &mut Fields, reader: &mut Reader, bounds: &RequestBounds) -> Result<Vec<Value>, ApiError> {
    let mut messages = Vec::new();
    if let Some(instructions) = fields.string("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    // What the instructions take is not left for items.
    let most = bounds.max_messages.saturating_sub(messages.len());
    messages.extend(read_input(required(fields.value("input"), "input")?, reader, most)?);
    Ok(messages)
}

/// Who asks for alternatives asks for log-probabilities too. Answers whether reasoning is to be carried.
fn read_include(fields: &mut Fields, chat: &mut Map<String, Value>) -> Result<Inclusion, ApiError> {
    let top = fields.value("top_logprobs");
    let mut with_logprobs = top.is_some();
    let mut carried_reasoning = Inclusion::Hidden;
    for (index, name) in fields.array("include")?.unwrap_or_default().iter().enumerate() {
        let path = format!("include[{index}]");
        match name.as_str() {
            Some(LOGPROBS) => with_logprobs = true,
            Some(CARRIED_REASONING) => carried_reasoning = Inclusion::Shown,
            Some(_) => {
                let why = format!("only `{LOGPROBS}` and `{CARRIED_REASONING}` are supported");
                return Err(unsupported(&path, why));
            }
            None => return Err(wrong_type(&path, "a string", name)),
        }
    }
    if with_logprobs {
        chat.insert("logprobs".to_owned(), Value::Bool(true));
    }
    set(chat, "top_logprobs", top);
    Ok(carried_reasoning)
}

/// `{"type": "function", "name", ..}` becomes `{"type": "function", "function": {"name", ..}}`.
fn read_tools(fields: &mut Fields, reader: &mut Reader) -> Result<Option<Value>, ApiError> {
    let Some(items) = fields.array("tools")? else { return Ok(None) };
    let items = items.into_iter().enumerate().map(|(index, item)| {
        let path = format!("tools[{index}]");
        let kind = item["type"].as_str().unwrap_or("function");
        if kind != "function" {
            return Err(unsupported(&format!("{path}.type"), "only `function` tools are supported by this server"));
        }
        let mut tool = reader.open(item, &path, &[TOOL_FIELDS])?;
        required(tool.string("type")?, &tool.full_name("type"))?;
        let function: Map<String, Value> = ["name", "description", "parameters", "strict"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), tool.value(name)?)))
            .collect();
        Ok(json!({"type": "function", "function": function}))
    });
    Ok(Some(Value::Array(items.collect::<Result<_, _>>()?)))
}

fn read_tool_choice(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    match fields.value("tool_choice") {
        Some(Value::Object(mut named)) => match (named.shift_remove("type"), named.shift_remove("name")) {
            (Some(Value::String(kind)), Some(name)) if kind == "function" && named.is_empty() => {
                Ok(Some(json!({"type": "function", "function": {"name": name}})))
            }
            _ => Err(invalid("tool_choice", "must be `{\"type\": \"function\", \"name\": NAME}` or a string")),
        },
        other => Ok(other),
    }
}

/// `{"type": "json_schema", "schema", ..}` becomes `{"type": "json_schema", "json_schema": {"schema", ..}}`.
fn read_format(fields: &mut Fields, reader: &mut Reader) -> Result<Option<Value>, ApiError> {
    let Some(text) = fields.value("text") else { return Ok(None) };
    let mut text = reader.open(text, "text", &[TEXT_FIELDS])?;
    let Some(format) = text.value("format") else { return Ok(None) };
    let Value::Object(mut format) = format else { return Err(wrong_type("text.format", "an object", &format)) };
    if format.get("type").and_then(Value::as_str) != Some("json_schema") {
        return Ok(Some(Value::Object(format)));
    }
    format.shift_remove("type");
    Ok(Some(json!({"type": "json_schema", "json_schema": format})))
}

fn read_effort(fields: &mut Fields, reader: &mut Reader) -> Result<Option<Value>, ApiError> {
    let Some(reasoning) = fields.value("reasoning") else { return Ok(None) };
    Ok(reader.open(reasoning, "reasoning", &[REASONING_FIELDS])?.value("effort"))
}

fn check_stream_options(fields: &mut Fields, reader: &mut Reader) -> Result<(), ApiError> {
    let Some(options) = fields.value("stream_options") else { return Ok(()) };
    let options = reader.open(options, "stream_options", &[STREAM_OPTIONS])?;
    reader.finish(options)
}

/// What a client says of itself, like a `user-agent`.
fn check_client_metadata(fields: &mut Fields) -> Result<(), ApiError> {
    const NAME: &str = "client_metadata";
    match fields.value(NAME) {
        None | Some(Value::Object(_)) => Ok(()),
        Some(other) => Err(wrong_type(NAME, "an object", &other)),
    }
}

#[cfg(test)]
mod tests;
