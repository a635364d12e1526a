//! The Responses API: typed events that add up to the whole answer, over the same requests as the chat's.

use crate::common::responses::{RESPONSES, response_both_ways};
use crate::common::{MODEL, Server};
use serde_json::{Value, json};

fn ask(input: Value, extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": input, "max_output_tokens": 200});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn tools() -> Value {
    json!([{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": false}])
}

#[tokio::test]
async fn a_text_is_answered_with_one_message() {
    let server = Server::start().await;
    let whole = response_both_ways(&server.client(), ask(json!("say:hello"), json!({"metadata": {"a": "b"}}))).await;
    assert!(whole["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    assert_eq!(whole["output"][0]["content"][0]["text"], "hello");
    assert_eq!(whole["metadata"], json!({"a": "b"}));
    assert_eq!(whole["usage"]["output_tokens"], 6);
    server.assert_at_rest().await;
}

#[tokio::test]
async fn an_answer_that_is_cut_is_incomplete_and_says_why() {
    let server = Server::start().await;
    let whole = response_both_ways(&server.client(), ask(json!("say:hello"), json!({"max_output_tokens": 3}))).await;
    assert_eq!(
        (&whole["status"], &whole["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(
        (&whole["output"][0]["status"], &whole["output"][0]["content"][0]["text"]),
        (&json!("incomplete"), &json!("hel"))
    );
}

#[tokio::test]
async fn an_answer_without_a_word_is_still_a_message() {
    let server = Server::start().await;
    let whole = response_both_ways(&server.client(), ask(json!("say:"), json!({}))).await;
    assert_eq!((&whole["output"][0]["content"][0]["text"], whole["output"].as_array().unwrap().len()), (&json!(""), 1));
}

#[tokio::test]
async fn calls_are_items_beside_the_text() {
    let server = Server::start().await;
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 12}}\n</tool_call>";
    let whole =
        response_both_ways(&server.client(), ask(json!(format!("say:so: {call}")), json!({"tools": tools()}))).await;
    let output = whole["output"].as_array().unwrap();
    assert_eq!((&output[0]["type"], &output[1]["type"], output.len()), (&json!("message"), &json!("function_call"), 2));
    assert_eq!(output[1]["name"], "add");
    assert!(output[1]["call_id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(serde_json::from_str::<Value>(output[1]["arguments"].as_str().unwrap()).unwrap(), json!({"a": 12}));
}

#[tokio::test]
async fn a_response_and_a_chat_see_the_same_prompt() {
    let server = Server::start().await;
    let client = server.client();
    let input = json!([{"role": "user", "content": "say:hi"}]);
    let response = client.post(RESPONSES, &ask(input.clone(), json!({"instructions": "be brief"}))).await.json();
    let messages = json!([{"role": "system", "content": "be brief"}, input[0]]);
    let chat = json!({"model": MODEL, "messages": messages, "max_tokens": 200});
    let chat = client.post("/v1/chat/completions", &chat).await.json();
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(response["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"]);
}

#[tokio::test]
async fn log_probabilities_are_included_where_asked_for() {
    let server = Server::start().await;
    let extra = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = response_both_ways(&server.client(), ask(json!("say:ab"), extra)).await;
    let logprobs = whole["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), logprobs[0]["top_logprobs"].as_array().unwrap().len()), (3, 2));
}

#[tokio::test]
async fn what_is_refused_is_refused_before_a_stream_begins() {
    let server = Server::start().await;
    for (extra, status, param) in [
        (json!({"store": true, "stream": true}), 400, "store"),
        (json!({"model": "nobody", "stream": true}), 404, "model"),
        (json!({"max_output_tokens": 5000}), 400, "max_output_tokens"),
    ] {
        let reply = server.client().post(RESPONSES, &ask(json!("hi"), extra)).await;
        assert_eq!((reply.status, reply.param().as_deref()), (status, Some(param)), "{}", reply.text());
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn reasoning_is_an_item_of_its_own_and_its_tokens_are_counted() {
    let server = Server::start().await;
    let thought = "<think>\nA sum, été.";
    let whole =
        response_both_ways(&server.client(), ask(json!(format!("say:{thought}\n</think>\n\n19")), json!({}))).await;
    let kinds = ["reasoning", "message"].map(|kind| json!(kind));
    assert_eq!([&whole["output"][0]["type"], &whole["output"][1]["type"]], [&kinds[0], &kinds[1]]);
    assert_eq!(whole["output"][0]["content"][0]["text"], "A sum, été.");
    assert_eq!(whole["usage"]["output_tokens_details"]["reasoning_tokens"], thought.len());
    assert_eq!(whole["output"][0].get("encrypted_content"), None);
}

#[tokio::test]
async fn reasoning_is_handed_back_by_a_client_that_keeps_no_text_of_it() {
    let server = Server::start().await;
    let client = server.client();
    let include = json!({"include": ["reasoning.encrypted_content"]});
    let whole = response_both_ways(&client, ask(json!("say:<think>\nA sum.\n</think>\n\n19"), include)).await;
    let mut thought = whole["output"][0].clone();
    thought.as_object_mut().unwrap().shift_remove("content");
    let user = |said: &str| json!({"role": "user", "content": said});
    let input = json!([user("hi"), thought, whole["output"][1], user("say:yes")]);
    let reply = client.post(RESPONSES, &ask(input.clone(), json!({}))).await;
    assert_eq!(reply.json()["output"][0]["content"][0]["text"], "yes", "{}", reply.text());
    for (field, value) in [
        ("encrypted_content", json!("gAAAAABn")),
        ("content", json!([{"type": "reasoning_text", "text": "Another sum."}])),
        ("content", json!(7)),
    ] {
        let mut changed = input.clone();
        changed[1][field] = value;
        let reply = client.post(RESPONSES, &ask(changed, json!({}))).await;
        assert_eq!((reply.status, reply.param()), (400, Some(format!("input[1].{field}"))));
    }
}
