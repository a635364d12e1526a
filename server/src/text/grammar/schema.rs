//! A caller's JSON schema, as the compiler is given it.

use serde_json::{Map, Value, json};

use super::GrammarError;

/// Whitespace between two JSON tokens: a space, or a line break with its indentation. A small model that may go on with spaces and
/// line breaks does, until its answer is full.
const JSON_WHITESPACE: &str = r"(\x20|\x0D?\x0A[\x20\x09]{0,32})";
/// The schema's own key for options of the compiler. Callers may not set it: it can switch keywords off.
const OPTIONS_KEY: &str = "x-guidance";
/// Keywords by which several schemas judge one value, or a value is judged by what it is not.
const COMPOSING: [&str; 13] = [
    "allOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "propertyNames",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];
/// Keywords that compose where another that constrains stands beside them.
const ALONE: [&str; 2] = ["$ref", "anyOf"];
/// Keywords that constrain nothing.
const ANNOTATIONS: [&str; 13] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];
/// Keywords with which an object says itself what more it may hold, or must.
const SAID_OTHERWISE: [&str; 5] = ["additionalProperties", "const", "enum", "maxProperties", "minProperties"];

/// The schema with this server's options, which nobody else may set, and without properties that nobody declared: an object
/// that names its properties and is silent on others holds those it names. What is written so is of the schema as it was
/// sent too, and a small model that may go on with further properties does. A schema that composes others is left as it
/// is, as objects that are closed one by one may allow nothing together.
pub(super) fn closed_schema(schema: &Value) -> Result<Value, GrammarError> {
    let mut closed = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Bool(false) => return Err(GrammarError::AllowsNothing),
        _ => return Err(GrammarError::Invalid("a schema is an object or a boolean".to_owned())),
    };
    if closed.get(OPTIONS_KEY).is_some() {
        return Err(GrammarError::Invalid(format!("the keyword \"{OPTIONS_KEY}\" is not supported")));
    }
    if !composes(&closed) {
        close(&mut closed);
    }
    closed[OPTIONS_KEY] = json!({"whitespace_pattern": JSON_WHITESPACE});
    Ok(closed)
}

/// Whether two schemas may have to hold of one value. Also true of some that only have properties of such names.
fn composes(schema: &Value) -> bool {
    match schema {
        Value::Object(keywords) => {
            let is_beside = |alone: &str| {
                keywords.contains_key(alone)
                    && keywords.keys().any(|other| other != alone && !ANNOTATIONS.contains(&other.as_str()))
            };
            ALONE.into_iter().any(is_beside)
                || keywords.iter().any(|(name, value)| COMPOSING.contains(&name.as_str()) || composes(value))
        }
        Value::Array(values) => values.iter().any(composes),
        _ => false,
    }
}

/// Closes every object of the schema that says nothing itself.
fn close(schema: &mut Value) {
    let Value::Object(keywords) = schema else { return };
    for (name, value) in keywords.iter_mut() {
        match (name.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(schemas)) => schemas.values_mut().for_each(close),
            ("anyOf" | "prefixItems" | "items", Value::Array(schemas)) => schemas.iter_mut().for_each(close),
            ("items" | "additionalItems" | "additionalProperties", schema) => close(schema),
            _ => {}
        }
    }
    if holds_what_it_declares(keywords) {
        keywords.insert("additionalProperties".to_owned(), false.into());
    }
}

/// Whether an object has properties by name, all that it requires among them, and says nothing of others.
fn holds_what_it_declares(keywords: &Map<String, Value>) -> bool {
    let Some(Value::Object(declared)) = keywords.get("properties") else { return false };
    let is_declared = |name: &Value| name.as_str().is_some_and(|name| declared.contains_key(name));
    let has_all = match keywords.get("required") {
        None => true,
        Some(Value::Array(names)) => names.iter().all(is_declared),
        Some(_) => false,
    };
    !declared.is_empty() && has_all && !SAID_OTHERWISE.iter().any(|keyword| keywords.contains_key(*keyword))
}
