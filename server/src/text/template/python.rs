//! Where Jinja shows its Python: how values read as text, and what counts as a sequence.
//!
//! Templates print lists and `None` into prompts, and a model reads what it was trained on. Values joined with `~` inside
//! a template are the one place left to minijinja.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Output, State, Value};

use super::budget::{MAX_BUILT_BYTES, charge, too_much};

/// How deep lists in lists are printed.
const MAX_DEPTH: usize = 200;

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_formatter(format);
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("upper", |value: &Value| text(value).map(|text| text.to_uppercase()));
    environment.add_filter("lower", |value: &Value| text(value).map(|text| text.to_lowercase()));
    environment
        .add_test("iterable", |value: &Value| !value.is_none() && (is_sequence(value) || value.try_iter().is_ok()));
    environment.add_test("sequence", |value: &Value| is_sequence(value));
}

fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let owned;
    let text = match value.as_str() {
        Some(text) => text,
        None => {
            owned = text(value)?;
            &owned
        }
    };
    charge(state, text.len())?;
    out.write_str(text).map_err(Error::from)
}

/// Python's `str`. An error for what a few lists in lists make endless.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    match value.as_str() {
        Some(string) => text.push_str(string),
        None => write_repr(value, &mut text, 0),
    }
    if text.len() > MAX_BUILT_BYTES { Err(too_much()) } else { Ok(text) }
}

/// Python's `repr`. Stops early once there is too much of it, and past the depth that is printed.
fn write_repr(value: &Value, out: &mut String, depth: usize) {
    if out.len() > MAX_BUILT_BYTES || depth > MAX_DEPTH {
        return;
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(float) => out.push_str(&float_repr(float)),
            Err(_) => out.push_str(&value.to_string()),
        },
        ValueKind::String => write_string_repr(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => write_items(value, ['[', ']'], out, |item, out| write_repr(item, out, depth + 1)),
        ValueKind::Map => write_items(value, ['{', '}'], out, |key, out| {
            write_repr(key, out, depth + 1);
            out.push_str(": ");
            write_repr(&value.get_item(key).unwrap_or_default(), out, depth + 1);
        }),
        _ => out.push_str(&value.to_string()),
    }
}

fn write_items(value: &Value, brackets: [char; 2], out: &mut String, write: impl Fn(&Value, &mut String)) {
    out.push(brackets[0]);
    for (n, item) in value.try_iter().into_iter().flatten().enumerate() {
        if out.len() > MAX_BUILT_BYTES {
            break;
        }
        if n > 0 {
            out.push_str(", ");
        }
        write(&item, out);
    }
    out.push(brackets[1]);
}

fn write_string_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', quote]),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Python's `repr` of a float: the shortest digits, with an exponent outside 1e-4 to 1e16.
pub(super) fn float_repr(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) if exponent.starts_with('-') => format!("{digits}e-{:0>2}", &exponent[1..]),
        Some((digits, exponent)) => format!("{digits}e+{exponent:0>2}"),
        None => scientific,
    }
}

/// What has a length and can be indexed.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let written = [1.0, 0.1, 1e16, 1.5e300, 1e-5, -2.25e-10, 0.0001, 123456789.125].map(float_repr);
        let python = ["1.0", "0.1", "1e+16", "1.5e+300", "1e-05", "-2.25e-10", "0.0001", "123456789.125"];
        assert_eq!(written, python);
    }

    #[test]
    fn values_read_as_python_writes_them() {
        let value = Value::from_serialize(serde_json::json!({"a'": [1, 2.0, null, true, "é\n\"", {}], "b": "x\\'\""}));
        assert_eq!(text(&value).unwrap(), r#"{"a'": [1, 2.0, None, True, 'é\n"', {}], 'b': 'x\\\'"'}"#);
    }
}
