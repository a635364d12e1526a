//! What a request to another server may ask for, where its prompt can be counted here and where it cannot.

use passerelle::gateway::Limit;
use serde_json::json;
use tokio::time::timeout;

use super::script::{Act, Scripted, chat_piece};
use super::{REMOTE, chat, gateway, replica, serve, settled};
use crate::common::{Options, PATIENCE, Server, limit};

#[tokio::test]
async fn an_answer_that_is_too_long_is_told_without_a_length_for_a_prompt_that_nobody_counted() {
    let upstream = Scripted::always(Act::Break).await;
    let server = gateway(&[upstream.address]).await;
    let reply = server.client().post("/v1/chat/completions", &chat(json!({"max_tokens": 5000}))).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (400, "context_length_exceeded"));
    let told = "This model's context length is 1000 tokens, and you asked for 5000 tokens for the answer alone. Lower \
                `max_tokens`.";
    assert_eq!((reply.message().as_str(), reply.param().as_deref()), (told, Some("max_tokens")));
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn a_prompt_in_tokens_that_is_too_long_by_itself_is_named_by_its_place() {
    let upstream = Scripted::always(Act::Break).await;
    let server = gateway(&[upstream.address]).await;
    for (prompt, field) in [(json!(vec![1; 1001]), "prompt"), (json!([[1], vec![1; 1001]]), "prompt[1]")] {
        for max_tokens in [0, 5] {
            let body = json!({"model": REMOTE, "prompt": prompt, "max_tokens": max_tokens, "echo": true});
            let reply = server.client().post("/v1/completions", &body).await;
            assert_eq!((reply.status, reply.error_code().as_str()), (400, "context_length_exceeded"));
            assert_eq!(reply.param().as_deref(), Some(field), "{}", reply.text());
        }
    }
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn a_limit_that_refuses_a_prompt_that_nobody_counted_says_that_nobody_did() {
    let upstream = Scripted::always(Act::Break).await;
    let (tokens, requests) = (limit(Limit::tokens_per_minute, 100), limit(Limit::requests_per_minute, 1));
    for (key_limit, says_so) in [(tokens, true), (requests, false)] {
        let server = Server::with(Options { key_limits: Some(vec![key_limit]), ..Options::default() }).await;
        serve(&server.state, vec![replica(upstream.address, REMOTE, 1)]);
        let client = server.client().with_key();
        let body = json!({"model": REMOTE, "prompt": ["hello ".repeat(20), "hello"], "max_tokens": 5});
        let reply = client.post("/v1/completions", &body).await;
        assert!(reply.json()["error"]["limit"].is_object(), "{}", reply.text());
        assert_eq!(reply.message().contains("not counted here"), says_so, "{}", reply.message());
    }
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn further_answers_that_an_upstream_is_not_asked_for_are_named_as_they_were_sent() {
    let upstream = Scripted::always(Act::Break).await;
    let server = gateway(&[upstream.address]).await;
    for field in ["n", "best_of"] {
        let body = json!({"model": REMOTE, "prompt": "hello", field: 2});
        let reply = server.client().post("/v1/completions", &body).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(field)), "{}", reply.text());
    }
}

#[tokio::test]
async fn a_list_of_prompts_for_an_upstream_that_can_never_fit_is_a_400() {
    let upstream = Scripted::always(Act::Break).await;
    let limits = [
        (limit(Limit::requests_per_minute, 3), "requests_per_minute"),
        (limit(Limit::concurrent_requests, 3), "concurrent_requests"),
        (limit(Limit::tokens_per_minute, 40), "tokens_per_minute"),
    ];
    for (key_limit, name) in limits {
        let server = Server::with(Options { key_limits: Some(vec![key_limit]), ..Options::default() }).await;
        serve(&server.state, vec![replica(upstream.address, REMOTE, 1)]);
        let body = json!({"model": REMOTE, "prompt": ["a", "b", "c", "d"], "max_tokens": 2});
        let reply = server.client().with_key().post("/v1/completions", &body).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "request_exceeds_limit"), "{}", reply.text());
        assert_eq!(reply.headers["x-ratelimit-limit-name"], name);
        assert_eq!(reply.param().as_deref(), Some("prompt"));
    }
    assert!(upstream.asked().is_empty());
}

/// It never ends by itself. The last thing it says is the first that is too much, so that it hears of the end in its silence.
#[tokio::test]
async fn an_upstream_that_goes_on_past_what_it_was_asked_for_is_cut_off() {
    let upstream = Scripted::always(Act::SayAndWait(vec![chat_piece("word "); 2 * 5 + 64 + 1])).await;
    let server = gateway(&[upstream.address]).await;
    let events = server.client().stream("/v1/chat/completions", &chat(json!({"max_tokens": 5, "stream": true}))).await;
    let events = events.events().await;
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    timeout(PATIENCE, upstream.until_left(1)).await.expect("the connection closes");
    assert_eq!(settled(&server).await.generated_tokens, 5);

    let reply = server.client().post("/v1/chat/completions", &chat(json!({"max_tokens": 5}))).await;
    assert_eq!((reply.status, &reply.json()["choices"][0]["finish_reason"]), (200, &json!("length")));
    timeout(PATIENCE, upstream.until_left(2)).await.expect("the connection closes");
    assert_eq!(settled(&server).await.generated_tokens, 10);
}
