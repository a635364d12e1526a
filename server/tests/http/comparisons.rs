//! `prompt_scores_against`: a prompt that two models score.

use std::sync::Arc;

use crate::common::client::Reply;
use crate::common::model::Gate;
use crate::common::{LONGEST_COMPARED, MODEL, Options, Rival, Server, Vocabulary, limit, until};
use passerelle::gateway::Limit;
use passerelle::gateway::tariff::{Price, Tariff};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const RIVAL: &str = "test/rival";
const STRANGER: &str = "test/stranger";

fn with_rivals() -> Options {
    let rivals = vec![
        Rival { name: RIVAL, vocabulary: Vocabulary::Same },
        Rival { name: STRANGER, vocabulary: Vocabulary::Other },
    ];
    Options { rivals, ..Options::default() }
}

fn scores_of(model: &str, prompt: &str) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": 0, "prompt_scores": true})
}

fn comparison(prompt: impl Into<Value>) -> Value {
    json!({"model": MODEL, "prompt": prompt.into(), "max_tokens": 0, "prompt_scores_against": RIVAL})
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

fn assert_refused(reply: &Reply, (status, param): (u16, &str)) {
    let body = reply.json();
    assert_eq!((reply.status, &body["error"]["param"]), (status, &json!(param)), "{body}");
}

#[tokio::test]
async fn both_models_scores_are_what_each_says_alone_and_their_divergence_stands_beside_them() {
    let server = Server::with(with_rivals()).await;
    let client = server.client();
    let prompt = "say:something that takes a few chunks, and then some more of it";
    let mut alone = Vec::new();
    for model in [MODEL, RIVAL] {
        alone.push(client.post(COMPLETIONS, &scores_of(model, prompt)).await.json()["choices"][0].clone());
    }
    let answer = client.post(COMPLETIONS, &comparison(prompt)).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["prompt_scores"], alone[0]["prompt_scores"]);
    for numbers in ["token_logprobs", "ranks", "entropies", "top_token_ids", "top_logprobs"] {
        assert_eq!(choice["prompt_scores_against"][numbers], alone[1]["prompt_scores"][numbers], "{numbers}");
    }
    assert_eq!((&answer["model"], &choice["prompt_scores_against"]["model"]), (&json!(MODEL), &json!(RIVAL)));
    let listed = |model: &str| server.state.model(model).unwrap().digest;
    assert_eq!(answer["digest"], json!(listed(MODEL)));
    assert_eq!(choice["prompt_scores_against"]["digest"], json!(listed(RIVAL)));
    let kl = &choice["prompt_scores_against"]["kl"];
    assert_eq!((kl.as_array().unwrap().len(), &kl[0]), (prompt.len(), &Value::Null));
    assert!(numbers(kl).iter().all(|kl| *kl > 0.0 && *kl < 2.0), "{kl}");
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(""), &json!("length")));
}

#[tokio::test]
async fn a_model_does_not_differ_from_itself_and_prompts_are_answered_in_their_order() {
    let server = Server::with(with_rivals()).await;
    let mut body = comparison(json!(["one", "three", [7, 8]]));
    body["prompt_scores_against"] = json!(MODEL);
    let answer = server.client().post(COMPLETIONS, &body).await.json();
    let choices = answer["choices"].as_array().unwrap();
    let lengths = choices.iter().map(|choice| choice["prompt_scores_against"]["kl"].as_array().unwrap().len());
    assert_eq!(lengths.collect::<Vec<_>>(), [3, 5, 2]);
    let of_all = choices.iter().flat_map(|choice| numbers(&choice["prompt_scores_against"]["kl"]));
    assert_eq!(of_all.collect::<Vec<_>>(), [0.0; 7]);
}

#[tokio::test]
async fn the_prompt_is_billed_for_both_models() {
    let server = Server::with(with_rivals()).await;
    let answer = server.client().post(COMPLETIONS, &comparison("0123456789")).await.json();
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(20), &json!(0)));
    let totals = server.state.ledger().totals();
    assert_eq!((totals.open, totals.reservations_taken, totals.settled, totals.prompt_tokens), (0, 2, 2, 20));
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_by_name_and_costs_nothing() {
    let server = Server::with(with_rivals()).await;
    let client = server.client();
    let with = |field: &str, value: Value| {
        let mut body = comparison("hello");
        body[field] = value;
        body
    };
    let against = "prompt_scores_against";
    let unlike = client.post(COMPLETIONS, &with(against, json!(STRANGER))).await;
    assert_refused(&unlike, (400, against));
    let message = unlike.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("`test/parrot` and `test/stranger` have different vocabularies"), "{message}");
    assert_refused(&client.post(COMPLETIONS, &with(against, json!("test/nobody"))).await, (404, against));
    assert_refused(&client.post(COMPLETIONS, &with("model", json!("test/nobody"))).await, (404, "model"));
    let too_long = client.post(COMPLETIONS, &with("prompt", json!("x".repeat(LONGEST_COMPARED + 1)))).await;
    assert_refused(&too_long, (400, "prompt"));
    let one_too_long = json!(["short", "x".repeat(LONGEST_COMPARED + 1)]);
    assert_refused(&client.post(COMPLETIONS, &with("prompt", one_too_long)).await, (400, "prompt[1]"));
    for (field, value) in [
        ("max_tokens", json!(1)),
        ("stream", json!(true)),
        ("echo", json!(true)),
        ("logprobs", json!(1)),
        ("prompt_logprobs", json!(1)),
        ("return_token_ids", json!(true)),
        ("n", json!(2)),
        ("response_format", json!({"type": "json_object"})),
    ] {
        assert_refused(&client.post(COMPLETIONS, &with(field, value)).await, (400, field));
    }
    assert_eq!(server.state.ledger().totals().reservations_taken, 0);
}

#[tokio::test]
async fn nobody_pays_for_a_list_that_the_server_fails() {
    let server = Server::with(with_rivals()).await;
    let client = server.client();
    let failed = client.post(COMPLETIONS, &comparison(json!(["this one is fine", "break: it"]))).await;
    assert_eq!((failed.status, failed.error_code()), (500, "engine_failed".to_owned()));
    let totals = server.state.ledger().totals();
    assert_eq!((totals.open, totals.settled, totals.prompt_tokens), (0, 4, 0));
}

#[tokio::test]
async fn what_is_billed_for_a_comparison_is_billed_for_this_hour() {
    let prices = [MODEL, RIVAL].map(|model| (model.to_owned(), Price::flat(1_000_000, 0, 0)));
    let server = Server::with(Options { tariff: Arc::new(Tariff::new("1", prices)), ..with_rivals() }).await;
    assert_eq!(server.client().post(COMPLETIONS, &comparison("0123456789")).await.status, 200);
    let hours = server.state.metrics().hours().rows();
    let billed: f64 = hours.iter().map(|hour| hour.used.billed).sum();
    assert!((billed - 0.02).abs() < 1e-9, "a millisecond for each token of each model: {billed}");
}

#[tokio::test]
async fn a_model_of_others_is_as_one_that_is_not_there() {
    let owner = Some("acme".parse().unwrap());
    let server = Server::with(Options { owner, key_limits: Some(Vec::new()), ..with_rivals() }).await;
    let client = server.client().with_key();
    let mut body = comparison("hello");
    (body["model"], body["prompt_scores_against"]) = (json!(RIVAL), json!(MODEL));
    assert_refused(&client.post(COMPLETIONS, &body).await, (404, "prompt_scores_against"));
    assert_refused(&client.post(COMPLETIONS, &comparison("hello")).await, (404, "model"));
}

#[tokio::test]
async fn room_for_one_of_the_two_is_room_for_none() {
    let key_limits = Some(vec![limit(Limit::tokens_per_minute, 15)]);
    let server = Server::with(Options { key_limits, ..with_rivals() }).await;
    let client = server.client().with_key();
    assert_eq!(client.post(COMPLETIONS, &comparison("0123456789")).await.status, 429);
    assert_eq!(server.state.ledger().totals().open, 0);
    // What the first had taken is there again.
    assert_eq!(client.post(COMPLETIONS, &comparison("0123456")).await.status, 200);
}

#[tokio::test]
async fn whoever_leaves_ends_the_comparison_and_pays_for_what_ran() {
    let gate = Gate::closed();
    let server = Server::with(Options { gate: gate.clone(), ..with_rivals() }).await;
    let client = server.client();
    let asked = tokio::spawn(async move { client.post(COMPLETIONS, &comparison("x".repeat(200))).await });
    until(|| server.state.ledger().totals().open == 2).await;
    asked.abort();
    until(|| server.state.ledger().totals().open == 0).await;
    gate.release();
    let totals = server.state.ledger().totals();
    assert!(totals.prompt_tokens < 200, "one chunk of each at most: {totals:?}");
    let next = server.client().post(COMPLETIONS, &comparison("next")).await;
    assert_eq!(next.status, 200);
}
