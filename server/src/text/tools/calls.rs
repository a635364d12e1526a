//! The calls that a block holds, read as their family writes them. Arguments are left as written.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::format::ToolFormat;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    /// JSON text of an object.
    pub(super) arguments: String,
}

/// The calls of a block's body, at least one; `None` for what is no call.
pub(super) fn read(format: ToolFormat, body: &str) -> Option<Vec<Call>> {
    let body = body.trim();
    let calls = match format {
        ToolFormat::Hermes => vec![object(body)?],
        ToolFormat::Llama3 if body.starts_with('{') => vec![object(body)?],
        ToolFormat::Llama3 => vec![python_call(body)?],
        ToolFormat::Mistral | ToolFormat::MistralNamed if !body.starts_with(['[', '{']) => vec![named(body)?],
        ToolFormat::Apertus => list(body, keyed)?,
        ToolFormat::Mistral | ToolFormat::MistralNamed | ToolFormat::Nemotron | ToolFormat::Json => list(body, object)?,
    };
    (!calls.is_empty()).then_some(calls)
}

#[derive(Deserialize)]
struct ObjectBody<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// A list of calls, or one call without the list.
fn list(body: &str, read: fn(&str) -> Option<Call>) -> Option<Vec<Call>> {
    if body.starts_with('{') {
        return Some(vec![read(body)?]);
    }
    let items: Vec<&RawValue> = serde_json::from_str(body).ok()?;
    items.into_iter().map(|item| read(item.get())).collect()
}

/// `{"name": "add", "arguments": {..}}`. Some models write the arguments object into a string; absent arguments are none.
fn object(body: &str) -> Option<Call> {
    let call: ObjectBody<'_> = serde_json::from_str(body).ok()?;
    let arguments = call.arguments.map_or("{}", RawValue::get);
    let arguments = match arguments.starts_with('"') {
        true => serde_json::from_str::<String>(arguments).ok()?,
        false => arguments.to_owned(),
    };
    checked(call.name, &arguments)
}

/// `{"add": {..}}`
fn keyed(body: &str) -> Option<Call> {
    let call: std::collections::BTreeMap<String, &RawValue> = serde_json::from_str(body).ok()?;
    let (name, arguments) = call.iter().next().filter(|_| call.len() == 1)?;
    checked(name.clone(), arguments.get())
}

/// `add[ARGS]{..}`, with a call's id before the arguments or without.
fn named(body: &str) -> Option<Call> {
    let (head, arguments) = body.split_at(body.find('{')?);
    let head = head.trim_end().trim_end_matches("[ARGS]");
    let name = head.split_once("[CALL_ID]").map_or(head, |(name, _)| name);
    checked(name.trim().to_owned(), arguments)
}

/// `search.call(query="..", limit=3)`: JSON values under names, where Python's words for them count too.
fn python_call(body: &str) -> Option<Call> {
    let (name, rest) = body.split_once(".call(")?;
    let mut rest = rest.strip_suffix(')')?.trim();
    let mut arguments = serde_json::Map::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = python_value(after.trim_start())?;
        arguments.insert(key.trim().to_owned(), value);
        rest = match after.trim_start() {
            "" => "",
            after => after.strip_prefix(',')?.trim_start(),
        };
    }
    checked(name.trim().to_owned(), &Value::Object(arguments).to_string())
}

/// The first value of a text, and what follows it.
fn python_value(text: &str) -> Option<(Value, &str)> {
    for (word, value) in [("None", Value::Null), ("True", Value::Bool(true)), ("False", Value::Bool(false))] {
        if let Some(after) = text.strip_prefix(word) {
            return Some((value, after));
        }
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

fn checked(name: String, arguments: &str) -> Option<Call> {
    let object: &RawValue = serde_json::from_str(arguments).ok()?;
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    (is_name && object.get().starts_with('{')).then(|| Call { name, arguments: object.get().to_owned() })
}
