use passerelle_engine::{AnswerEnd, Constraint};

use super::*;
use crate::text::answer::AnswerDelta;
use crate::text::fixtures::{Random, added_token, byte_level_json, tokenizer};
use crate::text::grammar::{CompiledGrammar, GrammarCompiler};
use crate::text::tokenizer::SkipSpecialTokens;
use crate::text::tools::ToolCallParser;

/// The fixture's `<|im_end|>`.
const END: u32 = 266;

/// Whether a format's markers are special tokens or spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Markers {
    Special,
    Spelt,
}

fn vocabulary(markers: Markers) -> Tokenizer {
    let mut json = byte_level_json();
    if markers == Markers::Special {
        let texts = ToolFormat::ALL.into_iter().flat_map(|format| format.markers()).chain(&["</think>"]);
        let added = texts.enumerate().map(|(index, text)| added_token(300 + index, text, true));
        let added: Vec<Value> = added.collect();
        json["added_tokens"].as_array_mut().unwrap().extend(added);
    }
    tokenizer(&json)
}

fn number_schema() -> Value {
    json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
        "additionalProperties": false})
}

fn tool(name: &str) -> CallableTool {
    CallableTool { name: name.to_owned(), parameters: Some(number_schema()), strict: true }
}

fn calls(format: ToolFormat, need: CallNeed, count: CallCount) -> ToolCalls {
    ToolCalls { format, tools: vec![tool("add"), tool("sub-2")], need, count }
}

fn compile(form: &AnswerForm, tokenizer: &Tokenizer) -> Result<CompiledGrammar, GrammarError> {
    GrammarCompiler::new(tokenizer.clone(), vec![END]).compile_answer(form, &GrammarBounds::default())
}

fn form(calls: ToolCalls) -> AnswerForm {
    AnswerForm { reasoning: None, calls: Some(calls), content: None }
}

fn random_answer(constraint: &mut dyn Constraint, tokenizer: &Tokenizer, random: &mut Random) -> Option<String> {
    let mut tokens = Vec::new();
    for _ in 0..2000 {
        let end = constraint.allowed().end;
        if end == AnswerEnd::Reached || end == AnswerEnd::Here && random.below(3) == 0 {
            return Some(tokenizer.decode(&tokens, SkipSpecialTokens::No));
        }
        let allowed: Vec<u32> = (0..320).filter(|&token| constraint.allowed().allows(token)).collect();
        let token = allowed[random.below(allowed.len())];
        constraint.accept(token).unwrap();
        tokens.push(token);
    }
    None
}

fn parsed(format: ToolFormat, answer: &str) -> Vec<AnswerDelta> {
    let mut parser = ToolCallParser::new(format, ["add", "sub-2"].map(str::to_owned));
    let mut deltas = parser.push(answer);
    deltas.extend(parser.finish());
    deltas
}

/// How far the grammar allows the tokens of `text`, and whether the answer may end there.
fn follow(constraint: &mut dyn Constraint, text: &str) -> (usize, AnswerEnd) {
    for (at, byte) in text.bytes().enumerate() {
        let end = constraint.allowed().end;
        if end == AnswerEnd::Reached || !constraint.allowed().allows(u32::from(byte)) {
            return (at, end);
        }
        constraint.accept(u32::from(byte)).unwrap();
    }
    (text.len(), constraint.allowed().end)
}

#[test]
fn forced_calls_of_every_format_are_read_back_by_its_parser() {
    let mut random = Random::new(5);
    for format in ToolFormat::ALL {
        for (markers, count) in [(Markers::Spelt, CallCount::Several), (Markers::Special, CallCount::One)] {
            let tokenizer = vocabulary(markers);
            let compiled = compile(&form(calls(format, CallNeed::Required, count)), &tokenizer).unwrap();
            for _ in 0..5 {
                let answer = random_answer(compiled.fork().as_mut(), &tokenizer, &mut random).unwrap();
                let deltas = parsed(format, &answer);
                let is_call = |delta: &AnswerDelta| matches!(delta, AnswerDelta::CallStart { .. });
                assert!(!deltas.iter().any(|delta| matches!(delta, AnswerDelta::Content(_))), "{format:?}: {answer}");
                let made = deltas.iter().filter(|delta| is_call(delta)).count();
                assert!(made == 1 || made > 1 && count == CallCount::Several, "{format:?}: {answer}");
                let mut with_arguments = 0;
                for delta in &deltas {
                    let AnswerDelta::Arguments { fragment, .. } = delta else { continue };
                    let arguments: Value = serde_json::from_str(fragment).unwrap();
                    assert!(arguments["n"].as_u64().is_some_and(|n| n < 100), "{format:?}: {answer}");
                    with_arguments += 1;
                }
                assert_eq!(with_arguments, made, "{format:?}: {answer}");
            }
        }
    }
}

#[test]
fn text_is_free_until_a_call_begins() {
    let allowed = form(calls(ToolFormat::Hermes, CallNeed::Allowed, CallCount::Several));
    let compiled = compile(&allowed, &vocabulary(Markers::Spelt)).unwrap();
    let cases = [
        ("A sum <tool? no.", AnswerEnd::Here),
        ("First: <tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": 7}}\n</tool_call> and on", AnswerEnd::Here),
        ("<tool_call>\n{\"name\": \"sub-2\", \"arguments\": {\"n\": 7}}\n</tool_call>", AnswerEnd::Here),
        ("<tool_call>\n{\"name\": \"add\"", AnswerEnd::NotHere),
    ];
    for (text, end) in cases {
        assert_eq!(follow(compiled.fork().as_mut(), text), (text.len(), end), "{text}");
    }
    for (text, stops_before) in [
        ("<tool_call>\n{\"name\": \"mul\"", "mul"),
        ("x<tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": true}}", "true"),
        ("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": 7}} no", " no"),
    ] {
        let (at, end) = follow(compiled.fork().as_mut(), text);
        assert_eq!((Some(at), end), (text.find(stops_before), AnswerEnd::NotHere), "{text}");
    }
}

#[test]
fn a_special_token_opens_a_call_in_free_text() {
    let tokenizer = vocabulary(Markers::Special);
    let allowed = form(calls(ToolFormat::MistralNamed, CallNeed::Allowed, CallCount::One));
    let mut constraint = compile(&allowed, &tokenizer).unwrap();
    assert_eq!(follow(constraint.as_mut(), "Hm. ").1, AnswerEnd::Here);
    constraint.accept(tokenizer.token_id("[TOOL_CALLS]").unwrap()).unwrap();
    assert_eq!(follow(constraint.as_mut(), "add").1, AnswerEnd::NotHere);
    constraint.accept(tokenizer.token_id("[ARGS]").unwrap()).unwrap();
    assert_eq!(follow(constraint.as_mut(), "{\"n\":12}").1, AnswerEnd::Reached);
}

#[test]
fn calls_or_content_of_a_schema_and_nothing_else() {
    let either = AnswerForm {
        content: Some(Grammar::JsonSchema(
            json!({"type": "object", "required": ["k"], "properties": {"k": {"const": 1}}}),
        )),
        ..form(calls(ToolFormat::Hermes, CallNeed::Allowed, CallCount::One))
    };
    let compiled = compile(&either, &vocabulary(Markers::Spelt)).unwrap();
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": 1}}\n</tool_call>";
    assert_eq!(follow(compiled.fork().as_mut(), call), (call.len(), AnswerEnd::Reached));
    assert_eq!(follow(compiled.fork().as_mut(), "{\"k\":1}"), (7, AnswerEnd::Reached));
    assert_eq!(follow(compiled.fork().as_mut(), "Sure").0, 0);
}

#[test]
fn a_call_of_a_tool_that_is_not_strict_ends_with_the_arguments_that_its_schema_names() {
    let parameters = json!({"properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n"]});
    let loose = CallableTool { name: "add".to_owned(), parameters: Some(parameters), strict: false };
    let calls = ToolCalls { tools: vec![loose], ..calls(ToolFormat::Hermes, CallNeed::Required, CallCount::One) };
    let compiled = compile(&form(calls), &vocabulary(Markers::Spelt)).unwrap();
    let call =
        |arguments: &str| format!("<tool_call>\n{{\"name\": \"add\", \"arguments\": {arguments}}}\n</tool_call>");
    for right in ["{\"n\":7}", "{\"n\":7,\"s\":\"a\"}"] {
        let text = call(right);
        assert_eq!(follow(compiled.fork().as_mut(), &text), (text.len(), AnswerEnd::Reached), "{text}");
    }
    let further = call("{\"n\":7,\"x\":1}");
    assert_eq!(Some(follow(compiled.fork().as_mut(), &further).0), further.find("x\":1"));
}

#[test]
fn a_model_may_think_before_it_answers_to_form() {
    let thinking = |start| AnswerForm {
        reasoning: Some((ReasoningFormat::Think, start)),
        calls: None,
        content: Some(Grammar::JsonSchema(number_schema())),
    };
    let tokenizer = vocabulary(Markers::Spelt);
    let inside = compile(&thinking(ReasoningStart::Inside), &tokenizer).unwrap();
    let text = "is {n} < 3? </think>\n\n{\"n\":3}";
    assert_eq!(follow(inside.fork().as_mut(), text), (text.len(), AnswerEnd::Reached));
    assert_eq!(follow(inside.fork().as_mut(), "yes</think>no").0, "yes</think>".len());
    let outside = compile(&thinking(ReasoningStart::Outside), &tokenizer).unwrap();
    for text in ["{\"n\":3}", "<think>hm</think>{\"n\":3}"] {
        assert_eq!(follow(outside.fork().as_mut(), text), (text.len(), AnswerEnd::Reached));
    }
    let special = vocabulary(Markers::Special);
    let mut inside = compile(&thinking(ReasoningStart::Inside), &special).unwrap();
    follow(inside.as_mut(), "hm");
    inside.accept(special.token_id("</think>").unwrap()).unwrap();
    assert_eq!(follow(inside.as_mut(), "\n{\"n\":3}").1, AnswerEnd::Reached);
}

#[test]
fn a_schema_that_cannot_be_enforced_binds_strict_tools_only() {
    let odd = |strict| {
        let parameters = Some(json!({"type": "object", "not": {}}));
        let tools = vec![CallableTool { name: "odd".to_owned(), parameters, strict }];
        form(ToolCalls { tools, ..calls(ToolFormat::Hermes, CallNeed::Required, CallCount::One) })
    };
    let tokenizer = vocabulary(Markers::Spelt);
    let refused = compile(&odd(true), &tokenizer).unwrap_err();
    assert!(refused.to_string().contains("not"), "{refused}");
    let mut loose = compile(&odd(false), &tokenizer).unwrap();
    let call = "<tool_call>\n{\"name\": \"odd\", \"arguments\": {\"any\": [1]}}\n</tool_call>";
    assert_eq!(follow(loose.as_mut(), call), (call.len(), AnswerEnd::Reached));
}
