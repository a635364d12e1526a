use super::super::fixtures::Random;
use super::*;

/// Content and calls of a text pushed in pieces: content joined between calls, calls as name and arguments.
fn parse(pieces: &[&str]) -> Vec<ToolDelta> {
    let mut parser = ToolCallParser::new();
    let mut deltas: Vec<ToolDelta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    let mut joined: Vec<ToolDelta> = Vec::new();
    for delta in deltas {
        match (joined.last_mut(), delta) {
            (Some(ToolDelta::Content(last)), ToolDelta::Content(text)) => last.push_str(&text),
            (_, delta) => joined.push(delta),
        }
    }
    joined
}

fn content(text: &str) -> ToolDelta {
    ToolDelta::Content(text.to_owned())
}

fn call(index: usize, name: &str, arguments: &str) -> [ToolDelta; 2] {
    let start = ToolDelta::CallStart { index, name: name.to_owned() };
    [start, ToolDelta::Arguments { index, fragment: arguments.to_owned() }]
}

const ADD: &str =
    "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1.0, \"b\": 12345678901234567890123}}\n</tool_call>";

#[test]
fn a_call_is_found_and_its_arguments_are_left_as_written() {
    assert_eq!(parse(&[ADD]), call(0, "add", "{\"a\": 1.0, \"b\": 12345678901234567890123}"));
}

#[test]
fn text_around_calls_is_content_without_the_space_of_the_tags() {
    let text = format!("Let me see.\n{ADD}\n{ADD}\nDone.\n");
    let arguments = "{\"a\": 1.0, \"b\": 12345678901234567890123}";
    let calls = [call(0, "add", arguments), call(1, "add", arguments)].concat();
    assert_eq!(parse(&[&text]), [&[content("Let me see.")], &calls[..], &[content("\nDone.\n")]].concat());
    assert_eq!(parse(&[&format!("\n{ADD}\n\n after")])[2..], [content("after")]);
    assert_eq!(parse(&[&format!("{ADD}\n")]).len(), 2);
}

#[test]
fn an_answer_without_calls_is_left_as_it_is() {
    for text in ["", " a < b\n\n", "<tool_cal", "x <tool_callx>", "</tool_call>", "  ", "<<tool_call"] {
        assert_eq!(
            parse(&[text]).into_iter().collect::<Vec<_>>(),
            if text.is_empty() { vec![] } else { vec![content(text)] }
        );
    }
}

#[test]
fn what_is_no_call_stays_content_with_its_tags() {
    let bodies = [
        "not json",
        "{\"name\": \"a\", \"arguments\": {}",
        "{\"arguments\": {}}",
        "{\"name\": \"\", \"arguments\": {}}",
        "{\"name\": 1, \"arguments\": {}}",
        "{\"name\": \"a\", \"arguments\": [1]}",
        "{\"name\": \"a\", \"arguments\": \"text\"}",
        "{\"name\": \"a\", \"name\": \"b\"}",
        "[{\"name\": \"a\", \"arguments\": {}}]",
        "{\"name\": \"a\nb\", \"arguments\": {}}",
        "",
    ];
    for body in bodies {
        let text = format!("before \n<tool_call>{body}</tool_call>\n after");
        assert_eq!(parse(&[&text]), [content(&text)], "{body}");
    }
}

#[test]
fn a_bad_call_does_not_hide_the_next() {
    let text = format!("<tool_call>{{oops \"x\n</tool_call>\n{ADD}");
    assert_eq!(parse(&[&text])[1..], call(0, "add", "{\"a\": 1.0, \"b\": 12345678901234567890123}"));
}

#[test]
fn tags_inside_json_strings_are_text() {
    let arguments = r#"{"html": "</tool_call> \" <tool_call>"}"#;
    let text = format!("<tool_call>{{\"name\": \"show\", \"arguments\": {arguments}}}</tool_call>");
    assert_eq!(parse(&[&text]), call(0, "show", arguments));
}

#[test]
fn small_liberties_of_models_are_accepted() {
    assert_eq!(parse(&["<tool_call>{\"name\": \"now\"}</tool_call>"]), call(0, "now", "{}"));
    assert_eq!(parse(&["<tool_call>{\"name\": \"a\", \"arguments\": \"{\\\"x\\\": 1}\"}"]), call(0, "a", "{\"x\": 1}"));
    assert_eq!(parse(&["<tool_call>\n{\"arguments\": {}, \"name\": \"a\"}\n"]), call(0, "a", "{}"));
}

#[test]
fn an_endless_call_becomes_content() {
    let text = format!("<tool_call>{}", "x".repeat(2 * MAX_CALL_BYTES));
    let mut parser = ToolCallParser::new();
    let early = parser.push(&text[..MAX_CALL_BYTES + 100]);
    assert!(!early.is_empty());
    assert_eq!(parse(&[&text]), [content(&text)]);
}

#[test]
fn any_cut_of_the_text_gives_the_same_calls() {
    let fragments = [
        ADD,
        "<tool_call>",
        "</tool_call>",
        "{\"name\": \"é\", \"arguments\": {\"日\": \"👍\"}}",
        "<tool",
        "_call>",
        "\n",
        " ",
        "text",
        "\"",
        "\\",
        "{",
        "}",
        "<",
        "<tool_call>{\"name\": \"b\", \"arguments\": {}}</tool_call>",
    ];
    let mut random = Random::new(5);
    let mut calls = 0;
    for _ in 0..3000 {
        let length = random.below(8);
        let text: String = (0..length).map(|_| fragments[random.below(fragments.len())]).collect();
        let whole = parse(&[&text]);
        calls += whole.iter().filter(|delta| matches!(delta, ToolDelta::CallStart { .. })).count();
        let pieces = random.cut(&text);
        assert_eq!(parse(&pieces), whole, "{pieces:?}");
    }
    assert!(calls > 500, "the texts hold calls");
}
