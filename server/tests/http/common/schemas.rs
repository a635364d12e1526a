//! Random JSON schemas, and a check of values against them that shares no code with the server.

use serde_json::{Map, Value, json};

use super::chance::Chance;

const KEYS: [&str; 8] = ["id", "name", "prénom", "a b", "x\"y", "tags", "next", "日"];
const TEXTS: [&str; 5] = ["yes", "no", "été", "a\\b", "two words"];
/// With checks of their own below.
const PATTERNS: [&str; 3] = ["^[a-f]{2,6}$", "^\\d{3}-\\d{2}$", "^(on|off)$"];

/// A schema whose values are small.
pub(crate) fn random_schema(chance: &mut Chance) -> Value {
    let mut schema = node(chance, 3);
    // A recursive type, half of the time.
    if chance.below(2) == 0 {
        let value = leaf(chance);
        schema = json!({
            "$defs": {"tree": {
                "type": "object",
                "properties": {"value": value, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
                "required": ["value"],
                "additionalProperties": false,
            }},
            "anyOf": [{"$ref": "#/$defs/tree"}, schema],
        });
    }
    schema
}

fn node(chance: &mut Chance, depth: u32) -> Value {
    if depth == 0 {
        return leaf(chance);
    }
    match chance.below(6) {
        0..=2 => object(chance, depth),
        3 => array(chance, depth),
        4 => json!({"anyOf": [node(chance, depth - 1), leaf(chance)]}),
        _ => leaf(chance),
    }
}

fn object(chance: &mut Chance, depth: u32) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for _ in 0..chance.below(4) {
        let key = *chance.one_of(&KEYS);
        properties.insert(key.to_owned(), node(chance, depth - 1));
        if chance.below(2) == 0 && !required.contains(&key) {
            required.push(key);
        }
    }
    // One that names what it requires holds no others, whether it says so or not.
    let is_silent = !required.is_empty();
    let mut object = json!({"type": "object", "properties": properties, "required": required});
    if !is_silent {
        object["additionalProperties"] = json!(false);
    }
    object
}

fn array(chance: &mut Chance, depth: u32) -> Value {
    let fewest = chance.below(3);
    json!({"type": "array", "items": node(chance, depth - 1), "minItems": fewest, "maxItems": fewest + chance.below(3)})
}

fn leaf(chance: &mut Chance) -> Value {
    match chance.below(8) {
        0 => json!({"type": "null"}),
        1 => json!({"type": "boolean"}),
        2 => {
            let lowest = i64::try_from(chance.below(200)).unwrap() - 100;
            json!({"type": "integer", "minimum": lowest, "maximum": lowest + i64::try_from(chance.below(1000)).unwrap()})
        }
        3 => json!({"type": "number", "minimum": -2, "exclusiveMaximum": 7}),
        4 => {
            let shortest = chance.below(4);
            json!({"type": "string", "minLength": shortest, "maxLength": shortest + chance.below(8)})
        }
        5 => json!({"type": "string", "pattern": chance.one_of(&PATTERNS)}),
        6 => json!({"enum": [chance.one_of(&TEXTS), 17, null, {"k": [1]}]}),
        _ => json!({"const": chance.one_of(&TEXTS)}),
    }
}

/// Whether `value` is one that `schema`, made above, accepts. `root` holds the definitions.
pub(crate) fn accepts(schema: &Value, root: &Value, value: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        return accepts(root.pointer(reference.trim_start_matches('#')).unwrap(), root, value);
    }
    let any = schema["anyOf"].as_array().is_none_or(|any| any.iter().any(|schema| accepts(schema, root, value)));
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let same = schema.get("const").is_none_or(|wanted| wanted == value);
    any && listed && same && schema["type"].as_str().is_none_or(|kind| accepts_type(kind, schema, root, value))
}

fn accepts_type(kind: &str, schema: &Value, root: &Value, value: &Value) -> bool {
    let at_least = |name: &str, got: f64| schema[name].as_f64().is_none_or(|bound| got >= bound);
    let at_most = |name: &str, got: f64| schema[name].as_f64().is_none_or(|bound| got <= bound);
    let below = |name: &str, got: f64| schema[name].as_f64().is_none_or(|bound| got < bound);
    match (kind, value) {
        ("null", Value::Null) | ("boolean", Value::Bool(_)) => true,
        ("integer" | "number", Value::Number(number)) => {
            let number = number.as_f64().unwrap();
            let whole = kind == "number" || number.fract() == 0.0;
            whole && at_least("minimum", number) && at_most("maximum", number) && below("exclusiveMaximum", number)
        }
        ("string", Value::String(text)) => {
            let length = text.chars().count() as f64;
            let matches = schema["pattern"].as_str().is_none_or(|pattern| matches_pattern(pattern, text));
            matches && at_least("minLength", length) && at_most("maxLength", length)
        }
        ("array", Value::Array(items)) => {
            let length = items.len() as f64;
            let counted = at_least("minItems", length) && at_most("maxItems", length);
            counted && items.iter().all(|item| accepts(&schema["items"], root, item))
        }
        ("object", Value::Object(fields)) => {
            let required = schema["required"].as_array().unwrap();
            let has_all = required.iter().all(|name| fields.contains_key(name.as_str().unwrap()));
            let accepts_field = |(name, value): (&String, &Value)| {
                schema["properties"].get(name).is_some_and(|schema| accepts(schema, root, value))
            };
            has_all && fields.iter().all(accepts_field)
        }
        _ => false,
    }
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    let bytes = text.as_bytes();
    match PATTERNS.iter().position(|known| *known == pattern).unwrap() {
        0 => (2..=6).contains(&bytes.len()) && bytes.iter().all(|byte| matches!(byte, b'a'..=b'f')),
        1 => bytes.len() == 6 && bytes[3] == b'-' && [0, 1, 2, 4, 5].iter().all(|&at| bytes[at].is_ascii_digit()),
        _ => matches!(text, "on" | "off"),
    }
}
