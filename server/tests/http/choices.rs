//! `n` and `best_of`: several answers to one prompt.

use serde_json::{Value, json};

use crate::common::{KEY, MODEL, Options, Server, limit};
use passerelle::gateway::Limit;
use passerelle::gateway::quota::{Bound, Period, Unit};
use passerelle_engine::EngineConfig;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(extra: &Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "talk"}], "max_tokens": 20,
                          "temperature": 1, "seed": 5});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn completion(extra: &Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "talk", "max_tokens": 20, "temperature": 1, "seed": 5});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn contents(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter().enumerate();
    let content = |(index, choice): (usize, &Value)| {
        assert_eq!(choice["index"], index);
        choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap().to_owned()
    };
    choices.map(content).collect()
}

/// The pieces of each choice, joined, and how often the stream went from one choice to another.
fn joined(events: &[Value], count: usize) -> (Vec<String>, usize) {
    let (mut texts, mut changes, mut last) = (vec![String::new(); count], 0, 0);
    for event in events {
        let Some(choice) = event["choices"].get(0) else { continue };
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        changes += usize::from(index != last);
        last = index;
        texts[index].push_str(choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default());
    }
    (texts, changes)
}

#[tokio::test]
async fn several_answers_differ_and_their_prompt_is_paid_once() {
    let server = Server::start().await;
    let client = server.client();
    let one = client.post(CHAT, &chat(&json!({}))).await.json();
    let three = client.post(CHAT, &chat(&json!({"n": 3}))).await.json();
    let texts = contents(&three);
    assert_eq!(texts.len(), 3);
    assert_eq!(texts[0], contents(&one)[0], "the first is drawn with the request's own seed");
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    assert_eq!(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_eq!(three["usage"]["completion_tokens"], 60);
    server.assert_at_rest().await;
}

#[tokio::test]
async fn streamed_choices_are_interleaved_by_index_and_say_what_whole_ones_say() {
    let server = Server::start().await;
    let client = server.client();
    for (path, body) in [(CHAT, chat(&json!({"n": 3}))), (COMPLETIONS, completion(&json!({"n": 3})))] {
        let whole = contents(&client.post(path, &body).await.json());
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let events = client.stream(path, &streamed).await.events().await;
        let (texts, changes) = joined(&events, 3);
        assert_eq!(texts, whole, "{path}");
        assert!(changes > 10, "one after the other: {changes}");
        let ends = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "length");
        assert_eq!(ends.count(), 3);
        assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 60);
        let roles = events.iter().filter(|event| event["choices"][0]["delta"]["role"] == "assistant");
        assert_eq!(roles.count(), if path == CHAT { 3 } else { 0 });
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn the_choices_of_each_prompt_of_a_list_stand_together() {
    let server = Server::start().await;
    let client = server.client();
    let of_list = client.post(COMPLETIONS, &completion(&json!({"prompt": ["talk", "more"], "n": 2}))).await.json();
    let of_one = |prompt: &str| completion(&json!({"prompt": prompt, "n": 2}));
    let alone = [
        contents(&client.post(COMPLETIONS, &of_one("talk")).await.json()),
        contents(&client.post(COMPLETIONS, &of_one("more")).await.json()),
    ];
    assert_eq!(contents(&of_list), alone.concat());
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_stop_string_ends_its_choice_alone_and_what_came_after_it_is_not_billed() {
    let server = Server::start().await;
    let client = server.client();
    let free = client.post(COMPLETIONS, &completion(&json!({"n": 3}))).await.json();
    let free = contents(&free);
    let stop = &free[1][4..7];
    let stopped = client.post(COMPLETIONS, &completion(&json!({"n": 3, "stop": stop}))).await.json();
    let cut = |text: &String| text.find(stop).map_or(text.clone(), |at| text[..at].to_owned());
    let texts: Vec<_> = free.iter().map(cut).collect();
    assert_eq!(contents(&stopped), texts);
    // A character is a token here, those of the stop string too.
    let lengths = texts.iter().zip(&free).map(|(cut, text)| cut.chars().count() + if cut == text { 0 } else { 3 });
    let billed = lengths.sum::<usize>();
    assert_eq!(stopped["usage"]["completion_tokens"], billed);
    server.settle().await;
    assert_eq!(server.state.ledger().totals().generated_tokens, 60 + billed as u64);
}

#[tokio::test]
async fn the_best_of_several_are_shown_best_first_and_all_are_paid() {
    let server = Server::start().await;
    let client = server.client();
    let all = client.post(COMPLETIONS, &completion(&json!({"n": 5, "logprobs": 0}))).await.json();
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        logprobs.iter().map(|logprob| logprob.as_f64().unwrap()).sum::<f64>() / logprobs.len() as f64
    };
    let mut ranked: Vec<_> = all["choices"].as_array().unwrap().iter().collect();
    ranked.sort_by(|one, other| mean(other).total_cmp(&mean(one)));
    let best: Vec<_> = ranked[..2].iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect();
    let shown = client.post(COMPLETIONS, &completion(&json!({"n": 2, "best_of": 5}))).await.json();
    assert_eq!(contents(&shown), best);
    assert_eq!(shown["choices"][0]["logprobs"], Value::Null, "nobody asked to see them");
    assert_eq!(shown["usage"]["completion_tokens"], 100);
    server.assert_at_rest().await;
}

#[tokio::test]
async fn what_cannot_be_chosen_is_refused_by_name() {
    let server = Server::start().await;
    let client = server.client();
    let cases = [
        (CHAT, chat(&json!({"n": 17})), "n"),
        (CHAT, chat(&json!({"best_of": 2})), "best_of"),
        (COMPLETIONS, completion(&json!({"best_of": 3, "stream": true})), "best_of"),
        (COMPLETIONS, completion(&json!({"n": 3, "best_of": 2})), "best_of"),
    ];
    for (path, body, param) in cases {
        let reply = client.post(path, &body).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(param)), "{}", reply.text());
    }
}

#[tokio::test]
async fn more_answers_than_an_engine_runs_at_once_are_refused_by_the_field_that_asked_for_them() {
    let options = Options::default();
    let engine = EngineConfig { max_num_seqs: 2, ..options.engine.clone() };
    let server = Server::with(Options { engine, ..options }).await;
    let cases = [
        (CHAT, chat(&json!({"n": 3})), "n"),
        (COMPLETIONS, completion(&json!({"n": 3})), "n"),
        (COMPLETIONS, completion(&json!({"best_of": 3})), "best_of"),
        (COMPLETIONS, completion(&json!({"n": 2, "best_of": 3})), "best_of"),
    ];
    for (path, body, param) in cases {
        let reply = server.client().post(path, &body).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(param)), "{}", reply.text());
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn choices_are_reserved_together_and_a_budget_that_ends_ends_them_without_passing_it() {
    let budget = Bound::Budget { unit: Unit::OutputTokens, amount: 500.try_into().unwrap(), period: Period::Month };
    let key_limits = Some(vec![Limit::of(budget), limit(Limit::concurrent_requests, 1)]);
    let server = Server::with(Options { key_limits, ..Options::default() }).await;
    let client = server.client().with("authorization", &format!("Bearer {KEY}"));
    let body = |max_tokens: u32| chat(&json!({"n": 3, "max_tokens": max_tokens}));
    let never = client.post(CHAT, &body(167)).await;
    assert_eq!((never.status, never.error_code().as_str()), (400, "request_exceeds_limit"), "{}", never.text());
    assert_eq!(client.post(CHAT, &body(30)).await.status, 200);
    let last = client.post(CHAT, &body(166)).await.json();
    let ends = last["choices"].as_array().unwrap();
    assert!(
        ends.iter().all(|choice| choice["finish_reason"] == "length" && choice["stop_reason"] == "quota"),
        "{last}"
    );
    let used = last["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((408..=410).contains(&used), "{used} of 410");
    server.assert_at_rest().await;
}
