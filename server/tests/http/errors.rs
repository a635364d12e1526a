//! Bad input gets the right 4xx at once, in OpenAI's shape, and the server lives.

use crate::common::client::{Client, Reply};
use crate::common::{MODEL, Options, Server};
use passerelle::api::{ApiConfig, UnknownFields};
use passerelle_engine::EngineConfig;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "say:hi"}], "max_tokens": 8});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn refused(reply: &Reply, status: u16, code: &str, param: Option<&str>) {
    assert_eq!((reply.status, reply.error_code().as_str()), (status, code), "{}", reply.text());
    assert_eq!(reply.param().as_deref(), param, "{}", reply.text());
}

async fn still_answers(client: &Client) {
    let reply = client.post(CHAT, &chat(json!({}))).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "hi");
}

#[tokio::test]
async fn malformed_requests_are_refused_by_name_and_the_server_lives() {
    let server = Server::start().await;
    let client = server.client();
    let cases = [
        (json!({"temperature": "hot"}), "invalid_type", "temperature"),
        (json!({"max_tokens": -1}), "invalid_value", "max_tokens"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"stop": vec!["x"; 10_000]}), "invalid_value", "stop"),
        (json!({"max_tokns": 3}), "unknown_parameter", "max_tokns"),
        (json!({"n": 0}), "invalid_value", "n"),
        (json!({"best_of": 2}), "unsupported_parameter", "best_of"),
        (json!({"logit_bias": {"259": 1}}), "invalid_value", "logit_bias"),
        (json!({"stop_token_ids": [259]}), "invalid_value", "stop_token_ids"),
        (json!({"model": null}), "missing_required_parameter", "model"),
    ];
    for (extra, code, param) in cases {
        refused(&client.post(CHAT, &chat(extra)).await, 400, code, Some(param));
    }
    for body in [&b"{"[..], b"", b"\xff\xfe", b"[1]", b"nul", b"{\"model\": 1e999}"] {
        assert_eq!(client.post_raw(CHAT, body).await.status, 400, "{body:?}");
    }
    refused(&client.post(CHAT, &chat(json!({"model": "nobody"}))).await, 404, "model_not_found", Some("model"));
    still_answers(&client).await;
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_field_that_does_nothing_here_is_refused_by_name() {
    let server = Server::start().await;
    let client = server.client();
    let body = json!({"prompt": "a", "add_generation_prompt": false});
    refused(&client.post("/tokenize", &body).await, 400, "unsupported_parameter", Some("add_generation_prompt"));
    let body = json!({"messages": [{"role": "user", "content": "a"}], "add_special_tokens": true});
    refused(&client.post("/tokenize", &body).await, 400, "invalid_value", Some("add_special_tokens"));
}

#[tokio::test]
async fn what_the_kv_cache_can_never_hold_names_the_context() {
    let options = Options::default();
    let engine = EngineConfig { num_kv_blocks: 4, ..options.engine.clone() };
    let server = Server::with(Options { engine, ..options }).await;
    let client = server.client();
    let long = "x".repeat(500);
    let response = json!({"model": MODEL, "input": "hi", "max_output_tokens": 500});
    let long_response = json!({"model": MODEL, "input": long, "max_output_tokens": 5});
    let scored = json!({"model": MODEL, "prompt": long, "max_tokens": 0, "echo": true});
    let listed = json!({"model": MODEL, "prompt": ["a", long], "max_tokens": 5});
    let messages = json!([{"role": "user", "content": long}]);
    for (path, body, field) in [
        (CHAT, chat(json!({"max_tokens": 500})), "max_tokens"),
        (CHAT, chat(json!({"max_tokens": null, "max_completion_tokens": 500})), "max_completion_tokens"),
        (CHAT, chat(json!({"max_tokens": 5, "messages": messages})), "messages"),
        (CHAT, chat(json!({"max_tokens": null})), "messages"),
        ("/v1/responses", response, "max_output_tokens"),
        ("/v1/responses", long_response, "input"),
        ("/v1/responses", json!({"model": MODEL, "input": "hi"}), "input"),
        ("/v1/completions", scored, "prompt"),
        ("/v1/completions", listed, "prompt[1]"),
    ] {
        let reply = client.post(path, &body).await;
        refused(&reply, 400, "context_length_exceeded", Some(field));
        assert!(reply.message().contains(&format!("`{field}`")), "says what to do: {}", reply.message());
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn an_answer_that_does_not_fit_names_the_field_that_asked_for_it() {
    let server = Server::start().await;
    let client = server.client();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let cases = [
        ("/v1/completions", "max_tokens", json!({"prompt": "hi"})),
        (CHAT, "max_tokens", json!({"messages": messages})),
        (CHAT, "max_completion_tokens", json!({"messages": messages})),
        ("/v1/responses", "max_output_tokens", json!({"input": "hi"})),
    ];
    for (path, field, mut body) in cases {
        (body["model"], body[field]) = (json!(MODEL), json!(4000));
        let reply = client.post(path, &body).await;
        refused(&reply, 400, "context_length_exceeded", Some(field));
        assert!(reply.message().contains(&format!("lower `{field}`")), "{}", reply.message());
        (body[field], body["min_tokens"]) = (json!(3), json!(4));
        let reply = client.post(path, &body).await;
        assert!(reply.message().contains(&format!("`{field}`")), "{path}: {}", reply.message());
    }
}

#[tokio::test]
async fn an_effort_that_the_template_cannot_be_told_is_refused_under_the_routes_own_name() {
    let server = Server::start().await;
    let client = server.client();
    let response = json!({"model": MODEL, "input": "hi", "reasoning": {"effort": "high"}});
    refused(&client.post("/v1/responses", &response).await, 400, "unsupported_parameter", Some("reasoning.effort"));
    let reply = client.post(CHAT, &chat(json!({"reasoning_effort": "high"}))).await;
    refused(&reply, 400, "unsupported_parameter", Some("reasoning_effort"));
}

#[tokio::test]
async fn a_large_body_is_read_like_a_small_one() {
    let server = Server::start().await;
    let client = server.client();
    let padding = " ".repeat(200 << 10);
    let body = format!("{}{padding}", chat(json!({})));
    assert_eq!(client.post_raw(CHAT, body.as_bytes()).await.status, 200);
    refused(&client.post_raw(CHAT, format!("{{{padding}").as_bytes()).await, 400, "invalid_json", None);
}

#[tokio::test]
async fn a_misspelt_field_is_answered_with_the_right_one() {
    let server = Server::start().await;
    let reply = server.client().post(CHAT, &chat(json!({"max_token": 3}))).await;
    assert!(reply.message().contains("Did you mean `max_tokens`?"), "{}", reply.message());
}

#[tokio::test]
async fn unknown_fields_are_listed_in_a_header_where_they_are_only_warned_about() {
    let api = ApiConfig { unknown_fields: UnknownFields::Warn, ..ApiConfig::default() };
    let server = Server::with(Options { api, ..Options::default() }).await;
    let reply = server.client().post(CHAT, &chat(json!({"colour": "red", "shade": 3}))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.headers["x-passerelle-ignored-fields"], "colour,shade");
}

#[tokio::test]
async fn a_body_of_50_mb_is_refused_and_the_answer_can_be_read() {
    let server = Server::start().await;
    let client = server.client();
    let body = vec![b' '; 50 << 20];
    refused(&client.post_raw(CHAT, &body).await, 413, "request_too_large", None);
    still_answers(&client).await;
}

#[tokio::test]
async fn a_prompt_may_fill_the_context_and_not_pass_it() {
    let server = Server::start().await;
    let client = server.client();
    let fills = json!({"model": MODEL, "prompt": vec![97; 2047], "max_tokens": 1});
    assert_eq!(client.post("/v1/completions", &fills).await.status, 200);
    let passes = json!({"model": MODEL, "prompt": vec![97; 2048], "max_tokens": 1});
    let reply = client.post("/v1/completions", &passes).await;
    refused(&reply, 400, "context_length_exceeded", Some("prompt"));
    let told = "This model's context length is 2048 tokens, and `prompt` has 2048, which leaves none for the answer. \
                Shorten it.";
    assert_eq!(reply.message(), told);
    let endless = json!({"model": MODEL, "prompt": "x".repeat((2 << 20) + 1)});
    let reply = client.post("/v1/completions", &endless).await;
    refused(&reply, 400, "context_length_exceeded", Some("prompt"));
    assert!(reply.message().contains("2097153") && reply.message().contains("2048 tokens"), "{}", reply.message());
    server.assert_at_rest().await;
}

/// Whether it was counted in tokens or has more bytes than are.
#[tokio::test]
async fn a_prompt_that_is_too_long_by_itself_is_named_as_its_caller_calls_it() {
    let server = Server::start().await;
    let client = server.client();
    for length in [3000, (2 << 20) + 1] {
        let long = "x".repeat(length);
        for (path, field, prompt) in [
            ("/v1/completions", "prompt", json!({"prompt": long})),
            ("/v1/completions", "prompt[1]", json!({"prompt": ["short", long]})),
            (CHAT, "messages", json!({"messages": [{"role": "user", "content": long}], "max_completion_tokens": 5})),
            ("/v1/responses", "input", json!({"input": long, "max_output_tokens": 5})),
        ] {
            let mut body = prompt;
            body["model"] = json!(MODEL);
            let reply = client.post(path, &body).await;
            refused(&reply, 400, "context_length_exceeded", Some(field));
            assert!(!reply.message().contains("lower"), "{path}: {}", reply.message());
        }
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_prompt_that_is_only_read_may_fill_the_context_and_what_is_longer_is_refused_before_anything_is_reserved() {
    let server = Server::start().await;
    let client = server.client();
    let read = |prompt: Value| json!({"model": MODEL, "prompt": prompt, "max_tokens": 0, "echo": true});
    let long = vec![97; 2049];
    for (prompt, field) in [(json!(long), "prompt"), (json!(["short", "x".repeat(2049)]), "prompt[1]")] {
        let reply = client.post("/v1/completions", &read(prompt)).await;
        refused(&reply, 400, "context_length_exceeded", Some(field));
    }
    assert_eq!(server.state.ledger().totals().reservations_taken, 0);
    assert_eq!(client.post("/v1/completions", &read(json!(vec![97; 2048]))).await.status, 200);
    server.assert_at_rest().await;
}

#[tokio::test]
async fn who_sends_no_text_to_count_is_told_both_fields_that_may_hold_one() {
    let server = Server::start().await;
    let reply = server.client().post("/tokenize", &json!({"model": MODEL})).await;
    refused(&reply, 400, "missing_required_parameter", Some("prompt"));
    assert_eq!(reply.message(), "Missing required parameter: `prompt` or `messages`.");
}

#[tokio::test]
async fn who_calls_a_text_to_count_as_other_servers_do_is_told_what_it_is_called_here() {
    let server = Server::start().await;
    for name in ["text", "content", "inputs", "input"] {
        let reply = server.client().post("/tokenize", &json!({"model": MODEL, name: "a"})).await;
        refused(&reply, 400, "unknown_parameter", Some(name));
        assert_eq!(reply.message(), format!("Unknown parameter: `{name}`. Did you mean `prompt`?"));
    }
}

#[tokio::test]
async fn routes_and_methods_and_media_types_that_do_not_exist_are_refused_in_the_same_shape() {
    let server = Server::start().await;
    let client = server.client();
    refused(&client.get("/v1/nothing").await, 404, "unknown_url", None);
    for (name, told) in [
        ("nobody/here", "nobody/here"),
        ("a%2Fb", "a/b"),
        ("..", ".."),
        ("./demo", "./demo"),
        ("demo/", "demo/"),
        ("demo%3Fx", "demo?x"),
        ("%ff", "%ff"),
        ("", ""),
    ] {
        let reply = client.get(&format!("/v1/models/{name}")).await;
        refused(&reply, 404, "model_not_found", Some("model"));
        assert!(reply.message().starts_with(&format!("The model `{told}` does not exist.")), "{}", reply.message());
    }
    refused(&client.get(CHAT).await, 405, "method_not_allowed", None);
    let form = client.clone().with("content-type", "application/x-www-form-urlencoded");
    refused(&form.post(CHAT, &chat(json!({}))).await, 415, "unsupported_media_type", None);
    let untyped = client.clone().without("content-type");
    refused(&untyped.post(CHAT, &chat(json!({}))).await, 415, "unsupported_media_type", None);
    let charset = client.with("content-type", "application/json; charset=utf-8");
    assert_eq!(charset.post(CHAT, &chat(json!({}))).await.status, 200);
}

#[tokio::test]
async fn an_open_listener_serves_this_machine_and_no_web_page() {
    let server = Server::start().await;
    let client = server.client();
    for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8080"] {
        refused(&client.clone().with("host", host).get("/v1/models").await, 403, "forbidden_host", None);
    }
    for host in ["localhost", "localhost:1234", "127.0.0.1", "[::1]:8080"] {
        assert_eq!(client.clone().with("host", host).get("/v1/models").await.status, 200, "{host}");
    }
    for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
        let foreign = client.clone().with("origin", origin);
        refused(&foreign.post(CHAT, &chat(json!({}))).await, 403, "forbidden_origin", None);
    }
    assert_eq!(client.with("origin", "http://localhost:3000").get("/v1/models").await.status, 200);
}
