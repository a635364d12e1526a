//! Keys and values of a GGUF file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::cursor::Cursor;
use crate::ModelError;

const MAX_ENTRIES: u64 = 4_096;
/// A chat template is the longest known text, some 20 kB.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Four times the largest known vocabulary.
const MAX_ARRAY_LEN: u64 = 1 << 20;
/// Of all keys, texts and lists together, which are kept: more than ten times what the largest known vocabulary takes.
const MAX_BYTES: usize = 256 << 20;
/// The longest array that a field of a model's shape holds: an element for each layer.
const MAX_FIELD_ARRAY_LEN: usize = 1_024;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// The metadata of one file. Lists are decoded when they are asked for.
#[derive(Debug)]
pub struct GgufMetadata {
    file: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// The bytes of all lists.
    arrays: Vec<u8>,
}

#[derive(Debug)]
enum Entry {
    Value(Value),
    /// `len` elements of one type, which are `bytes` of [`GgufMetadata::arrays`].
    Array {
        element: u32,
        len: u64,
        bytes: Range<usize>,
    },
}

impl GgufMetadata {
    /// Reads `num_entries` keys with their values. Errors name the key.
    pub(super) fn read(file: &Path, cursor: &mut Cursor<'_>, num_entries: u64) -> Result<Self, ModelError> {
        Self::read_within(MAX_BYTES, file, cursor, num_entries)
    }

    fn read_within(
        max_bytes: usize,
        file: &Path,
        cursor: &mut Cursor<'_>,
        num_entries: u64,
    ) -> Result<Self, ModelError> {
        if num_entries > MAX_ENTRIES {
            let problem = format!("{num_entries} keys; at most {MAX_ENTRIES} are read");
            return Err(cursor.refuse("metadata_kv_count", problem));
        }
        let mut metadata = Self { file: file.to_owned(), entries: BTreeMap::new(), arrays: Vec::new() };
        for index in 0..num_entries {
            let key = cursor.name(&format!("key {index} of the metadata"))?;
            let kind = cursor.u32(&key)?;
            let entry = match kind {
                ARRAY => metadata.read_array(cursor, &key, max_bytes)?,
                _ => Entry::Value(read_value(cursor, &key, kind)?),
            };
            check_total(cursor, &key, max_bytes)?;
            if metadata.entries.contains_key(&key) {
                return Err(cursor.refuse(&key, "occurs twice in the metadata"));
            }
            metadata.entries.insert(key, entry);
        }
        Ok(metadata)
    }

    fn read_array(&mut self, cursor: &mut Cursor<'_>, key: &str, max_bytes: usize) -> Result<Entry, ModelError> {
        let element = cursor.u32(key)?;
        let len = cursor.u64(key)?;
        if len > MAX_ARRAY_LEN {
            return Err(cursor.refuse(key, format!("a list of {len} elements; at most {MAX_ARRAY_LEN} are read")));
        }
        let begin = self.arrays.len();
        if element == STRING {
            for _ in 0..len {
                let text = cursor.string_bytes(key, MAX_TEXT_BYTES)?;
                check_total(cursor, key, max_bytes)?;
                self.arrays.extend((text.len() as u64).to_le_bytes());
                self.arrays.extend(text);
            }
        } else {
            let Some(width) = width_of(element) else {
                return Err(cursor.refuse(key, format!("a list of elements of type {element}, which is not read")));
            };
            let numbers = cursor.take(key, len * width)?;
            check_total(cursor, key, max_bytes)?;
            self.arrays.extend(numbers);
        }
        Ok(Entry::Array { element, len, bytes: begin..self.arrays.len() })
    }

    /// The file that it is the metadata of.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The error that names `key` of this file.
    pub(crate) fn refuse(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::checkpoint(&self.file, key, problem)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// A text, `None` where the key is absent, an error where it holds something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Entry::Value(Value::String(text))) => Ok(Some(text)),
            Some(_) => Err(self.refuse(key, "expected a text")),
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self, key: &str) -> Result<Option<u64>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Entry::Value(value)) if value.is_u64() => Ok(value.as_u64()),
            Some(_) => Err(self.refuse(key, "expected a whole number of at least 0")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Entry::Value(Value::Bool(flag))) => Ok(Some(*flag)),
            Some(_) => Err(self.refuse(key, "expected true or false")),
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Entry::Array { element: STRING, len, bytes }) => {
                let mut cursor = Cursor::new(&self.file, &self.arrays[..bytes.end], bytes.start);
                (0..*len).map(|_| cursor.string(key, MAX_TEXT_BYTES)).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(self.refuse(key, "expected a list of texts")),
        }
    }

    /// A list of numbers of any type.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Entry::Array { element, len, bytes }) if ![STRING, ARRAY].contains(element) => {
                let mut cursor = Cursor::new(&self.file, &self.arrays[..bytes.end], bytes.start);
                let mut numbers = Vec::with_capacity(*len as usize);
                for _ in 0..*len {
                    match read_value(&mut cursor, key, *element)?.as_f64() {
                        Some(number) => numbers.push(number),
                        None => return Err(self.refuse(key, "expected a list of numbers")),
                    }
                }
                Ok(Some(numbers))
            }
            Some(_) => Err(self.refuse(key, "expected a list of numbers")),
        }
    }

    /// Everything but long lists and lists of texts, as the fields of a configuration.
    pub(crate) fn fields(&self) -> Result<Map<String, Value>, ModelError> {
        let mut fields = Map::new();
        for (key, entry) in &self.entries {
            let value = match entry {
                Entry::Value(value) => value.clone(),
                Entry::Array { element, len, .. } if *element != STRING && *len <= MAX_FIELD_ARRAY_LEN as u64 => {
                    self.numbers_as_value(key)?
                }
                // What a model's shape depends on is never that long; whoever needs the list asks for it by name.
                Entry::Array { len, .. } => Value::String(format!("a list of {len}")),
            };
            fields.insert(key.clone(), value);
        }
        Ok(fields)
    }

    /// As whole numbers where they are.
    fn numbers_as_value(&self, key: &str) -> Result<Value, ModelError> {
        let Some(Entry::Array { element, len, bytes }) = self.entries.get(key) else { return Ok(Value::Null) };
        let mut cursor = Cursor::new(&self.file, &self.arrays[..bytes.end], bytes.start);
        (0..*len).map(|_| read_value(&mut cursor, key, *element)).collect::<Result<_, _>>().map(Value::Array)
    }
}

/// Errors where what was read up to here is too much to keep.
fn check_total(cursor: &Cursor<'_>, key: &str, max_bytes: usize) -> Result<(), ModelError> {
    if cursor.position() <= max_bytes {
        return Ok(());
    }
    let problem =
        format!("with it there are more than {max_bytes} bytes of keys, texts and lists; no model needs as many");
    Err(cursor.refuse(key, problem))
}

/// Bytes of a scalar type; `None` for what is no scalar.
fn width_of(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A text or a scalar. What is not a finite number is refused: no field means anything by it.
fn read_value(cursor: &mut Cursor<'_>, key: &str, kind: u32) -> Result<Value, ModelError> {
    let float = |cursor: &Cursor<'_>, number: f64| match serde_json::Number::from_f64(number) {
        Some(number) => Ok(Value::Number(number)),
        None => Err(cursor.refuse(key, format!("{number} is not a finite number"))),
    };
    match kind {
        0 => cursor.array(key).map(|byte| u8::from_le_bytes(byte).into()),
        1 => cursor.array(key).map(|byte| i8::from_le_bytes(byte).into()),
        2 => cursor.array(key).map(|bytes| u16::from_le_bytes(bytes).into()),
        3 => cursor.array(key).map(|bytes| i16::from_le_bytes(bytes).into()),
        4 => cursor.array(key).map(|bytes| u32::from_le_bytes(bytes).into()),
        5 => cursor.array(key).map(|bytes| i32::from_le_bytes(bytes).into()),
        6 => {
            let number = f32::from_le_bytes(cursor.array(key)?);
            float(cursor, f64::from(number))
        }
        7 => match cursor.array(key)? {
            [0] => Ok(false.into()),
            [1] => Ok(true.into()),
            [other] => Err(cursor.refuse(key, format!("{other} is neither true nor false"))),
        },
        STRING => cursor.string(key, MAX_TEXT_BYTES).map(Value::String),
        10 => cursor.array(key).map(|bytes| u64::from_le_bytes(bytes).into()),
        11 => cursor.array(key).map(|bytes| i64::from_le_bytes(bytes).into()),
        12 => {
            let number = f64::from_le_bytes(cursor.array(key)?);
            float(cursor, number)
        }
        other => Err(cursor.refuse(key, format!("a value of type {other}, which the format does not have"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(key)[..], &kind.to_le_bytes(), value].concat()
    }

    fn list(element: u32, len: u64, elements: &[u8]) -> Vec<u8> {
        [&element.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
    }

    #[test]
    fn keys_texts_and_lists_have_a_bound_together_and_the_key_that_passes_it_is_named() {
        let entries = [
            ("name", entry("name", STRING, &text("a text of some length"))),
            ("scores", entry("scores", ARRAY, &list(6, 4, &[0; 16]))),
            ("tokens", entry("tokens", ARRAY, &list(STRING, 2, &[text("a"), text("b")].concat()))),
        ];
        let bytes = entries.each_ref().map(|(_, bytes)| bytes.as_slice()).concat();
        let file = Path::new("model.gguf");
        let read = |max_bytes: usize| {
            GgufMetadata::read_within(max_bytes, file, &mut Cursor::new(file, &bytes, 0), entries.len() as u64)
        };
        assert_eq!(read(bytes.len()).unwrap().texts("tokens").unwrap().unwrap(), ["a", "b"]);
        let mut end = 0;
        for (key, bytes) in &entries {
            end += bytes.len();
            let error = read(end - 1).unwrap_err().to_string();
            assert!(error.contains(&format!(": {key}: with it there are more than {} bytes", end - 1)), "{error}");
        }
    }
}
