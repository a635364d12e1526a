//! Random JSON schemas, and a check of values against them that shares no code with the server.

use serde_json::{Map, Value, json};

use super::chance::Chance;

const KEYS: [&str; 8] = ["id", "name", "prénom", "a b", "x\"y", "tags", "next", "日"];
const TEXTS: [&str; 5] = ["yes", "no", "été", "a\\b", "two words"];
/// With checks of their own below.
const PATTERNS: [&str; 3] = ["^[a-f]{2,6}$", "^\\d{3}-\\d{2}$", "^(on|off)$"];
const KEY_PATTERN: &str = "^x[a-z]{0,3}$";
const FORMATS: [&str; 3] = ["date", "uuid", "ipv4"];

/// Whether several schemas may judge one value. Where they do, no object is closed that does not say so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Composition {
    Never,
    Sometimes,
}

/// A schema whose values are small.
pub(crate) fn random_schema(chance: &mut Chance) -> Value {
    let composition = *chance.one_of(&[Composition::Never, Composition::Sometimes]);
    let mut schema = node(chance, (3, composition));
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

type Bounds = (u32, Composition);

fn node(chance: &mut Chance, (depth, composition): Bounds) -> Value {
    if depth == 0 {
        return leaf(chance);
    }
    let inner = (depth - 1, composition);
    match chance.below(7) {
        0..=2 => object(chance, inner),
        3 => array(chance, inner),
        4 => json!({"anyOf": [node(chance, inner), leaf(chance)]}),
        5 if composition == Composition::Sometimes => composed(chance, inner),
        _ => leaf(chance),
    }
}

fn object(chance: &mut Chance, inner: Bounds) -> Value {
    if chance.below(4) == 0 {
        return open_object(chance, inner);
    }
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for _ in 0..chance.below(4) {
        let key = *chance.one_of(&KEYS);
        properties.insert(key.to_owned(), node(chance, inner));
        if chance.below(2) == 0 && !required.contains(&key) {
            required.push(key);
        }
    }
    // One that names what it requires holds no others, whether it says so or not.
    let is_silent = !required.is_empty() && inner.1 == Composition::Never;
    let mut object = json!({"type": "object", "properties": properties, "required": required});
    if !is_silent {
        object["additionalProperties"] = json!(false);
    }
    object
}

/// With names that the schema does not know, or knows as a pattern.
fn open_object(chance: &mut Chance, inner: Bounds) -> Value {
    let mut object = json!({"type": "object", "properties": {"id": node(chance, inner)}, "required": ["id"],
        "additionalProperties": leaf(chance), "minProperties": 1 + chance.below(2), "maxProperties": 3});
    if inner.1 == Composition::Sometimes {
        object["patternProperties"] = json!({KEY_PATTERN: leaf(chance)});
    }
    object
}

fn array(chance: &mut Chance, inner: Bounds) -> Value {
    let fewest = chance.below(3);
    let mut array = json!({"type": "array", "items": node(chance, inner), "minItems": fewest,
        "maxItems": fewest + chance.below(3)});
    if chance.below(3) == 0 {
        array["prefixItems"] = json!([node(chance, inner), leaf(chance)]);
    }
    array
}

fn composed(chance: &mut Chance, inner: Bounds) -> Value {
    let tagged = |tag: &str, value: Value| {
        json!({"type": "object", "properties": {"kind": {"const": tag}, "value": value}, "required": ["kind", "value"],
            "additionalProperties": false})
    };
    let named = |name: &str, value: Value| {
        json!({"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": true,
            "maxProperties": 3})
    };
    match chance.below(4) {
        0 => json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "string", "maxLength": 3},
            tagged("flat", node(chance, inner))]}),
        1 => json!({"oneOf": [tagged("flat", node(chance, inner)), tagged("round", leaf(chance))]}),
        2 => json!({"allOf": [{"type": "integer", "multipleOf": 4}, {"type": "integer", "multipleOf": 6},
            {"type": "integer", "minimum": -50, "maximum": 200}]}),
        _ => json!({"allOf": [named("id", node(chance, inner)), named("name", leaf(chance))]}),
    }
}

fn leaf(chance: &mut Chance) -> Value {
    match chance.below(11) {
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
        7 => json!({"type": "integer", "multipleOf": chance.one_of(&[3, 7, 12]), "minimum": -40, "maximum": 400}),
        8 => json!({"type": "number", "multipleOf": chance.one_of(&[0.5, 0.25, 3.0]), "minimum": -5, "maximum": 9}),
        9 => json!({"type": "string", "format": chance.one_of(&FORMATS)}),
        _ => json!({"const": chance.one_of(&TEXTS)}),
    }
}

/// Whether `value` is one that `schema`, made above, accepts. `root` holds the definitions.
pub(crate) fn accepts(schema: &Value, root: &Value, value: &Value) -> bool {
    if let Value::Bool(all) = schema {
        return *all;
    }
    if let Some(reference) = schema["$ref"].as_str() {
        return accepts(root.pointer(reference.trim_start_matches('#')).unwrap(), root, value);
    }
    // How many of how many schemas do.
    let of = |keyword: &str| {
        let schemas = schema[keyword].as_array()?;
        Some((schemas.iter().filter(|schema| accepts(schema, root, value)).count(), schemas.len()))
    };
    let any = of("anyOf").is_none_or(|(accepting, _)| accepting > 0);
    let one = of("oneOf").is_none_or(|(accepting, _)| accepting == 1);
    let all = of("allOf").is_none_or(|(accepting, schemas)| accepting == schemas);
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let same = schema.get("const").is_none_or(|wanted| wanted == value);
    let of_type = schema["type"].as_str().is_none_or(|kind| accepts_type(kind, schema, root, value));
    any && one && all && listed && same && of_type
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
            let divided = schema["multipleOf"].as_f64().is_none_or(|divisor| (number / divisor).fract() == 0.0);
            let bounded = at_least("minimum", number) && at_most("maximum", number);
            whole && divided && bounded && below("exclusiveMaximum", number)
        }
        ("string", Value::String(text)) => {
            let length = text.chars().count() as f64;
            let matches = schema["pattern"].as_str().is_none_or(|pattern| matches_pattern(pattern, text));
            let formed = schema["format"].as_str().is_none_or(|format| has_format(format, text));
            matches && formed && at_least("minLength", length) && at_most("maxLength", length)
        }
        ("array", Value::Array(items)) => {
            let length = items.len() as f64;
            let counted = at_least("minItems", length) && at_most("maxItems", length);
            let schema_at = |index: usize| schema["prefixItems"].get(index).unwrap_or(&schema["items"]);
            counted && items.iter().enumerate().all(|(index, item)| accepts(schema_at(index), root, item))
        }
        ("object", Value::Object(fields)) => {
            let count = fields.len() as f64;
            let counted = at_least("minProperties", count) && at_most("maxProperties", count);
            let required = schema["required"].as_array().unwrap();
            let has_all = required.iter().all(|name| fields.contains_key(name.as_str().unwrap()));
            counted && has_all && fields.iter().all(|field| accepts_field(schema, root, field))
        }
        _ => false,
    }
}

/// An object that is silent on other names than its own holds none.
fn accepts_field(schema: &Value, root: &Value, (name, value): (&String, &Value)) -> bool {
    let declared = schema["properties"].get(name);
    let patterned = schema["patternProperties"].get(KEY_PATTERN).filter(|_| matches_pattern(KEY_PATTERN, name));
    let judges: Vec<&Value> = declared.into_iter().chain(patterned).collect();
    if judges.is_empty() {
        return schema.get("additionalProperties").is_some_and(|schema| accepts(schema, root, value));
    }
    judges.into_iter().all(|schema| accepts(schema, root, value))
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    let bytes = text.as_bytes();
    match PATTERNS.iter().position(|known| *known == pattern) {
        Some(0) => (2..=6).contains(&bytes.len()) && bytes.iter().all(|byte| matches!(byte, b'a'..=b'f')),
        Some(1) => bytes.len() == 6 && bytes[3] == b'-' && [0, 1, 2, 4, 5].iter().all(|&at| bytes[at].is_ascii_digit()),
        Some(_) => matches!(text, "on" | "off"),
        None => {
            assert_eq!(pattern, KEY_PATTERN);
            let rest = text.strip_prefix('x');
            rest.is_some_and(|rest| rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_lowercase()))
        }
    }
}

fn has_format(format: &str, text: &str) -> bool {
    let parts: Vec<&str> = text.split(['-', '.']).collect();
    match (format, parts.as_slice()) {
        ("date", [year, month, day]) => {
            let days = match number(month) {
                Some(2) => 29,
                Some(4 | 6 | 9 | 11) => 30,
                _ => 31,
            };
            let in_range = number(month).is_some_and(|month| (1..=12).contains(&month))
                && number(day).is_some_and(|day| (1..=days).contains(&day));
            in_range && number(year).is_some() && [year.len(), month.len(), day.len()] == [4, 2, 2]
        }
        ("uuid", parts) => {
            let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            lengths == [8, 4, 4, 4, 12] && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        }
        ("ipv4", [_, _, _, _]) => {
            parts.iter().all(|part| number(part).is_some_and(|value| value <= 255 && value.to_string() == *part))
        }
        _ => false,
    }
}

fn number(digits: &str) -> Option<u32> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}
