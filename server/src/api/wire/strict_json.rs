//! JSON in which every key stands once: of two values for one name, one would be silently ignored.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::api::errors::{ApiError, ErrorKind, echoed};

/// Brackets within brackets that serde_json takes at most.
const MAX_DEPTH: usize = 127;

/// Parses a body. Nesting deeper than [`MAX_DEPTH`] is an error, not a stack overflow.
pub(crate) fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::new(ErrorKind::InvalidJson, "The body is empty; send a JSON object."));
    }
    serde_json::from_slice(body).map(|Strict(value)| value).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        // Any JSON is taken, so the only thing that can be wrong with its data is a key that comes again.
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        if !error.is_data() {
            return ApiError::new(ErrorKind::InvalidJson, syntax_message(what, &place, error.is_eof()));
        }
        let message = format!("The body gives `{}` twice ({place}).", echoed(what));
        ApiError::new(ErrorKind::InvalidJson, message).param(what)
    })
}

/// serde_json's words quote nothing of the body.
fn syntax_message(what: &str, place: &str, ends_there: bool) -> String {
    match what {
        "recursion limit exceeded" => format!("The body is nested too deeply: more than {MAX_DEPTH} levels ({place})."),
        _ if ends_there => format!("The body is not valid JSON ({place}): it ends there."),
        _ => format!("The body is not valid JSON ({place}): {what}."),
    }
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
        for text in ["{", "nul", "[1,]", "{\"a\":1}x", "1e999", "\u{feff}{}"] {
            let error = parse_json(text.as_bytes()).expect_err(text);
            assert!(error.message().starts_with("The body is not valid JSON (line 1, column "), "{}", error.message());
        }
        assert!(parse_json(b"\xff\xfe").is_err());
        let cut = parse_json(br#"{"model": "de"#).unwrap_err();
        assert!(cut.message().ends_with("): it ends there."), "{}", cut.message());
        assert_eq!(parse_json(b" \n").unwrap_err().message(), "The body is empty; send a JSON object.");
        let comma = parse_json(b"{\"a\": 1,}").unwrap_err();
        assert!(comma.message().ends_with("column 9): trailing comma."), "{}", comma.message());
    }

    #[test]
    fn a_body_is_nested_so_deeply_and_no_further() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        parse_json(nested(MAX_DEPTH).as_bytes()).expect("it is not too deep");
        for text in [nested(MAX_DEPTH + 1), "[".repeat(200_000)] {
            let error = parse_json(text.as_bytes()).expect_err("it is too deep");
            assert!(error.message().starts_with("The body is nested too deeply: "), "{}", error.message());
        }
    }
}
