//! Random answers in every family's form, asked for streamed and not: the same text, reasoning, tool calls, tokens,
//! log-probabilities, finish reason and usage. A token is a byte, so that every cut comes up.

use passerelle::text::{AnswerFormat, CallForm, ReasoningFormat, ToolFormat};
use serde_json::{Value, json};

use crate::common::both_ways::{CHAT, COMPLETIONS, both_ways};
use crate::common::chance::Chance;
use crate::common::responses::{RESPONSES, response_both_ways};
use crate::common::text::{END, START, tokens_of};
use crate::common::{MODEL, Options, Server};

const WORDS: [&str; 16] =
    ["été ", "日本", "👩‍🚀", "word", " ", "\n", "{", "}", "[", "]", "\"", "\\", ";", "<", "<tool", "```json\n"];
const STOPS: [&str; 5] = ["wor", "本", "\n", "12", "}}"];

#[tokio::test]
async fn random_answers_are_the_same_streamed_and_not() {
    every_format(40).await;
}

#[tokio::test]
#[ignore = "minutes"]
async fn ten_thousand_random_answers_are_the_same_streamed_and_not() {
    every_format(10_000_usize.div_ceil(ToolFormat::ALL.len())).await;
}

async fn every_format(cases: usize) {
    for (index, tools) in ToolFormat::ALL.into_iter().enumerate() {
        let reasoning = ReasoningFormat::ALL.get(index % 4).copied();
        let answers = AnswerFormat { tools, reasoning };
        let server = Server::with(Options { answers: Some(answers), ..Options::default() }).await;
        let mut chance = Chance::new(index as u64 + 1);
        let (mut calls, mut thoughts) = (0, 0);
        for _ in 0..cases {
            let text = random_text(&mut chance, answers);
            let (route, body) = random_request(&mut chance, &text);
            if route == RESPONSES {
                response_both_ways(&server.client(), body).await;
                continue;
            }
            let message = both_ways(&server.client(), route, body).await["choices"][0]["message"].clone();
            calls += usize::from(message["tool_calls"].is_array());
            thoughts += usize::from(message["reasoning"].is_string());
        }
        assert!(calls > 0, "no answer holds a call in {tools:?}");
        assert!(thoughts > 0 || reasoning.is_none(), "no answer holds reasoning in {reasoning:?}");
        server.settle().await;
    }
}

/// Reasoning or not, words, calls as the family writes them or nearly so, words.
fn random_text(chance: &mut Chance, answers: AnswerFormat) -> String {
    let mut text = String::new();
    if let (Some(reasoning), 0..=1) = (answers.reasoning, chance.below(3)) {
        let [open, close] = reasoning.markers();
        text.extend([open, *chance.one_of(&WORDS), *chance.one_of(&WORDS), close]);
    }
    add_words(&mut text, chance);
    if chance.below(6) > 0 {
        let layout = answers.tools.layout();
        text.extend([layout.begin, call(chance, layout.call)]);
        if chance.below(2) == 0 {
            text.extend([layout.between, call(chance, layout.call)]);
        }
        text.push_str(layout.end);
    }
    add_words(&mut text, chance);
    text
}

/// In the family's form, or now and then in another's.
fn call(chance: &mut Chance, form: CallForm) -> &'static str {
    match (chance.below(6), form) {
        (0, _) => "{\"name\": \"add\"}",
        (_, CallForm::Object { arguments: "parameters" }) => "{\"name\": \"add\", \"parameters\": {\"é\": null}}",
        (_, CallForm::Object { .. }) => "{\"name\": \"add\", \"arguments\": {\"a\": 12, \"b\": \"é\"}}",
        (_, CallForm::Keyed) => "{\"add\": {\"日\": [1, 2]}}",
        (_, CallForm::Named { .. }) => "add[ARGS]{\"a\": \"]}\"}",
    }
}

/// Often none: some families' calls are the whole answer.
fn add_words(text: &mut String, chance: &mut Chance) {
    let count = chance.below(9).saturating_sub(5);
    text.extend((0..count).map(|_| *chance.one_of(&WORDS)));
}

fn random_request(chance: &mut Chance, text: &str) -> (&'static str, Value) {
    let (route, mut body) = match chance.below(5) {
        0 => (COMPLETIONS, json!({"prompt": prompt_tokens(text)})),
        1 => (RESPONSES, json!({"input": format!("say:{text}")})),
        _ => (CHAT, json!({"messages": [{"role": "user", "content": format!("say:{text}")}]})),
    };
    body["model"] = json!(MODEL);
    let tool = json!({"name": "add", "parameters": {"type": "object"}});
    match route {
        RESPONSES => {
            body["max_output_tokens"] = random_limit(chance);
            let mut tool = tool;
            tool["type"] = json!("function");
            body["tools"] = json!([tool]);
            return (route, body);
        }
        CHAT if chance.below(5) > 0 => body["tools"] = json!([{"type": "function", "function": tool}]),
        _ => {}
    }
    body["max_tokens"] = random_limit(chance);
    add_options(&mut body, chance, route);
    (route, body)
}

fn add_options(body: &mut Value, chance: &mut Chance, route: &str) {
    body["return_token_ids"] = json!(chance.below(2) == 0);
    if chance.below(3) == 0 {
        body["stop"] = json!([chance.one_of(&STOPS), chance.one_of(&STOPS)]);
        body["min_tokens"] = json!(chance.below(8).min(body["max_tokens"].as_u64().unwrap()));
    }
    match (route, chance.below(2)) {
        (COMPLETIONS, 0) => body["logprobs"] = json!(chance.below(4)),
        (CHAT, 0) => {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(chance.below(4));
        }
        _ => {}
    }
    // Some tokens go astray then, and break characters.
    if chance.below(3) == 0 {
        body["temperature"] = json!(1.2);
        body["seed"] = json!(chance.below(1000));
    }
}

/// Sometimes so few that the answer is cut anywhere.
fn random_limit(chance: &mut Chance) -> Value {
    json!(if chance.below(4) == 0 { 1 + chance.below(60) } else { 400 })
}

/// What the template makes of a message, for the route without one.
fn prompt_tokens(text: &str) -> Vec<u32> {
    let user = tokens_of(&format!("user\nsay:{text}"));
    [vec![START], user, vec![END, u32::from(b'\n'), START], tokens_of("assistant\n")].concat()
}
