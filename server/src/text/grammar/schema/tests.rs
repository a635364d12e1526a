use super::*;
use crate::text::fixtures::{byte_level_json, tokenizer};
use crate::text::grammar::{CompiledGrammar, Grammar, GrammarBounds, GrammarCompiler};

fn compile(grammar: &Grammar) -> Result<CompiledGrammar, GrammarError> {
    GrammarCompiler::new(tokenizer(&byte_level_json()), vec![266]).compile(grammar, &GrammarBounds::default())
}

fn allows(schema: &Value, text: &str) -> bool {
    let mut constraint = compile(&Grammar::JsonSchema(schema.clone())).unwrap();
    text.bytes().all(|byte| {
        let token = u32::from(byte);
        constraint.allowed().allows(token) && constraint.accept(token).is_ok()
    })
}

fn refusal(schema: &Value) -> String {
    closed_schema(schema).expect_err("what the test refuses").to_string()
}

fn object_of(names: impl Iterator<Item = usize>, schema: impl Fn(usize) -> Value) -> Value {
    let properties: Map<String, Value> = names.map(|index| (format!("p{index}"), schema(index))).collect();
    json!({"type": "object", "properties": properties})
}

#[test]
fn what_would_be_compiled_for_minutes_is_refused_with_its_keyword_place_and_bound() {
    let patterns: Map<String, Value> = (0..33).map(|index| (format!("^p{index}_.*x$"), json!({}))).collect();
    let cases = [
        (json!({"type": "integer", "multipleOf": 9_999_991}), ["multipleOf", "#", "10000"]),
        (json!({"items": {"type": "number", "multipleOf": 0.99991}}), ["multipleOf", "#/items", "10000"]),
        (object_of(0..20, |index| json!({"multipleOf": 900 + index})), ["multipleOf", "#/properties/p11", "10000"]),
        (
            json!({"type": "integer", "allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}),
            ["multipleOf", "compose", "10000"],
        ),
        (json!({"patternProperties": patterns}), ["patternProperties", "#", "32"]),
        (object_of(0..1001, |_| json!({"type": "integer"})), ["properties", "#", "1000"]),
        (json!({"prefixItems": vec![json!({}); 1001]}), ["prefixItems", "#", "1000"]),
        (json!({"enum": [object_of(0..1001, |_| json!(1))]}), ["enum", "#", "1000"]),
        (object_of(0..257, |index| json!({"pattern": format!("^{index}$")})), ["pattern", "#/properties/p256", "256"]),
        (json!({"$ref": "#/far", "far": {"multipleOf": 9_999_991}}), ["multipleOf", "#/far", "10000"]),
    ];
    for (schema, named) in cases {
        let refusal = refusal(&schema);
        assert!(named.iter().all(|name| refusal.contains(name)), "{named:?}: {refusal}");
        let lark = Grammar::Lark(format!("start: \"a\" b\nb: %json {schema}"));
        assert_eq!(compile(&lark).expect_err("refused there too").to_string(), refusal);
    }
    let near = json!({"type": "integer", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "minimum": 1, "maximum": 20});
    assert!(allows(&near, "12") && !allows(&near, "16"));
}

#[test]
fn what_would_not_be_kept_is_refused_by_name() {
    let beyond = 9_007_199_254_740_993_i64;
    let cases = [
        (json!({"const": beyond}), "const"),
        (json!({"enum": [1, {"deep": [-beyond]}]}), "enum"),
        (json!({"anyOf": [{"minimum": beyond}]}), "minimum"),
        (json!({"properties": {"a": {"maximum": u64::MAX}}}), "maximum"),
        (json!({"items": {"exclusiveMinimum": beyond}}), "exclusiveMinimum"),
        (json!({"exclusiveMaximum": 1e300}), "exclusiveMaximum"),
        (json!({"multipleOf": 0}), "multipleOf"),
        (json!({"multipleOf": -3}), "multipleOf"),
        (json!({"type": "object", "minProperties": 2}), "minProperties"),
        (json!({"type": "object", "required": ["a", "a"], "minProperties": 3}), "minProperties"),
        (json!({"prefixItems": [{"const": 1}], "additionalItems": false}), "additionalItems"),
        (json!({"prefixItems": [{"const": 1}], "items": [{"const": 2}]}), "prefixItems"),
        (json!({"properties": {"a": {"pattern": "^(?=a)b"}}}), "\"pattern\" at #/properties/a cannot"),
        (json!({"properties": {"a": {"pattern": "^(a)\\1$"}}}), "\"pattern\" at #/properties/a cannot"),
        (json!({"patternProperties": {"(": {}}}), "\"patternProperties\" at # cannot"),
    ];
    for (schema, named) in cases {
        assert!(refusal(&schema).contains(named), "{schema}: {}", refusal(&schema));
    }
    let exact = json!({"enum": [9_007_199_254_740_992_i64]});
    assert!(allows(&exact, "9007199254740992"));
}

#[test]
fn a_property_of_the_name_of_a_keyword_is_no_keyword() {
    let named = json!({"multipleOf": {"const": 1}, "uniqueItems": {"const": 2}, "minProperties": {"const": 3}});
    let schema = json!({"type": "object", "properties": named, "required": ["multipleOf", "uniqueItems"]});
    assert!(allows(&schema, r#"{"multipleOf":1,"uniqueItems":2,"minProperties":3}"#));
}

#[test]
fn items_that_need_not_be_unique_are_any() {
    let schema = json!({"type": "array", "items": {"const": 1, "uniqueItems": false}, "uniqueItems": false});
    assert!(allows(&schema, "[1,1]"));
    assert!(compile(&Grammar::JsonSchema(json!({"type": "array", "uniqueItems": true}))).is_err());
}

#[test]
fn keys_are_counted_as_far_as_they_differ() {
    let schema = json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "minProperties": 2,
        "maxProperties": 2});
    assert!(allows(&schema, r#"{"a":1,"b":2}"#));
    for wrong in [r#"{"a":1}"#, r#"{"a":1,"a""#, r#"{"a":1,"b":2,"#] {
        assert!(!allows(&schema, wrong), "{wrong}");
    }
}

#[test]
fn a_name_that_is_spelt_otherwise_is_still_the_property_of_that_name() {
    let open = json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
        "additionalProperties": {"const": 2}});
    let patterned =
        json!({"type": "object", "patternProperties": {"^a": {"const": 1}}, "additionalProperties": {"const": 2}});
    assert!(allows(&open, r#"{"a":1,"b":2}"#) && allows(&patterned, r#"{"ab":1,"b":2}"#));
    assert!(!allows(&open, r#"{"a":1,"\u0061":2"#) && !allows(&patterned, r#"{"\u0061":2"#));
    assert!(allows(&json!({"type": "string"}), r#""\u0001""#), "where names do not matter, every escape is free");
}
