//! A caller's JSON schema, as the compiler is given it.

mod check;
mod divisors;

use serde_json::{Map, Value, json};

use super::GrammarError;

pub(super) use check::check_schema;

type Keywords = Map<String, Value>;

/// Whitespace between two JSON tokens: a space, or a line break with its indentation. A small model that may go on with
/// spaces and line breaks does, until its answer is full.
const JSON_WHITESPACE: &str = r"(\x20|\x0D?\x0A[\x20\x09]{0,32})";
/// The schema's own key for options of the compiler. Callers may not set it: it can switch keywords off.
const OPTIONS_KEY: &str = "x-guidance";
/// Escapes in JSON strings without `\uXXXX`, so that every string can be written in one way only.
const ONE_SPELLING: &str = "nrbtf\\\"";
/// Keywords that hold schemas: by name, in a list, or one.
const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const SINGLES: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
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
    check_schema(&closed)?;
    for_each_schema(&mut closed, &mut drop_neutral);
    if !composes(&closed) {
        for_each_schema(&mut closed, &mut close);
    }
    let mut options = json!({"whitespace_pattern": JSON_WHITESPACE});
    let mut has_other_names = false;
    for_each_schema(&mut closed, &mut |keywords: &mut Keywords| {
        has_other_names |= names_some_of_its_properties(keywords);
    });
    if has_other_names {
        options["json_allowed_escapes"] = ONE_SPELLING.into();
    }
    closed[OPTIONS_KEY] = options;
    Ok(closed)
}

/// The schemas directly in this one, and where.
fn subschemas(keywords: &Keywords) -> impl Iterator<Item = (String, &Value)> {
    keywords.iter().flat_map(|(name, value)| held_by(name, value))
}

fn held_by<'a>(keyword: &str, value: &'a Value) -> Vec<(String, &'a Value)> {
    match value {
        Value::Object(schemas) if MAPS.contains(&keyword) => {
            schemas.iter().map(|(name, schema)| (format!("{keyword}/{name}"), schema)).collect()
        }
        Value::Array(schemas) if LISTS.contains(&keyword) => {
            schemas.iter().enumerate().map(|(index, schema)| (format!("{keyword}/{index}"), schema)).collect()
        }
        schema if SINGLES.contains(&keyword) => vec![(keyword.to_owned(), schema)],
        _ => Vec::new(),
    }
}

/// This schema, and all in it.
fn for_each_schema(schema: &mut Value, act: &mut impl FnMut(&mut Keywords)) {
    let Value::Object(keywords) = schema else { return };
    act(keywords);
    for (name, value) in keywords.iter_mut() {
        let name = name.as_str();
        match value {
            Value::Object(schemas) if MAPS.contains(&name) => {
                schemas.values_mut().for_each(|schema| for_each_schema(schema, act));
            }
            Value::Array(schemas) if LISTS.contains(&name) => {
                schemas.iter_mut().for_each(|schema| for_each_schema(schema, act));
            }
            schema if SINGLES.contains(&name) => for_each_schema(schema, act),
            _ => {}
        }
    }
}

/// What asks for nothing, and the compiler does not know.
fn drop_neutral(keywords: &mut Keywords) {
    const UNIQUE: &str = "uniqueItems";
    if keywords.get(UNIQUE) == Some(&Value::Bool(false)) {
        keywords.shift_remove(UNIQUE);
    }
}

/// Whether an object may hold names beside those that it treats apart: the compiler tells them from these by their spelling.
fn names_some_of_its_properties(keywords: &Keywords) -> bool {
    let names = |keyword: &str| match keywords.get(keyword) {
        Some(Value::Object(schemas)) => !schemas.is_empty(),
        Some(Value::Array(names)) => !names.is_empty(),
        _ => false,
    };
    let is_closed = keywords.get("additionalProperties") == Some(&Value::Bool(false));
    !is_closed && ["properties", "patternProperties", "required"].into_iter().any(names)
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

/// Closes an object that says nothing itself.
fn close(keywords: &mut Keywords) {
    if holds_what_it_declares(keywords) {
        keywords.insert("additionalProperties".to_owned(), false.into());
    }
}

/// Whether an object has properties by name, all that it requires among them, and says nothing of others.
fn holds_what_it_declares(keywords: &Keywords) -> bool {
    let Some(Value::Object(declared)) = keywords.get("properties") else { return false };
    let is_declared = |name: &Value| name.as_str().is_some_and(|name| declared.contains_key(name));
    let has_all = match keywords.get("required") {
        None => true,
        Some(Value::Array(names)) => names.iter().all(is_declared),
        Some(_) => false,
    };
    !declared.is_empty() && has_all && !SAID_OTHERWISE.iter().any(|keyword| keywords.contains_key(*keyword))
}

#[cfg(test)]
mod tests;
