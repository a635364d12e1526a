use std::time::Duration;

use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{AnswerEnd, Constraint, ConstraintError};
use serde_json::json;

use super::*;
use crate::text::fixtures::{Random, byte_fallback_json, byte_level_json, tokenizer, word_piece_json};
use crate::text::tokenizer::SkipSpecialTokens;

/// The fixture's `<|im_end|>`.
const END: u32 = 266;

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(tokenizer(&byte_level_json()), vec![END])
}

fn compile(grammar: &Grammar) -> Result<CompiledGrammar, GrammarError> {
    compiler().compile(grammar, &GrammarBounds::default())
}

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema(schema)
}

fn lark(text: &str) -> Grammar {
    Grammar::Lark(text.to_owned())
}

fn allowed_tokens(constraint: &dyn Constraint) -> Vec<u32> {
    (0..300).filter(|&token| constraint.allowed().allows(token)).collect()
}

/// Whether the grammar allows `text`, byte by byte, and whether the answer may end after it.
fn follow(grammar: &Grammar, text: &str) -> Option<AnswerEnd> {
    let mut constraint = compile(grammar).unwrap();
    for byte in text.bytes() {
        if constraint.allowed().end == AnswerEnd::Reached || !constraint.allowed().allows(u32::from(byte)) {
            return None;
        }
        constraint.accept(u32::from(byte)).unwrap();
    }
    Some(constraint.allowed().end)
}

/// Whether an answer that [`follow`] followed may be all.
fn is_end(end: Option<AnswerEnd>) -> bool {
    matches!(end, Some(AnswerEnd::Here | AnswerEnd::Reached))
}

/// An answer of random tokens, each as likely as any other that is allowed; `None` if it does not end in time.
fn random_answer(constraint: &mut dyn Constraint, random: &mut Random) -> Option<String> {
    let mut tokens = Vec::new();
    for _ in 0..500 {
        let may_stop = match constraint.allowed().end {
            AnswerEnd::Reached => true,
            AnswerEnd::Here => random.below(4) == 0,
            AnswerEnd::NotHere => false,
        };
        if may_stop {
            return Some(tokenizer(&byte_level_json()).decode(&tokens, SkipSpecialTokens::No));
        }
        let allowed = allowed_tokens(constraint);
        let token = allowed[random.below(allowed.len())];
        constraint.accept(token).unwrap();
        tokens.push(token);
    }
    None
}

#[test]
fn each_kind_of_grammar_allows_what_it_says_and_nothing_else() {
    let cases = [
        (Grammar::JsonObject, r#"{"a": [1, null]}"#, "[1]"),
        (schema(json!({"type": "integer", "minimum": 3, "maximum": 12})), "12", "13"),
        (schema(json!({"enum": ["yes", 4]})), "4", "5"),
        (
            schema(json!({"type": "object", "properties": {"a": {"const": true}}, "required": ["a"]})),
            r#"{"a":true}"#,
            "{}",
        ),
        (Grammar::Regex(r"\d{2}/[a-f]+".to_owned()), "12/ab", "1/a"),
        (Grammar::Choice(vec!["rouge".to_owned(), "a \"b\" c\n\\".to_owned()]), "a \"b\" c\n\\", "vert"),
        (lark("start: \"<\" inner \">\"\ninner: /[a-z]/+ | start"), "<<ab>>", "<<ab>x"),
    ];
    for (grammar, right, wrong) in cases {
        assert!(is_end(follow(&grammar, right)), "{grammar:?}: {right}");
        assert!(!is_end(follow(&grammar, wrong)), "{grammar:?}: {wrong}");
    }
}

#[test]
fn the_end_is_seen_as_soon_as_nothing_can_follow() {
    assert_eq!(follow(&Grammar::Regex("ab?".to_owned()), "a"), Some(AnswerEnd::Here));
    assert_eq!(follow(&Grammar::Regex("ab?".to_owned()), "ab"), Some(AnswerEnd::Reached));
    assert_eq!(follow(&Grammar::JsonObject, r#"{"a":{}"#), Some(AnswerEnd::NotHere));
    assert_eq!(follow(&Grammar::JsonObject, r#"{"a":{}}"#), Some(AnswerEnd::Reached));
    assert_eq!(follow(&Grammar::Choice(vec!["a".to_owned(), "ab".to_owned()]), "a"), Some(AnswerEnd::Here));
}

#[test]
fn special_tokens_and_those_that_end_an_answer_are_no_text() {
    let constraint = compile(&Grammar::Regex("(?s:.*)".to_owned())).unwrap();
    let tokens = allowed_tokens(constraint.as_ref());
    // The fixture's special tokens are 265 to 267 and 269; `<tool_call>`, 268, is text.
    assert!(tokens.contains(&256) && tokens.contains(&268));
    assert!([265, 266, 267, 269].iter().all(|special| !tokens.contains(special)));
    let unmarked_end = GrammarCompiler::new(tokenizer(&byte_level_json()), vec![u32::from(b'x')]);
    let constraint = unmarked_end.compile(&Grammar::Regex("[wxy]+".to_owned()), &GrammarBounds::default()).unwrap();
    assert_eq!(allowed_tokens(constraint.as_ref()), [u32::from(b'w'), u32::from(b'y')]);
}

#[test]
fn tokens_that_spell_a_part_of_a_character_are_followed() {
    let grammar = Grammar::Regex("[éà]!".to_owned());
    assert_eq!(follow(&grammar, "é!"), Some(AnswerEnd::Reached));
    assert_eq!(follow(&grammar, "è!"), None);
    let fallback = GrammarCompiler::new(tokenizer(&byte_fallback_json()), vec![2]);
    let mut constraint = fallback.compile(&Grammar::Regex("日".to_owned()), &GrammarBounds::default()).unwrap();
    // `<0x00>` is token 3.
    for byte in "日".bytes() {
        assert_eq!(allowed_tokens(constraint.as_ref()), [u32::from(byte) + 3]);
        constraint.accept(u32::from(byte) + 3).unwrap();
    }
    assert_eq!(constraint.allowed().end, AnswerEnd::Reached);
}

#[test]
fn a_fork_goes_its_own_way() {
    let mut first = compile(&Grammar::Regex("a(b+|c)".to_owned())).unwrap();
    first.accept(u32::from(b'a')).unwrap();
    let mut second = first.fork();
    first.accept(u32::from(b'c')).unwrap();
    second.accept(u32::from(b'b')).unwrap();
    assert_eq!((first.allowed().end, second.allowed().end), (AnswerEnd::Reached, AnswerEnd::Here));
}

#[test]
fn a_token_that_was_not_allowed_is_an_error_and_not_a_panic() {
    let mut constraint = compile(&Grammar::JsonObject).unwrap();
    assert_eq!(constraint.accept(u32::from(b'x')), Err(ConstraintError::Lost));
    assert_eq!(compile(&Grammar::JsonObject).unwrap().accept(1 << 20), Err(ConstraintError::Lost));
}

#[test]
fn whitespace_cannot_fill_an_answer() {
    let mut random = Random::new(3);
    let mut constraint = compile(&schema(json!({"type": "array", "items": {"const": 1}, "maxItems": 2}))).unwrap();
    constraint.accept(u32::from(b'[')).unwrap();
    let spaces = std::iter::from_fn(|| {
        let spaces: Vec<u32> = allowed_tokens(constraint.as_ref()).into_iter().filter(|token| *token <= 32).collect();
        let token = *spaces.get(random.below(spaces.len().max(1)))?;
        constraint.accept(token).unwrap();
        Some(token)
    });
    assert!(spaces.take(100).count() < 50);
}

#[test]
fn between_two_json_tokens_stands_a_space_or_a_line_break_with_its_indentation() {
    let list = schema(json!({"type": "array", "items": {"const": 1}, "maxItems": 2}));
    let spaces_after = |text: &str| -> Vec<u32> {
        let mut constraint = compile(&list).unwrap();
        text.bytes().for_each(|byte| constraint.accept(u32::from(byte)).unwrap());
        let mut spaces = allowed_tokens(constraint.as_ref());
        spaces.retain(|token| *token <= 32);
        spaces
    };
    let [tab, line_feed, carriage_return, space] = [b'\t', b'\n', b'\r', b' '].map(u32::from);
    assert_eq!(spaces_after("["), [line_feed, carriage_return, space]);
    assert!(spaces_after("[ ").is_empty());
    assert_eq!(spaces_after("[\r"), [line_feed]);
    for line in ["[\n", "[\r\n", "[\n\t", "[ 1,\n    "] {
        assert_eq!(spaces_after(line), [tab, space], "{line:?}");
    }
    assert!(spaces_after(&format!("[\n{}", " ".repeat(32))).is_empty());
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let cases = [
        (schema(json!({"not": {"type": "string"}})), "not"),
        (schema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (schema(json!({"properties": {"a": {"if": {}}}})), "if"),
        (schema(json!({"x-guidance": {"lenient": true}, "not": {}})), "x-guidance"),
        (schema(json!({"type": "string", "format": "phase-of-the-moon"})), "phase-of-the-moon"),
        (schema(json!({"$ref": "https://example.org/other.json"})), "example.org"),
        (schema(json!({"type": "colour"})), "colour"),
        (schema(json!([1])), "a schema is an object"),
        (Grammar::Regex("(".to_owned()), "regex"),
        (lark("start: missing"), "missing"),
    ];
    for (grammar, named) in cases {
        let error = compile(&grammar).unwrap_err();
        assert!(error.is_request_fault() && error.to_string().contains(named), "{grammar:?}: {error}");
    }
}

#[test]
fn a_refusal_is_in_plain_words_without_what_the_compiler_draws() {
    let cases = [
        (schema(json!({"not": {}})), "the keyword \"not\" is not supported"),
        (schema(json!({"not": {}, "if": {}})), "the keywords \"if\", \"not\" are not supported"),
        (schema(json!({"type": "string", "format": "tide"})), "the keyword \"format\" does not support tide"),
        (
            schema(json!({"$ref": "https://example.org/o"})),
            "the keyword \"$ref\" points to nothing outside the schema (#/...), so not to 'https://example.org/o'",
        ),
        (
            schema(json!({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]})),
            "the keyword \"oneOf\" is not supported where one value can be of two of its schemas: use \"anyOf\"",
        ),
        (
            schema(json!({"type": "string", "pattern": "("})),
            "the keyword \"pattern\" at # cannot be followed: invalid regex: unclosed group",
        ),
        (Grammar::Regex("(".to_owned()), "invalid regex \"(\": unclosed group"),
        (lark("start: missing"), "at 1(8): unknown name: \"missing\""),
    ];
    for (grammar, told) in cases {
        assert_eq!(compile(&grammar).unwrap_err().to_string(), format!("cannot be compiled: {told}"), "{grammar:?}");
    }
}

#[test]
fn a_grammar_that_allows_nothing_is_refused() {
    let impossible = [schema(json!(false)), schema(json!({"type": "integer", "minimum": 3, "maximum": 2}))];
    for grammar in impossible.into_iter().chain([Grammar::Regex(String::new()), Grammar::Regex("[^\\s\\S]".to_owned())])
    {
        assert!(compile(&grammar).is_err(), "{grammar:?}");
    }
}

#[test]
fn a_tokenizer_without_bytes_of_its_own_is_refused() {
    let compiler = GrammarCompiler::new(tokenizer(&word_piece_json()), vec![1]);
    let refused = compiler.compile(&Grammar::JsonObject, &GrammarBounds::default());
    assert_eq!(refused.unwrap_err(), GrammarError::NotEnforceable);
}

/// Each of these has ended a server somewhere, or kept one busy for minutes.
#[test]
fn hostile_grammars_are_refused_or_compiled_in_time() {
    let nested = |open: &str, close: &str, depth: usize| format!("{}a{}", open.repeat(depth), close.repeat(depth));
    let chain = |rules: usize| -> String {
        let rule = |index: usize| format!("r{index}: r{} \"a\"\n", index + 1);
        format!("start: r0\n{}r{rules}: \"b\"\n", (0..rules).map(rule).collect::<String>())
    };
    let terminals = |count: usize| -> String {
        let terminal = |index: usize| format!("T{index}: T{} \"a\"\n", index + 1);
        format!("start: T0\n{}T{count}: \"b\"\n", (0..count).map(terminal).collect::<String>())
    };
    let mut deep = json!({"type": "null"});
    for _ in 0..60 {
        deep = json!({"type": "array", "items": deep});
    }
    let names: Vec<String> = (0..20_000).map(|index| format!("name-{index}")).collect();
    let one_of: Vec<Value> = (0..500).map(|index| json!({"const": index})).collect();
    let crossed: Vec<Value> =
        (0..60).map(|index| json!({"anyOf": [{"minimum": index}, {"maximum": index}, {"type": "string"}]})).collect();
    let grammars = [
        Grammar::Regex(nested("(", ")", 30_000)),
        Grammar::Regex(nested("(", ")*", 60)),
        Grammar::Regex("(a{1,1000}){1,1000}".to_owned()),
        Grammar::Regex("(x+x+)+y".to_owned()),
        Grammar::Regex(format!("({})*", "a?".repeat(3000))),
        lark(&format!("start: {}", nested("(", ")", 30_000))),
        lark(&chain(8000)),
        lark(&terminals(8000)),
        lark("start: start start | \"a\""),
        lark("start: a*\na: b*\nb: \"x\"*"),
        lark("start: %json {\"type\": \"array\", \"minItems\": 100000000}"),
        schema(json!({"enum": names})),
        schema(json!({"oneOf": one_of})),
        schema(json!({"allOf": crossed})),
        schema(json!({"$ref": "#"})),
        schema(
            json!({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        ),
        schema(json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "integer"}})),
        schema(json!({"type": "string", "minLength": 1_000_000_000})),
        schema(json!({"type": "string", "pattern": "^(a|aa)+$", "maxLength": 100_000})),
        schema(deep),
    ];
    let mut random = Random::new(11);
    let clock = SystemClock::new();
    for (index, grammar) in grammars.iter().enumerate() {
        let began = clock.now();
        if let Ok(mut constraint) = compile(grammar) {
            for _ in 0..40 {
                let allowed = allowed_tokens(constraint.as_ref());
                let Some(token) = allowed.get(random.below(allowed.len().max(1))) else { break };
                if constraint.accept(*token).is_err() || constraint.allowed().end == AnswerEnd::Reached {
                    break;
                }
            }
        }
        let took = clock.now() - began;
        assert!(took < Duration::from_secs(30), "grammar {index} took {took:?}");
    }
}

#[test]
fn a_grammar_whose_first_byte_takes_hours_is_refused() {
    let repeats = [2, 3, 5, 7, 11, 13, 17, 19, 23].map(|prime| format!("/(a{{{prime}}})*/"));
    let error = compile(&lark(&format!("start: A\nA: {}", repeats.join(" & ")))).unwrap_err();
    assert!(error.is_request_fault() && error.to_string().contains("more work"), "{error}");
}

#[test]
fn bounds_on_what_is_written_are_kept() {
    let bounds = GrammarBounds { max_bytes: 64, max_depth: 3, ..GrammarBounds::default() };
    let refused = |grammar| compiler().compile(&grammar, &bounds).unwrap_err();
    assert_eq!(refused(Grammar::Regex("a".repeat(65))), GrammarError::TooLong { bytes: 65, limit: 64 });
    assert_eq!(refused(Grammar::Regex("((((a))))".to_owned())), GrammarError::TooDeep { limit: 3 });
    assert_eq!(refused(schema(json!({"enum": [[[[]]]]}))), GrammarError::TooDeep { limit: 3 });
    let small = GrammarBounds { max_size: 10, ..GrammarBounds::default() };
    let many = schema(json!({"properties": {"a": {}, "b": {}, "c": {}, "d": {}}}));
    assert!(matches!(compiler().compile(&many, &small), Err(GrammarError::Invalid(_))));
}

#[test]
fn work_for_one_token_is_bounded() {
    let bounds = GrammarBounds { token_fuel: 100, ..GrammarBounds::default() };
    let heavy = Grammar::Regex(format!("({})*", "a?".repeat(300)));
    let mut constraint = match compiler().compile(&heavy, &bounds) {
        Ok(constraint) => constraint,
        Err(error) => return assert!(error.to_string().contains("more work"), "{error}"),
    };
    let outcome = (0..100).try_for_each(|_| constraint.accept(u32::from(b'a')));
    assert_eq!(outcome, Err(ConstraintError::TooComplex));
}

#[test]
fn random_answers_are_json_of_their_schema() {
    let compiled = compile(&schema(json!({
        "type": "object",
        "properties": {"id": {"type": "integer", "minimum": 0}, "tags": {"type": "array", "items": {"enum": ["a", "é"]}}},
        "required": ["id", "tags"],
        "additionalProperties": false,
    })))
    .unwrap();
    let mut random = Random::new(7);
    let mut finished = 0;
    for _ in 0..200 {
        let Some(answer) = random_answer(compiled.fork().as_mut(), &mut random) else { continue };
        let value: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer:?}: {error}"));
        assert!(value["id"].as_u64().is_some() && value["tags"].is_array(), "{answer}");
        finished += 1;
    }
    assert!(finished > 100, "{finished}");
}

#[test]
fn an_object_holds_no_property_that_its_schema_does_not_name() {
    let one = json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]});
    let two = json!({"type": "object", "properties": {"b": {"const": 2}, "c": {"type": "boolean"}}, "required": ["b"]});
    let cases = [
        (one.clone(), r#"{"a":1}"#, r#"{"a":1,"#),
        (one.clone(), r#"{"a":1}"#, r#"{"x"#),
        (json!({"properties": {"a": {"const": 1}}}), "{}", r#"{"x"#),
        (json!({"type": ["object", "null"], "properties": {"a": {"const": 1}}}), r#"{"a":1}"#, r#"{"a":1,"#),
        (json!({"type": "array", "items": one, "maxItems": 1}), r#"[{"a":1}]"#, r#"[{"a":1,"#),
        (json!({"anyOf": [one, two]}), r#"{"b":2,"c":true}"#, r#"{"a":1,"#),
        (json!({"type": "object", "additionalProperties": one}), r#"{"x":{"a":1}}"#, r#"{"x":{"a":1,"#),
        (
            json!({"$defs": {"one": one}, "type": "object", "properties": {"in": {"$ref": "#/$defs/one", "title": "In"}}}),
            r#"{"in":{"a":1}}"#,
            r#"{"in":{"a":1,"#,
        ),
    ];
    for (silent, right, further) in cases {
        assert!(is_end(follow(&schema(silent.clone()), right)), "{silent}: {right}");
        assert_eq!(follow(&schema(silent.clone()), further), None, "{silent}: {further}");
    }
    let compiled = compile(&schema(two)).unwrap();
    let mut random = Random::new(13);
    let answers = (0..50).filter_map(|_| random_answer(compiled.fork().as_mut(), &mut random));
    let keys = answers.map(|answer| {
        let object: serde_json::Map<String, Value> = serde_json::from_str(&answer).unwrap();
        object.keys().cloned().collect::<Vec<_>>()
    });
    let keys: Vec<Vec<String>> = keys.collect();
    assert!(!keys.is_empty() && keys.iter().all(|keys| *keys == ["b"] || *keys == ["b", "c"]), "{keys:?}");
}

#[test]
fn what_a_schema_says_of_other_properties_holds_and_what_it_composes_stays_open() {
    let one = |more: Value| {
        let mut object = json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let two = json!({"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]});
    let (more, both) = (r#"{"a":1,"x":3}"#, r#"{"a":1,"b":2}"#);
    let cases = [
        (one(json!({"additionalProperties": true})), more),
        (one(json!({"additionalProperties": {"type": "integer"}})), more),
        (one(json!({"patternProperties": {"^x": {"type": "integer"}}})), more),
        (one(json!({"minProperties": 2})), more),
        (one(json!({"required": ["a", "x"]})), more),
        (json!({"type": "object"}), more),
        (json!({"type": "object", "properties": {}}), more),
        (json!({"oneOf": [one(json!({})), {"type": "array"}]}), more),
        (one(json!({"const": {"a": 1, "b": 2}})), both),
        (one(json!({"enum": [{"a": 1, "b": 2}]})), both),
        (json!({"allOf": [one(json!({})), two]}), both),
        (one(json!({"allOf": [two]})), both),
        (one(json!({"anyOf": [two, {"type": "object", "required": ["c"]}]})), both),
        (one(json!({"$defs": {"two": two}, "$ref": "#/$defs/two"})), both),
    ];
    for (open, text) in cases {
        assert!(is_end(follow(&schema(open.clone()), text)), "{open}: {text}");
    }
}
