//! JSON in which every key stands once: of two values for one name, one would be silently ignored.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::api::errors::{ApiError, ErrorKind, echoed};

/// Parses a body. Nesting deeper than serde_json's limit (128) is an error, not a stack overflow.
pub(crate) fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::new(ErrorKind::InvalidJson, "The body is empty; send a JSON object."));
    }
    serde_json::from_slice(body).map(|Strict(value)| value).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        // Any JSON is taken, so the only thing that can be wrong with its data is a key that comes again.
        if !error.is_data() {
            let how = if error.is_eof() { ": it ends there" } else { "" };
            return ApiError::new(ErrorKind::InvalidJson, format!("The body is not valid JSON ({place}){how}."));
        }
        let text = error.to_string();
        let key = text.rsplit_once(" at line ").map_or(text.as_str(), |(key, _)| key);
        let message = format!("The body gives `{}` twice ({place}).", echoed(key));
        ApiError::new(ErrorKind::InvalidJson, message).param(key)
    })
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
        Ok(Strict(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Strict, E> {
        Ok(Strict(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strict, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Strict(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Strict, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(key));
            }
            map.insert(key, value);
        }
        Ok(Strict(Value::Object(map)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_once_is_read_as_it_is() {
        let text = r#"{"a": [null, true, -1, 18446744073709551615, 1.5, "é\n"], "b": {"a": {}}}"#;
        let expected = json!({"a": [null, true, -1, u64::MAX, 1.5, "é\n"], "b": {"a": {}}});
        assert_eq!(parse_json(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn a_key_that_comes_again_is_refused_by_name_at_any_depth() {
        for text in [r#"{"stop": 1, "stop": 1}"#, r#"{"a": [{"stop": 1, "b": 2, "st\u006fp": null}]}"#] {
            let error = parse_json(text.as_bytes()).unwrap_err();
            assert_eq!((error.kind(), error.status().as_u16()), (ErrorKind::InvalidJson, 400));
            assert!(error.message().starts_with("The body gives `stop` twice (line 1, column "), "{}", error.message());
            assert_eq!(error.body()["error"]["param"], "stop");
        }
    }

    #[test]
    fn what_is_no_json_names_the_place() {
        let deep = "[".repeat(200_000);
        for text in ["{", "nul", "[1,]", "{\"a\":1}x", "1e999", "\u{feff}{}", &deep] {
            let error = parse_json(text.as_bytes()).expect_err(text);
            assert!(error.message().starts_with("The body is not valid JSON (line 1, column "), "{}", error.message());
        }
        assert!(parse_json(b"\xff\xfe").is_err());
        let cut = parse_json(br#"{"model": "de"#).unwrap_err();
        assert!(cut.message().ends_with("): it ends there."), "{}", cut.message());
        assert_eq!(parse_json(b" \n").unwrap_err().message(), "The body is empty; send a JSON object.");
    }
}
