//! Reads a JSON object field by field, so that nothing in it is silently ignored.
//!
//! A route lists its fields in a table. `null` means absent. A field outside the table is refused, with the nearest
//! known name (or listed, under [`UnknownFields::Warn`]). A known field that is not supported passes at its neutral
//! values and is otherwise refused by name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::errors::{ApiError, ErrorKind, echoed};
use crate::spelling::nearest;

/// One row of a route's table of fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) support: Support,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Support {
    /// Read, checked and acted on.
    Honoured,
    /// Accepted at one of these values, a JSON array, and otherwise refused by name.
    Neutral(&'static str),
}

pub(crate) const fn honoured(name: &'static str) -> Field {
    Field { name, support: Support::Honoured }
}

pub(crate) const fn neutral(name: &'static str, values: &'static str) -> Field {
    Field { name, support: Support::Neutral(values) }
}

/// What happens to a field that no table knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownFields {
    /// 400 with the nearest known name.
    #[default]
    Error,
    /// Accepted and listed in the response header `x-passerelle-ignored-fields`.
    Warn,
}

/// What one object's fields are read with: its place in the body, and the names it skipped so far.
#[derive(Debug)]
pub(crate) struct Reader {
    unknown: UnknownFields,
    ignored: Vec<String>,
}

impl Reader {
    pub(crate) fn new(unknown: UnknownFields) -> Self {
        Self { unknown, ignored: Vec::new() }
    }

    /// Another one that treats unknown fields the same, and has skipped nothing yet.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.unknown)
    }

    /// Names that were accepted without being read.
    pub(crate) fn into_ignored(self) -> Vec<String> {
        self.ignored
    }

    /// Opens the object at `path` (empty for the body itself).
    pub(crate) fn open(&mut self, value: Value, path: &str, table: &[&'static [Field]]) -> Result<Fields, ApiError> {
        let Value::Object(map) = value else {
            return Err(wrong_type(if path.is_empty() { "body" } else { path }, "an object", &value));
        };
        let mut fields = Fields { path: path.to_owned(), map: Map::new() };
        for (name, value) in map {
            if value.is_null() {
                self.check_known(&fields, &name, table)?;
                continue;
            }
            match find(table, &name).map(|field| field.support) {
                None => self.check_known(&fields, &name, table)?,
                Some(Support::Neutral(values)) => check_neutral(&fields.full_name(&name), &value, values)?,
                Some(Support::Honoured) => {
                    fields.map.insert(name, value);
                }
            }
        }
        Ok(fields)
    }

    /// Opens an object that a client may hand back as its SDK holds it: with fields of newer APIs, and `null` in them.
    pub(crate) fn open_returned(
        &mut self,
        mut value: Value,
        path: &str,
        table: &[&'static [Field]],
    ) -> Result<Fields, ApiError> {
        if let Value::Object(map) = &mut value {
            map.retain(|_, value| !value.is_null());
        }
        self.open(value, path, table)
    }

    /// What is left was not read: it says nothing in this request, and is not silently ignored.
    pub(crate) fn finish(&mut self, fields: Fields) -> Result<(), ApiError> {
        let mut left = fields.map.keys().map(|name| fields.full_name(name));
        match self.unknown {
            UnknownFields::Warn => self.ignored.extend(left),
            UnknownFields::Error => {
                if let Some(name) = left.next() {
                    return Err(unsupported(&name, "it has no effect in this request"));
                }
            }
        }
        Ok(())
    }

    fn check_known(&mut self, fields: &Fields, name: &str, table: &[&'static [Field]]) -> Result<(), ApiError> {
        if find(table, name).is_some() {
            return Ok(());
        }
        let full = fields.full_name(name);
        if self.unknown == UnknownFields::Warn {
            self.ignored.push(full);
            return Ok(());
        }
        let known = table.iter().flat_map(|rows| rows.iter().map(|field| field.name));
        let meant = if fields.path.is_empty() { name_of_another_route(name, table) } else { None };
        let hint = match meant.or_else(|| nearest(name, known)) {
            Some(known) => format!(" Did you mean `{known}`?"),
            None => String::new(),
        };
        let message = format!("Unknown parameter: `{}`.{hint}", echoed(&full));
        Err(ApiError::new(ErrorKind::UnknownParameter, message).param(full))
    }
}

/// What a field is called in the bodies of different routes, and where a value of its own stands in that.
const CALLED: &[&[&str]] = &[
    &["max_completion_tokens", "max_output_tokens", "max_tokens"],
    &["prompt", "input", "messages"],
    // The last three are what other servers call a text that is to be read.
    &["prompt", "input", "inputs", "content", "text"],
    &["response_format", "text.format"],
    &["reasoning_effort", "reasoning.effort"],
    &["instructions", "messages"],
];

/// As `table` calls what another route calls `name`. What is known there only to be refused is nobody's way on.
fn name_of_another_route(name: &str, table: &[&'static [Field]]) -> Option<&'static str> {
    let is_read = |other: &str| {
        let field = find(table, other.split('.').next().unwrap_or(other));
        field.is_some_and(|field| matches!(field.support, Support::Honoured))
    };
    let same = CALLED.iter().find(|names| names.contains(&name))?;
    same.iter().copied().find(|other| *other != name && is_read(other))
}

/// The honoured fields of one object, taken one by one.
#[derive(Debug)]
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// `name` with the place of its object: `stream_options.include_usage`.
    pub(crate) fn full_name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name)
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.full_name(name), "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.full_name(name), "a boolean", &other)),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(&self.full_name(name), "an array", &other)),
        }
    }

    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let full = self.full_name(name);
        self.value(name).map(|value| integer(&full, &value, range)).transpose()
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let full = self.full_name(name);
        self.value(name).map(|value| number(&full, &value, range)).transpose()
    }

    /// An integer in 0 ..= `max`.
    pub(crate) fn count(&mut self, name: &str, max: u32) -> Result<Option<u32>, ApiError> {
        let value = self.integer(name, 0..=i64::from(max))?;
        Ok(value.map(|value| u32::try_from(value).expect("the range above ends at a u32")))
    }
}

pub(crate) fn required<T>(value: Option<T>, name: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| {
        ApiError::new(ErrorKind::MissingParameter, format!("Missing required parameter: `{name}`.")).param(name)
    })
}

/// The same where another field will do as well; the first is the one that is named to programs.
pub(crate) fn required_either<T>(value: Option<T>, [name, other]: [&str; 2]) -> Result<T, ApiError> {
    value.ok_or_else(|| {
        let message = format!("Missing required parameter: `{name}` or `{other}`.");
        ApiError::new(ErrorKind::MissingParameter, message).param(name)
    })
}

pub(crate) fn wrong_type(name: &str, expected: &str, got: &Value) -> ApiError {
    let message = format!("Invalid type for `{}`: expected {expected}, got {}.", echoed(name), type_name(got));
    ApiError::new(ErrorKind::InvalidType, message).param(name)
}

pub(crate) fn invalid(name: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorKind::InvalidValue, format!("Invalid value for `{}`: {why}.", echoed(name))).param(name)
}

pub(crate) fn unsupported(name: &str, why: impl std::fmt::Display) -> ApiError {
    let message = format!("Unsupported value for `{}`: {why}.", echoed(name));
    ApiError::new(ErrorKind::UnsupportedParameter, message).param(name)
}

pub(crate) fn too_many(name: &str, max: usize, got: usize) -> ApiError {
    invalid(name, format!("at most {max} entries are allowed, got {got}"))
}

/// A whole number; `16.0` counts as one, since JSON has a single kind of number.
pub(crate) fn integer(name: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    let Value::Number(number) = value else { return Err(wrong_type(name, "an integer", value)) };
    /// 2^63: from here on no float is an `i64`.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    let out_of_range = || invalid(name, format!("must be between {} and {}", range.start(), range.end()));
    let whole = match (number.as_i64(), number.as_f64()) {
        (Some(whole), _) => whole,
        (None, Some(float)) if float.fract() == 0.0 && float.abs() < BEYOND => float as i64,
        (None, Some(float)) if float.fract() == 0.0 => return Err(out_of_range()),
        _ => return Err(wrong_type(name, "an integer", value)),
    };
    if range.contains(&whole) { Ok(whole) } else { Err(out_of_range()) }
}

pub(crate) fn number(name: &str, value: &Value, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
    let Some(float) = value.as_f64() else { return Err(wrong_type(name, "a number", value)) };
    if range.contains(&float) {
        return Ok(float as f32);
    }
    Err(invalid(name, format!("must be between {} and {}", range.start(), range.end())))
}

fn find(table: &[&'static [Field]], name: &str) -> Option<Field> {
    table.iter().flat_map(|rows| rows.iter()).find(|field| field.name == name).copied()
}

fn check_neutral(name: &str, value: &Value, neutral: &str) -> Result<(), ApiError> {
    let values: Vec<Value> = serde_json::from_str(neutral).expect("a field table's neutral values are a JSON array");
    if values.iter().any(|neutral| same(neutral, value)) {
        return Ok(());
    }
    let accepted: Vec<String> = values.iter().map(Value::to_string).collect();
    let why = match accepted.as_slice() {
        [] => "this parameter is not supported".to_owned(),
        _ => format!("only {} is supported", accepted.join(" or ")),
    };
    Err(unsupported(name, why))
}

/// Equal as JSON, where 1 and 1.0 are the same number.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        _ => left == right,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: &[Field] = &[honoured("max_tokens"), honoured("stream"), neutral("n", "[1]"), neutral("tier", "[]")];

    fn open(body: Value) -> Result<Fields, ApiError> {
        Reader::new(UnknownFields::Error).open(body, "", &[TABLE])
    }

    #[test]
    fn null_means_absent() {
        let mut fields = open(json!({"max_tokens": null, "n": null, "tier": null})).unwrap();
        assert_eq!(fields.count("max_tokens", 9).unwrap(), None);
    }

    #[test]
    fn a_misspelt_field_is_refused_with_the_nearest_name() {
        let error = open(json!({"max_token": 3})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownParameter);
        assert!(error.message().contains("Did you mean `max_tokens`?"), "{}", error.message());
    }

    #[test]
    fn what_another_route_calls_a_field_is_told_by_its_name_here() {
        const FIELDS: &[Field] = &[honoured("max_output_tokens"), honoured("min_tokens"), honoured("text")];
        for (asked, meant) in [("max_tokens", "`max_output_tokens`"), ("response_format", "`text.format`")] {
            let error = Reader::new(UnknownFields::Error).open(json!({asked: 1}), "", &[FIELDS]).unwrap_err();
            assert!(error.message().ends_with(&format!("Did you mean {meant}?")), "{}", error.message());
        }
        let elsewhere = Reader::new(UnknownFields::Error).open(json!({"messages": 1}), "", &[FIELDS]).unwrap_err();
        assert!(!elsewhere.message().contains("Did you mean"), "{}", elsewhere.message());
    }

    #[test]
    fn a_field_that_is_only_refused_is_not_what_was_meant() {
        const FIELDS: &[Field] = &[neutral("prompt", "[]"), honoured("input")];
        for asked in ["messages", "text", "content", "inputs"] {
            let error = Reader::new(UnknownFields::Error).open(json!({asked: 1}), "", &[FIELDS]).unwrap_err();
            assert!(error.message().ends_with("Did you mean `input`?"), "{}", error.message());
        }
    }

    #[test]
    fn an_unknown_field_is_listed_when_asked_to_warn() {
        let mut reader = Reader::new(UnknownFields::Warn);
        reader.open(json!({"colour": 1, "shade": null}), "look", &[TABLE]).unwrap();
        assert_eq!(reader.into_ignored(), ["look.colour", "look.shade"]);
    }

    #[test]
    fn a_field_that_nobody_read_is_not_silently_ignored() {
        let body = json!({"max_tokens": 1, "stream": true});
        let mut reader = Reader::new(UnknownFields::Error);
        let mut fields = reader.open(body.clone(), "", &[TABLE]).unwrap();
        fields.count("max_tokens", 9).unwrap();
        let error = reader.finish(fields).unwrap_err();
        assert!(error.message().contains("`stream`"), "{}", error.message());
        let mut reader = Reader::new(UnknownFields::Warn);
        let fields = reader.open(body, "", &[TABLE]).unwrap();
        reader.finish(fields).unwrap();
        assert_eq!(reader.into_ignored(), ["max_tokens", "stream"]);
    }

    #[test]
    fn what_is_handed_back_may_hold_newer_fields_that_say_nothing() {
        let open = |body: Value| Reader::new(UnknownFields::Error).open_returned(body, "item", &[TABLE]);
        assert!(open(json!({"n": 1, "newer": null})).is_ok());
        assert_eq!(open(json!({"newer": 1})).unwrap_err().kind(), ErrorKind::UnknownParameter);
        assert_eq!(open(json!([])).unwrap_err().kind(), ErrorKind::InvalidType);
    }

    #[test]
    fn an_unsupported_field_passes_at_its_neutral_value_only() {
        assert!(open(json!({"n": 1})).is_ok());
        assert!(open(json!({"n": 1.0})).is_ok());
        let error = open(json!({"n": 2})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedParameter);
        assert!(open(json!({"tier": "x"})).is_err());
    }

    #[test]
    fn a_wrong_type_names_the_parameter_and_what_was_expected() {
        let error = open(json!({"max_tokens": "many"})).unwrap().count("max_tokens", 9).unwrap_err();
        assert_eq!(error.message(), "Invalid type for `max_tokens`: expected an integer, got a string.");
    }

    #[test]
    fn a_number_out_of_range_names_the_bounds() {
        for value in [json!(-1), json!(10), json!(1e300)] {
            let error = open(json!({"max_tokens": value})).unwrap().count("max_tokens", 9).unwrap_err();
            assert_eq!(error.message(), "Invalid value for `max_tokens`: must be between 0 and 9.");
        }
    }

    #[test]
    fn whole_floats_are_integers() {
        assert_eq!(open(json!({"max_tokens": 4.0})).unwrap().count("max_tokens", 9).unwrap(), Some(4));
        assert!(open(json!({"max_tokens": 4.5})).unwrap().count("max_tokens", 9).is_err());
    }
}
