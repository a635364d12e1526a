//! Typed reading of one JSON object that remembers which keys were read, so that what nobody read can be refused.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;

/// One object of a configuration file. `null` means absent everywhere.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// What leads to this object from the top of the file, such as `rope_scaling.`
    prefix: String,
    object: &'a Map<String, Value>,
    read: BTreeSet<&'a str>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(file: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { file, prefix: String::new(), object, read: BTreeSet::new() }
    }

    /// The error that names `key` of this object.
    pub(crate) fn refuse(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::checkpoint(self.file, format!("{}{key}", self.prefix), problem)
    }

    pub(crate) fn value(&mut self, key: &str) -> Option<&'a Value> {
        let (key, value) = self.object.get_key_value(key)?;
        self.read.insert(key);
        (!value.is_null()).then_some(value)
    }

    pub(crate) fn object(&mut self, key: &str) -> Result<Option<Fields<'a>>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.wrong_type(key, "an object", value))?;
        Ok(Some(Fields { file: self.file, prefix: format!("{}{key}.", self.prefix), object, read: BTreeSet::new() }))
    }

    pub(crate) fn count(&mut self, key: &str, range: RangeInclusive<usize>) -> Result<usize, ModelError> {
        self.optional_count(key, range)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn optional_count(
        &mut self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        let count = count.ok_or_else(|| self.wrong_type(key, "a whole number of at least 0", value))?;
        self.within(key, count, &range).map(Some)
    }

    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Result<f64, ModelError> {
        self.optional_number(key, range)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn optional_number(&mut self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| self.wrong_type(key, "a number", value))?;
        self.within(key, number, &range).map(Some)
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong_type(key, "true or false", value))
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().ok_or_else(|| self.wrong_type(key, "a string", value)).map(Some)
    }

    /// A list with one element per layer.
    pub(crate) fn per_layer(&mut self, key: &str, num_layers: usize) -> Result<Option<&'a [Value]>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_array() {
            Some(list) if list.len() == num_layers => Ok(Some(list)),
            _ => {
                Err(self.wrong_type(key, &format!("a list with an element for each of the {num_layers} layers"), value))
            }
        }
    }

    /// Which of two names of the same field this file uses, `name` where it uses neither.
    ///
    /// Errors when it uses both and they contradict each other.
    pub(crate) fn spelling<'n>(&mut self, name: &'n str, alias: &'n str) -> Result<&'n str, ModelError> {
        match (self.value(name), self.value(alias)) {
            (Some(one), Some(other)) if one != other => {
                Err(self.refuse(alias, format!("{} contradicts {name}; keep one of the two", shown(other))))
            }
            (None, Some(_)) => Ok(alias),
            _ => Ok(name),
        }
    }

    /// One token id or a list of them.
    pub(crate) fn token_ids(&mut self, key: &str, vocab_size: usize, max: usize) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let one = std::slice::from_ref(value);
        let values = value.as_array().map_or(one, Vec::as_slice);
        if values.len() > max {
            return Err(self.refuse(key, format!("{} ids; at most {max} are accepted", values.len())));
        }
        values.iter().map(|value| self.token_id(key, value, vocab_size)).collect()
    }

    /// Accepts `key` only where it changes nothing: absent, `null`, or one of `neutral`.
    pub(crate) fn neutral(&mut self, key: &str, neutral: &[Value], why: &str) -> Result<(), ModelError> {
        match self.value(key) {
            Some(value) if !neutral.contains(value) => {
                Err(self.refuse(key, format!("{} is not supported: {why}", shown(value))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a file without `key`, where the families' implementations fill in different values. `null` is a value.
    pub(crate) fn require(&self, key: &str) -> Result<(), ModelError> {
        if self.object.contains_key(key) { Ok(()) } else { Err(self.missing(key)) }
    }

    /// Refuses a file that gives none of `keys` a value, where the families' implementations fill in much more than a
    /// default.
    pub(crate) fn require_one_of(&mut self, keys: &[&str]) -> Result<(), ModelError> {
        if keys.iter().any(|key| self.value(key).is_some()) { Ok(()) } else { Err(self.missing(keys[0])) }
    }

    /// Marks keys as read that say nothing about the arithmetic.
    pub(crate) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.value(key);
        }
    }

    /// Refuses the first key that nobody read. Keys that begin with `_` are the exporter's own notes.
    pub(crate) fn finish(self) -> Result<(), ModelError> {
        match self.object.keys().find(|key| !key.starts_with('_') && !self.read.contains(key.as_str())) {
            Some(key) => Err(self.refuse(
                key,
                "this field is not known, so it cannot be honoured; remove it if it does not change what the model \
                 computes",
            )),
            None => Ok(()),
        }
    }

    fn token_id(&self, key: &str, value: &Value, vocab_size: usize) -> Result<u32, ModelError> {
        let id = value.as_u64().ok_or_else(|| self.wrong_type(key, "a token id or a list of token ids", value))?;
        if id >= vocab_size as u64 {
            return Err(self.refuse(key, format!("token {id} is outside the vocabulary of {vocab_size}")));
        }
        Ok(id as u32)
    }

    fn within<T: PartialOrd + Display + Copy>(
        &self,
        key: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) -> Result<T, ModelError> {
        if range.contains(&value) {
            return Ok(value);
        }
        Err(self.refuse(key, format!("{value} is outside {} to {}; the file is damaged", range.start(), range.end())))
    }

    fn missing(&self, key: &str) -> ModelError {
        self.refuse(key, "missing; the file is not a complete configuration of this architecture")
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> ModelError {
        self.refuse(key, format!("expected {expected}, found {}", shown(found)))
    }
}

/// A value as an error shows it: short whatever the file holds.
fn shown(value: &Value) -> String {
    const MAX_SHOWN_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
