//! A model that an engine here runs and other servers, too.

use serde_json::json;

use super::script::{Act, Scripted, completion_answer};
use super::{replica, serve, settled};
use crate::common::{MODEL, Options, Server};

#[tokio::test]
async fn a_model_may_run_here_and_elsewhere() {
    let upstream = Scripted::always(Act::Say(completion_answer("theirs", 3))).await;
    let server = Server::with(Options::default()).await;
    serve(&server.state, vec![replica(upstream.address, MODEL, 1)]);
    let mut answers = Vec::new();
    for _ in 0..16 {
        let body = json!({"model": MODEL, "prompt": "hello", "max_tokens": 2});
        let answer = server.client().post("/v1/completions", &body).await.json();
        answers.push(answer["choices"][0]["text"].as_str().unwrap().to_owned());
    }
    let theirs = answers.iter().filter(|text| *text == "theirs").count();
    assert!((1..16).contains(&theirs), "{answers:?}");
    assert_eq!(upstream.asked().len(), theirs);
    assert!(upstream.asked()[0].body["prompt"].is_array(), "the very tokens that an engine here would get");
    assert_eq!(settled(&server).await.settled, 16);
}

#[tokio::test]
async fn what_an_engine_alone_can_tell_comes_from_the_engine_here() {
    let upstream = Scripted::always(Act::Say(completion_answer("theirs", 3))).await;
    let server = Server::with(Options::default()).await;
    serve(&server.state, vec![replica(upstream.address, MODEL, 1)]);
    for _ in 0..16 {
        let body = json!({"model": MODEL, "prompt": "hello", "max_tokens": 2, "return_token_ids": true});
        let answer = server.client().post("/v1/completions", &body).await.json();
        assert_eq!(answer["choices"][0]["token_ids"].as_array().map(Vec::len), Some(2), "{answer}");
    }
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn an_answer_has_the_fingerprint_of_what_ran_it() {
    let upstream = Scripted::always(Act::Say(completion_answer("theirs", 3))).await;
    let server = Server::with(Options::default()).await;
    serve(&server.state, vec![replica(upstream.address, MODEL, 1)]);
    for _ in 0..16 {
        let body = json!({"model": MODEL, "prompt": "hello", "max_tokens": 2});
        let answer = server.client().post("/v1/completions", &body).await.json();
        let is_theirs = answer["choices"][0]["text"] == "theirs";
        assert_eq!(answer["system_fingerprint"].is_null(), is_theirs, "{answer}");
    }
}

/// Upstreams are asked for one answer; that several of them have the model too costs a request none of its tries.
#[tokio::test]
async fn several_answers_come_from_the_engine_here_though_many_upstreams_have_the_model() {
    let upstream = Scripted::always(Act::Break).await;
    let server = Server::with(Options::default()).await;
    serve(&server.state, (1..=6).map(|id| replica(upstream.address, MODEL, id)).collect());
    for index in 0..8 {
        let body = json!({"model": MODEL, "prompt": format!("{index} hello"), "max_tokens": 1, "n": 2});
        let reply = server.client().post("/v1/completions", &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert!(upstream.asked().is_empty());
}
