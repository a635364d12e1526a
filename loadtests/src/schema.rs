//! Whether an answer keeps its JSON schema: what the scenarios use of JSON Schema. A keyword that is not known here allows
//! everything, so that no right answer is called wrong.

use serde_json::{Map, Value};

/// Whether `text` is JSON that `schema` allows.
pub fn is_kept_by(schema: &Value, text: &str) -> bool {
    serde_json::from_str(text).is_ok_and(|value| allows(schema, &value))
}

/// `type`, `enum`, `const`, `required`, `properties`, `additionalProperties` and `items`.
fn allows(schema: &Value, value: &Value) -> bool {
    let keywords = match schema {
        Value::Bool(allows_all) => return *allows_all,
        Value::Object(keywords) => keywords,
        _ => return true,
    };
    let keeps = |name: &str, rule: &dyn Fn(&Value) -> bool| keywords.get(name).is_none_or(rule);
    keeps("type", &|types| is_of(types, value))
        && keeps("enum", &|values| values.as_array().is_none_or(|values| values.contains(value)))
        && keeps("const", &|only| only == value)
        && match value {
            Value::Object(fields) => allows_fields(keywords, fields),
            Value::Array(items) => keeps("items", &|schema| items.iter().all(|item| allows(schema, item))),
            _ => true,
        }
}

/// `types` is a name, or a list of names.
fn is_of(types: &Value, value: &Value) -> bool {
    match types {
        Value::String(name) => match name.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "number" => value.is_number(),
            // 3.0 is an integer too.
            "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            _ => true,
        },
        Value::Array(names) => names.iter().any(|name| is_of(name, value)),
        _ => true,
    }
}

fn allows_fields(keywords: &Map<String, Value>, fields: &Map<String, Value>) -> bool {
    let required = keywords.get("required").and_then(Value::as_array).into_iter().flatten();
    let has_all = required.filter_map(Value::as_str).all(|name| fields.contains_key(name));
    let described = keywords.get("properties").and_then(Value::as_object);
    let others = keywords.get("additionalProperties").unwrap_or(&Value::Bool(true));
    let schema_of = |name: &String| described.and_then(|schemas| schemas.get(name)).unwrap_or(others);
    has_all && fields.iter().all(|(name, value)| allows(schema_of(name), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn person() -> Value {
        json!({
            "type": "object",
            "required": ["name", "age"],
            "additionalProperties": false,
            "properties": {
                "name": {"type": "string"},
                "age": {"type": ["integer", "null"]},
                "mood": {"enum": ["good", "bad"]},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
        })
    }

    #[test]
    fn an_answer_that_keeps_every_rule_is_right() {
        for right in [
            r#"{"name": "x", "age": 3}"#,
            r#"{"name": "x", "age": 3.0, "mood": "bad", "tags": []}"#,
            r#"{"name": "x", "age": null, "tags": ["a", "b"]}"#,
        ] {
            assert!(is_kept_by(&person(), right), "{right}");
        }
        assert!(is_kept_by(&json!({}), "7") && !is_kept_by(&json!({}), "seven"));
    }

    #[test]
    fn each_broken_rule_is_seen() {
        for wrong in [
            r#"["name", "age"]"#,
            r#"{"name": "x"}"#,
            r#"{"name": 1, "age": 3}"#,
            r#"{"name": "x", "age": "old"}"#,
            r#"{"name": "x", "age": 3.5}"#,
            r#"{"name": "x", "age": 3, "surplus": 1}"#,
            r#"{"name": "x", "age": 3, "mood": "so-so"}"#,
            r#"{"name": "x", "age": 3, "tags": ["a", 1]}"#,
        ] {
            assert!(!is_kept_by(&person(), wrong), "{wrong}");
        }
    }
}
