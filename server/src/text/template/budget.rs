//! What one rendering may build, in bytes. minijinja counts steps, and one step can double a string; so what is printed,
//! joined, sliced and filtered is counted too ([`super::instrument`] puts the counters in), and a rendering that has built
//! too much ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, Rest};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{MAX_PROMPT_BYTES, python};

/// All strings and lists of one rendering together; most of them are long gone by its end.
pub(super) const MAX_BUILT_BYTES: usize = 32 * MAX_PROMPT_BYTES;
/// What an element of a list takes beside its own content.
const ELEMENT_BYTES: usize = 32;
/// What `*` may repeat, and how often.
const MAX_REPEATED_BYTES: usize = 256;
const MAX_REPEATS: i64 = 10_000;
/// The longest number in a format string: a width.
const MAX_WIDTH_DIGITS: usize = 3;

/// The filters that counted places are given.
pub(super) const COUNTED: &str = "passerelle_counted";
pub(super) const FACTOR: &str = "passerelle_factor";
/// The function that raw text is announced with.
pub(super) const RAW: &str = "passerelle_raw";

/// The rendering has built more than [`MAX_BUILT_BYTES`].
#[derive(Debug, thiserror::Error)]
#[error("the template builds too much")]
pub(super) struct BuiltTooMuch;

#[derive(Debug, Default)]
struct Built(AtomicUsize);

impl Object for Built {}

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter(COUNTED, counted);
    environment.add_filter(FACTOR, factor);
    environment.add_function(RAW, |state: &State<'_, '_>, bytes: usize| charge(state, bytes).map(|()| ""));
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
}

/// Counts `bytes` more.
pub(super) fn charge(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    let built = state.get_or_set_temp_object("passerelle_built", Built::default);
    let before = built.0.fetch_add(bytes, Ordering::Relaxed);
    if before.saturating_add(bytes) > MAX_BUILT_BYTES { Err(too_much()) } else { Ok(()) }
}

pub(super) fn too_much() -> Error {
    Error::new(ErrorKind::InvalidOperation, "the template builds too much").with_source(BuiltTooMuch)
}

fn counted(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    let bytes = match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0).saturating_mul(ELEMENT_BYTES),
    };
    charge(state, bytes)?;
    Ok(value)
}

/// For both sides of `*`, of which one may be a string.
fn factor(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    let too_long = value.len().is_some_and(|len| len > MAX_REPEATED_BYTES);
    let repeats = value.as_i64().unwrap_or(0);
    if too_long || repeats > MAX_REPEATS {
        return Err(too_much());
    }
    charge(state, usize::try_from(repeats).unwrap_or(0) * MAX_REPEATED_BYTES)?;
    Ok(value)
}

fn join(state: &State<'_, '_>, values: &Value, separator: Option<String>) -> Result<String, Error> {
    let separator = separator.unwrap_or_default();
    let mut joined = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        let text = python::text(&value)?;
        charge(state, text.len() + separator.len())?;
        if index > 0 {
            joined.push_str(&separator);
        }
        joined.push_str(&text);
    }
    Ok(joined)
}

fn replace(state: &State<'_, '_>, value: &Value, from: &str, to: &str) -> Result<String, Error> {
    let text = python::text(value)?;
    charge(state, text.len().saturating_add(text.matches(from).count().saturating_mul(to.len())))?;
    Ok(text.replace(from, to))
}

/// As Python's `textwrap.indent`, but for the first line.
fn indent(
    state: &State<'_, '_>,
    value: &str,
    width: Option<usize>,
    first: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = named.get::<Option<usize>>("width")?.or(width).unwrap_or(4);
    let first = named.get::<Option<bool>>("first")?.or(first).unwrap_or(false);
    let blank = named.get::<Option<bool>>("blank")?.unwrap_or(false);
    named.assert_all_used()?;
    let lines = value.split('\n').count();
    charge(state, value.len().saturating_add(lines.saturating_mul(width)))?;
    let space = " ".repeat(width);
    let indented = value.split('\n').enumerate().map(|(index, line)| match index {
        0 if !first => line.to_owned(),
        _ if line.is_empty() && !blank => String::new(),
        _ => format!("{space}{line}"),
    });
    Ok(indented.collect::<Vec<_>>().join("\n"))
}

fn format(state: &State<'_, '_>, text: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let written = text.as_str().unwrap_or_default();
    check_format(written)?;
    charge(state, written.len())?;
    minijinja::filters::format(state, text, arguments)
}

/// Methods of Python's strings, lists and dictionaries.
fn method(state: &State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let texts: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
    match (name, value.as_str(), &texts[..]) {
        ("replace", Some(text), [from, to, ..]) => {
            charge(state, text.matches(from).count().saturating_mul(to.len()))?;
        }
        ("join", Some(separator), _) => {
            for item in arguments.first().map(Value::try_iter).transpose()?.into_iter().flatten() {
                charge(state, item.len().unwrap_or(0) + separator.len())?;
            }
        }
        ("format", Some(text), _) => check_format(text)?,
        ("split" | "splitlines", Some(text), _) => charge(state, text.len().saturating_mul(ELEMENT_BYTES))?,
        _ => {}
    }
    let result = unknown_method_callback(state, value, name, arguments)?;
    counted(state, result)
}

/// A width of nine digits is a string of a gigabyte.
fn check_format(text: &str) -> Result<(), Error> {
    let numbers = text.split(|c: char| !c.is_ascii_digit());
    let wide = numbers.map(str::len).any(|digits| digits > MAX_WIDTH_DIGITS);
    if wide || text.contains('*') { Err(too_much()) } else { Ok(()) }
}
