use super::super::fixtures::Random;
use super::*;

fn parser(format: ToolFormat) -> ToolCallParser {
    ToolCallParser::new(format, ["add", "now"].map(String::from))
}

fn parse(pieces: &[&str]) -> Vec<AnswerDelta> {
    parse_as(ToolFormat::Hermes, pieces)
}

/// Content and calls of a text pushed in pieces: content joined between calls, calls as name and arguments.
fn parse_as(format: ToolFormat, pieces: &[&str]) -> Vec<AnswerDelta> {
    let mut parser = parser(format);
    let mut deltas: Vec<AnswerDelta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    AnswerDelta::joined(deltas)
}

fn content(text: &str) -> AnswerDelta {
    AnswerDelta::Content(text.to_owned())
}

fn call(index: usize, name: &str, arguments: &str) -> [AnswerDelta; 2] {
    let start = AnswerDelta::CallStart { index, name: name.to_owned() };
    [start, AnswerDelta::Arguments { index, fragment: arguments.to_owned() }]
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
        "{\"name\": \"a\", \"arguments\": ",
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
    let mut parser = parser(ToolFormat::Hermes);
    let early = parser.push(&text[..MAX_CALL_BYTES + 100]);
    assert!(!early.is_empty());
    assert_eq!(parse(&[&text]), [content(&text)]);
}

#[test]
fn every_family_s_calls_are_found() {
    let [sum, hour] = [r#"{"a": 1.0, "b": "é]}"}"#, r#"{"in": "Paris"}"#];
    let both = [call(0, "add", sum), call(1, "now", hour)].concat();
    let cases = [
        (
            ToolFormat::Mistral,
            format!(
                r#"[TOOL_CALLS][{{"name": "add", "arguments": {sum}, "id": "a1b2c3d4e"}}, {{"name": "now", "arguments": {hour}}}]"#
            ),
        ),
        (ToolFormat::MistralNamed, format!("[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{sum}[TOOL_CALLS]now[ARGS]{hour}")),
        (ToolFormat::MistralNamed, format!("[TOOL_CALLS]add{sum}\n[TOOL_CALLS]now {hour}")),
        (ToolFormat::Apertus, format!(r#"<|tools_prefix|>[{{"add": {sum}}}, {{"now": {hour}}}]<|tools_suffix|>"#)),
        (
            ToolFormat::Nemotron,
            format!(
                r#"<TOOLCALL>[{{"name": "add", "arguments": {sum}}}, {{"name": "now", "arguments": {hour}}}]</TOOLCALL>"#
            ),
        ),
        (
            ToolFormat::Llama3,
            format!(r#"{{"name": "add", "parameters": {sum}}}; {{"name": "now", "parameters": {hour}}}"#),
        ),
        (
            ToolFormat::Llama3,
            format!(
                r#"<|python_tag|>{{"type": "function", "name": "add", "parameters": {sum}}};{{"name": "now", "parameters": {hour}}}"#
            ),
        ),
        (
            ToolFormat::Json,
            format!(r#" [{{"name": "add", "arguments": {sum}}}, {{"name": "now", "parameters": {hour}}}]"#),
        ),
        (
            ToolFormat::Json,
            format!(
                "```json\n{{\"name\": \"add\", \"arguments\": {sum}}}\n```\n```json\n{{\"name\": \"now\", \"arguments\": {hour}}}\n```"
            ),
        ),
    ];
    for (format, text) in cases {
        assert_eq!(parse_as(format, &[&text]), both, "{text}");
    }
}

#[test]
fn a_built_in_tool_of_llama_is_called_as_python_calls() {
    let text = r#"<|python_tag|>search.call(query="l'été (à Paris)", limit=3, safe=True, near=None, tags=["a", "b"])"#;
    let arguments = r#"{"query":"l'été (à Paris)","limit":3,"safe":true,"near":null,"tags":["a","b"]}"#;
    assert_eq!(parse_as(ToolFormat::Llama3, &[text]), call(0, "search", arguments));
    assert_eq!(parse_as(ToolFormat::Llama3, &["<|python_tag|>now.call()"]), call(0, "now", "{}"));
    for no_call in
        ["<|python_tag|>print(\"hi\")", "<|python_tag|>x = 1", "<|python_tag|>a.call(x)", "<|python_tag|>a.call(x=y)"]
    {
        assert_eq!(parse_as(ToolFormat::Llama3, &[no_call]), [content(no_call)]);
    }
}

#[test]
fn an_answer_that_merely_is_json_stays_an_answer() {
    for format in [ToolFormat::Llama3, ToolFormat::Json] {
        for text in [
            r#"{"name": "Bob", "age": 3}"#,
            r#"{"name": "subtract", "arguments": {}}"#,
            r#"{"a": [1, 2]}"#,
            "[1, 2, 3]",
            "{ oops",
            "{} {\"name\": \"add\", \"arguments\": {}}",
            "So: {\"name\": \"add\", \"arguments\": {}}",
        ] {
            assert_eq!(parse_as(format, &[text]), [content(text)], "{format:?} {text}");
        }
    }
}

#[test]
fn a_family_s_markers_around_no_call_stay_content() {
    let cases = [
        (ToolFormat::Mistral, "[TOOL_CALLS] oui"),
        (ToolFormat::Mistral, "[TOOL_CALLS][]"),
        (ToolFormat::Mistral, "[TOOL_CALLS][{\"name\": \"add\""),
        (ToolFormat::MistralNamed, "[TOOL_CALLS]two words[ARGS]{}"),
        (ToolFormat::MistralNamed, "[TOOL_CALLS][ARGS]{}"),
        (ToolFormat::Apertus, "<|tools_prefix|>[{\"a\": 1}]<|tools_suffix|>"),
        (ToolFormat::Nemotron, "<TOOLCALL>[{}]</TOOLCALL>"),
        (ToolFormat::Json, "```json\n{\"a\": 1}\n```"),
    ];
    for (format, text) in cases {
        assert_eq!(parse_as(format, &[text]), [content(text)]);
    }
}

/// `add` with arguments that break off, after all that comes before them.
fn broken_off(format: ToolFormat) -> String {
    let CallLayout { begin, call: form, .. } = format.layout();
    let head = match form {
        CallForm::Object { arguments } => format!(r#"{{"name": "add", "{arguments}": "#),
        CallForm::Keyed => r#"{"add": "#.to_owned(),
        CallForm::Named { separator } => format!("add{separator}"),
    };
    format!(r#"{begin}{head}{{"a": [1, {{"b": "x"#)
}

#[test]
fn arguments_are_given_out_while_they_are_written() {
    for format in ToolFormat::ALL {
        let mut parser = parser(format);
        let given = AnswerDelta::joined(parser.push(&broken_off(format)));
        assert_eq!(given, call(0, "add", r#"{"a": [1, {"b": "x"#), "{format:?}");
        assert_eq!(
            (parser.finish(), parser.calls()),
            (Vec::new(), 1),
            "{format:?}: a cut answer holds a part of its call"
        );
    }
}

#[test]
fn a_call_that_was_not_offered_is_not_begun_by_its_brace_alone() {
    for format in [ToolFormat::Llama3, ToolFormat::Json] {
        let text = broken_off(format).replace("add", "subtract");
        assert_eq!(parse_as(format, &[&text]), [content(&text)], "{format:?}");
    }
}

#[test]
fn what_follows_a_begun_call_and_is_none_is_content() {
    let twice = "<|tools_prefix|>[{\"a\": {}, \"b\": {}}]<|tools_suffix|>";
    let rest = content(", \"b\": {}}]<|tools_suffix|>");
    assert_eq!(parse_as(ToolFormat::Apertus, &[twice]), [&call(0, "a", "{}")[..], &[rest]].concat());
    let tagged = "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1</tool_call>\nDone";
    assert_eq!(parse(&[tagged]), [&call(0, "add", "{\"a\": 1")[..], &[content("Done")]].concat());
}

#[test]
fn models_may_lose_and_double_brackets_and_break_lines_in_strings() {
    for brackets in ["", "}", "}}", " ]}\n"] {
        let text = format!("<tool_call>{{\"name\": \"a\", \"arguments\": {{\"x\": 1}}{brackets}</tool_call>");
        assert_eq!(parse(&[&text]), call(0, "a", "{\"x\": 1}"), "{brackets:?}");
    }
    let text = "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"1\n2\"}}</tool_call>";
    assert_eq!(parse(&[text]), call(0, "a", r#"{"x": "1\n2"}"#));
}

/// The layout is what a grammar holds a model to, so what it describes must be what the parser reads.
#[test]
fn what_a_layout_describes_is_read_back() {
    let made = [("add", r#"{"a": 1, "b": [2]}"#), ("now", "{}")];
    for format in ToolFormat::ALL {
        let CallLayout { begin, between, end, call: form } = format.layout();
        let written = made.map(|(name, arguments)| match form {
            CallForm::Object { arguments: key } => format!(r#"{{"name": "{name}", "{key}": {arguments}}}"#),
            CallForm::Keyed => format!(r#"{{"{name}": {arguments}}}"#),
            CallForm::Named { separator } => format!("{name}{separator}{arguments}"),
        });
        let text = format!("{begin}{}{end}", written.join(between));
        let expected = [call(0, made[0].0, made[0].1), call(1, made[1].0, made[1].1)].concat();
        assert_eq!(parse_as(format, &[&text]), expected, "{text}");
    }
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
        "[",
        "]",
        "<",
        ";",
        "```json",
        "```",
        "[TOOL_CALLS]",
        "add[ARGS]{}",
        "<|python_tag|>",
        "now.call(a=1)",
        "<|tools_prefix|>",
        "[{\"add\": {}}]",
        "<|tools_suffix|>",
        "<TOOLCALL>",
        "</TOOLCALL>",
        "{\"name\": \"add\", \"arguments\": {}}",
        "<tool_call>{\"name\": \"b\", \"arguments\": {}}</tool_call>",
    ];
    let mut random = Random::new(5);
    for format in ToolFormat::ALL {
        let mut calls = 0;
        for _ in 0..2000 {
            let mut length = random.below(8);
            let mut text = String::new();
            if random.below(2) == 0 {
                let CallLayout { begin, end, .. } = format.layout();
                let made = ["{\"name\": \"add\", \"arguments\": {}}", "{\"add\": {}}", "add[ARGS]{}"][random.below(3)];
                text.push_str(&[begin, made, end].concat());
                length /= 2;
            }
            text.extend((0..length).map(|_| fragments[random.below(fragments.len())]));
            let whole = parse_as(format, &[&text]);
            calls += whole.iter().filter(|delta| matches!(delta, AnswerDelta::CallStart { .. })).count();
            let pieces = random.cut(&text);
            assert_eq!(parse_as(format, &pieces), whole, "{format:?} {pieces:?}");
        }
        assert!(calls > 200, "the texts hold calls in {format:?}: {calls}");
    }
}
