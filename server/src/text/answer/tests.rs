use super::super::fixtures::Random;
use super::*;

fn parser() -> AnswerParser {
    AnswerParser::new()
        .with_reasoning(ReasoningFormat::Think, ReasoningStart::Outside)
        .with_tools(ToolFormat::Hermes, ["add".to_owned()])
}

/// The pieces of a text, those of one kind joined.
fn parse(mut parser: AnswerParser, pieces: &[&str]) -> Vec<AnswerDelta> {
    let mut deltas: Vec<AnswerDelta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    AnswerDelta::joined(deltas)
}

const CALL: &str = "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>";

#[test]
fn thoughts_words_and_calls_come_in_their_order() {
    let text = format!("<think>\nI could write {CALL} here.\n</think>\n\nLet me see.\n{CALL}");
    let expected = [
        AnswerDelta::Reasoning(format!("I could write {CALL} here.")),
        AnswerDelta::Content("Let me see.".to_owned()),
        AnswerDelta::CallStart { index: 0, name: "add".to_owned() },
        AnswerDelta::Arguments { index: 0, fragment: "{}".to_owned() },
    ];
    assert_eq!(parse(parser(), &[&text]), expected);
    let mut random = Random::new(9);
    for _ in 0..200 {
        assert_eq!(parse(parser(), &random.cut(&text)), expected);
    }
}

#[test]
fn what_was_not_asked_for_is_left_as_it_is() {
    let text = format!("<think>a</think>{CALL}");
    assert_eq!(parse(AnswerParser::new(), &[&text]), [AnswerDelta::Content(text)]);
}

#[test]
fn formats_come_from_the_template_and_then_from_the_vocabulary() {
    let none = |_: &str| false;
    let found = |template: &str| AnswerFormat::find(template, none);
    assert_eq!(found("{{ x }}"), AnswerFormat { tools: ToolFormat::Json, reasoning: None });
    let hermes = AnswerFormat { tools: ToolFormat::Hermes, reasoning: Some(ReasoningFormat::Think) };
    assert_eq!(found("<tool_call> </think>"), hermes);
    assert_eq!(AnswerFormat::find("{{ x }}", |token| ["<tool_call>", "<think>"].contains(&token)), hermes);
    let mistral = AnswerFormat { tools: ToolFormat::MistralNamed, reasoning: Some(ReasoningFormat::Mistral) };
    assert_eq!(found("[TOOL_CALLS] [ARGS] [THINK]"), mistral);
    assert_eq!(AnswerFormat::find("[TOOL_CALLS] [ARGS] [THINK]", |token| token == "<tool_call>"), mistral);
}

#[test]
fn the_markers_of_what_is_parsed_are_named() {
    assert_eq!(parser().markers().collect::<Vec<_>>(), ["<think>", "</think>", "<tool_call>", "</tool_call>"]);
    assert_eq!(AnswerParser::new().markers().count(), 0);
}
