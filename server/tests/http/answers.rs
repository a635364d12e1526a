//! What is answered: the same streamed and not, in OpenAI's shapes.

use crate::common::both_ways::{CHAT, COMPLETIONS, both_ways};
use crate::common::text::{END, START, tokens_of};
use crate::common::{MODEL, Server, digest};
use serde_json::{Value, json};

fn said(content: &str, extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 200});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_chat_is_answered_in_openais_shape() {
    let server = Server::start().await;
    let whole = both_ways(&server.client(), CHAT, said("say:hello", json!({}))).await;
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!(MODEL)));
    assert_eq!(whole["system_fingerprint"], "fp_test");
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "hello", "refusal": null}));
    assert_eq!(choice["finish_reason"], "stop");
    // Five letters and the end token.
    assert_eq!(whole["usage"]["completion_tokens"], 6);
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_stream_opens_with_the_role_and_closes_with_the_usage() {
    let server = Server::start().await;
    let body = said("say:hello", json!({"stream": true, "stream_options": {"include_usage": true}}));
    let stream = server.client().stream(CHAT, &body).await;
    assert!(stream.headers["content-type"].starts_with("text/event-stream"));
    assert_eq!(stream.headers["cache-control"], "no-cache");
    assert_eq!(stream.headers["x-accel-buffering"], "no");
    let events = stream.events().await;
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 6);
    assert!(before.iter().all(|event| event["usage"].is_null() && event["id"] == last["id"]));
}

#[tokio::test]
async fn a_character_is_never_broken_across_chunks() {
    let server = Server::start().await;
    let text = "é漢字🎉 — naïve";
    let body = said(&format!("say:{text}"), json!({"stream": true}));
    let events = server.client().stream(CHAT, &body).await.events().await;
    let pieces = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let content: String = pieces.collect();
    assert_eq!(content, text);
    assert!(events.iter().all(|event| !event.to_string().contains('\u{fffd}')));
}

#[tokio::test]
async fn a_stop_string_is_cut_and_ends_the_usage_at_the_token_that_completes_it() {
    let server = Server::start().await;
    let whole =
        both_ways(&server.client(), CHAT, said("say:one two three", json!({"stop": [" thr", "nowhere"]}))).await;
    assert_eq!(whole["choices"][0]["message"]["content"], "one two");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"]["completion_tokens"], "one two thr".len());
    server.settle().await;
}

#[tokio::test]
async fn a_stop_string_does_not_count_before_min_tokens() {
    let server = Server::start().await;
    let whole =
        both_ways(&server.client(), CHAT, said("say:one two one", json!({"stop": "one", "min_tokens": 5}))).await;
    assert_eq!(whole["choices"][0]["message"]["content"], "one two ");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn text_that_only_begins_a_stop_string_is_not_lost() {
    let server = Server::start().await;
    let whole = both_ways(&server.client(), CHAT, said("say:one two th", json!({"stop": "three"}))).await;
    assert_eq!(whole["choices"][0]["message"]["content"], "one two th");
}

#[tokio::test]
async fn the_token_limit_ends_an_answer_with_length() {
    let server = Server::start().await;
    let whole = both_ways(&server.client(), CHAT, said("say:hello", json!({"max_tokens": 3}))).await;
    assert_eq!(whole["choices"][0]["message"]["content"], "hel");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn tool_calls_are_parsed_streamed_and_not() {
    let server = Server::start().await;
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]);
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 12, \"b\": \"é\"}}\n</tool_call>";
    let whole = both_ways(&server.client(), CHAT, said(&format!("say:{call}"), json!({"tools": tools}))).await;
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let made = &choice["message"]["tool_calls"][0];
    assert!(made["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!((&made["type"], &made["function"]["name"]), (&json!("function"), &json!("add")));
    let arguments: Value = serde_json::from_str(made["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"a": 12, "b": "é"}));

    let plain = both_ways(&server.client(), CHAT, said(&format!("say:{call}"), json!({}))).await;
    assert_eq!(plain["choices"][0]["message"]["content"], call, "nothing was offered, so nothing is called");
}

#[tokio::test]
async fn a_stream_that_only_calls_adds_up_to_no_content_and_one_that_says_nothing_to_an_empty_text() {
    let server = Server::start().await;
    let client = server.client();
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]);
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 12}}\n</tool_call>";
    for (text, content) in [(call, Value::Null), ("", json!("")), ("so", json!("so"))] {
        for extra in [json!({}), json!({"logprobs": true}), json!({"return_token_ids": true})] {
            let mut body = said(&format!("say:{text}"), extra);
            body["tools"] = tools.clone();
            let whole = both_ways(&client, CHAT, body.clone()).await;
            assert_eq!(whole["choices"][0]["message"]["content"], content, "{body}");
            body["stream"] = json!(true);
            let events = client.stream(CHAT, &body).await.events().await;
            let first = &events[0]["choices"][0]["delta"];
            assert_eq!(*first, json!({"role": "assistant", "content": null}), "as OpenAI begins a call");
        }
    }
}

#[tokio::test]
async fn the_arguments_of_a_call_are_streamed_while_they_are_written() {
    let server = Server::start().await;
    let client = server.client();
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]);
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 12, \"b\": 3}}\n</tool_call>";
    let body = said(&format!("say:{call}"), json!({"tools": tools}));
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = client.stream(CHAT, &streamed).await.events().await;
    let parts: Vec<&Value> =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    assert_eq!((&parts[0]["type"], &parts[0]["function"]["name"]), (&json!("function"), &json!("add")));
    assert!(parts[0]["id"].is_string() && parts[1..].iter().all(|part| part.get("id").is_none()), "{parts:?}");
    assert!(parts.iter().all(|part| part["index"] == 0));
    let arguments = parts.iter().filter_map(|part| part["function"]["arguments"].as_str());
    assert_eq!(arguments.collect::<String>(), "{\"a\": 12, \"b\": 3}");
    assert!(parts.len() > 10, "a token is a byte here: {parts:?}");

    let mut cut = body;
    cut["max_tokens"] = json!(call.find("12").unwrap());
    let choice = both_ways(&client, CHAT, cut).await["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\": ");
}

#[tokio::test]
async fn reasoning_is_parted_from_the_answer_streamed_and_not() {
    let server = Server::start().await;
    let thought = "<think>\nA sum, été.\n</think>\n\n19";
    let whole = both_ways(&server.client(), CHAT, said(&format!("say:{thought}"), json!({}))).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("A sum, été."), &json!("19")));
    let reasoning = "<think>\nA sum, été.".len();
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], reasoning);

    let cut = both_ways(&server.client(), CHAT, said(&format!("say:{thought}"), json!({"max_tokens": 12}))).await;
    let message = &cut["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("A su"), &json!("")));

    let plain = both_ways(&server.client(), CHAT, said("say:19", json!({}))).await;
    assert_eq!(plain["choices"][0]["message"].get("reasoning_content"), None);
}

#[tokio::test]
async fn chat_logprobs_name_tokens_and_their_bytes() {
    let server = Server::start().await;
    let body = said("say:é!", json!({"logprobs": true, "top_logprobs": 2}));
    let whole = both_ways(&server.client(), CHAT, body).await;
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 4, "two bytes, a mark, the end token");
    assert_eq!((&content[0]["token"], &content[0]["bytes"]), (&json!("bytes:\\xc3"), &json!([0xc3])));
    for token in &content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(top[0]["logprob"], token["logprob"], "the greedy choice is the most likely");
    }
}

#[tokio::test]
async fn completions_take_text_and_tokens_and_lists() {
    let server = Server::start().await;
    let client = server.client();
    let ask = async |prompt: Value| {
        let reply = client.post(COMPLETIONS, &json!({"model": MODEL, "prompt": prompt, "max_tokens": 5})).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let choices = reply.json()["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (ab, cd) = (ask(json!("ab")).await, ask(json!("cd")).await);
    assert_eq!(ask(json!(tokens_of("ab"))).await, ab);
    assert_eq!(ask(json!(["ab", "cd"])).await, [ab.clone(), cd.clone()].concat());
    assert_eq!(ask(json!([tokens_of("cd"), tokens_of("ab")])).await, [cd, ab].concat());
    server.assert_at_rest().await;
}

#[tokio::test]
async fn echo_with_logprobs_is_what_evaluation_harnesses_read() {
    let server = Server::start().await;
    let prompt = "likely";
    let body = json!({"model": MODEL, "prompt": [tokens_of(prompt)], "temperature": 0, "max_tokens": 1,
                      "logprobs": 1, "echo": true, "seed": 1234});
    let reply = server.client().post(COMPLETIONS, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let choice = reply.json()["choices"][0].clone();
    let logprobs = &choice["logprobs"];
    let array = |name: &str| logprobs[name].as_array().unwrap().clone();
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(array(name).len(), prompt.len() + 1, "{name}");
    }
    assert_eq!((&array("token_logprobs")[0], &array("top_logprobs")[0]), (&Value::Null, &Value::Null));
    assert_eq!(array("text_offset"), (0..=prompt.len()).map(Value::from).collect::<Vec<_>>());
    assert!(choice["text"].as_str().unwrap().starts_with(prompt));
    for (index, token) in array("tokens").iter().enumerate().skip(1) {
        let own = &array("top_logprobs")[index][token.as_str().unwrap()];
        assert!(own.is_number(), "the token stands in its own dictionary");
        assert_eq!(own, &array("token_logprobs")[index]);
    }
    server.assert_at_rest().await;
}

/// They drop the last entry of each list, whatever it is.
#[tokio::test]
async fn each_prompt_of_a_list_is_scored_beside_one_generated_token_also_where_that_ends_the_answer() {
    let server = Server::start().await;
    let ends_at_once = [tokens_of("say:"), vec![END, START], tokens_of("assistant\n")].concat();
    let prompts = [tokens_of("likely"), ends_at_once, tokens_of("a")];
    let body = json!({"model": MODEL, "prompt": prompts, "temperature": 0, "max_tokens": 1,
                      "logprobs": 1, "echo": true, "seed": 1234});
    let reply = server.client().post(COMPLETIONS, &body).await.json();
    for (index, prompt) in prompts.iter().enumerate() {
        let choice = &reply["choices"][index];
        assert_eq!(choice["index"], index);
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(choice["logprobs"][name].as_array().unwrap().len(), prompt.len() + 1, "{name} of {index}");
        }
    }
    assert_eq!(reply["choices"][1]["finish_reason"], "stop");
    server.assert_at_rest().await;
}

#[tokio::test]
async fn echo_without_generation_scores_the_prompt() {
    let server = Server::start().await;
    let body = json!({"model": MODEL, "prompt": "score me", "max_tokens": 0, "logprobs": 0, "echo": true});
    let reply = server.client().post(COMPLETIONS, &body).await.json();
    assert_eq!(reply["choices"][0]["text"], "score me");
    assert_eq!(reply["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(reply["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn prompt_logprobs_and_token_ids_are_shown_where_asked_for() {
    let server = Server::start().await;
    let client = server.client();
    let body =
        json!({"model": MODEL, "prompt": "abc", "max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": true});
    let choice = client.post(COMPLETIONS, &body).await.json()["choices"][0].clone();
    let scored = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!((scored.len(), &scored[0]), (3, &Value::Null));
    assert!(scored[1]["98"]["logprob"].is_number(), "the prompt's own token is there by its id: {choice}");
    assert_eq!(choice["prompt_token_ids"], json!(tokens_of("abc")));
    assert_eq!(choice["token_ids"], json!(tokens_of(choice["text"].as_str().unwrap())));
    let mut streaming = body;
    streaming["stream"] = json!(true);
    let events = client.stream(COMPLETIONS, &streaming).await.events().await;
    assert_eq!(events[0]["choices"][0]["prompt_logprobs"], choice["prompt_logprobs"]);
    assert_eq!(events[0]["choices"][0]["prompt_token_ids"], choice["prompt_token_ids"]);
}

#[tokio::test]
async fn the_last_message_can_be_continued() {
    let server = Server::start().await;
    let messages = json!([{"role": "user", "content": "say:hello world"}, {"role": "assistant", "content": "hello"}]);
    let body = json!({"model": MODEL, "messages": messages, "continue_final_message": true, "max_tokens": 20});
    let reply = server.client().post(CHAT, &body).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], " world");
}

#[tokio::test]
async fn a_repeated_prompt_reports_its_cached_tokens() {
    let server = Server::start().await;
    let body = said(&format!("say:{}", "long ".repeat(20)), json!({"max_tokens": 2}));
    let client = server.client();
    let cached = |reply: &Value| reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&client.post(CHAT, &body).await.json()), 0);
    assert!(cached(&client.post(CHAT, &body).await.json()) > 0);
    let mut salted = body;
    salted["cache_salt"] = json!("another");
    assert_eq!(cached(&client.post(CHAT, &salted).await.json()), 0, "a salt keeps prefixes apart");
}

#[tokio::test]
async fn tokenize_counts_what_a_chat_would_see() {
    let server = Server::start().await;
    let client = server.client();
    let messages = json!([{"role": "user", "content": "say:hi"}]);
    let counted = client.post("/tokenize", &json!({"messages": messages})).await.json();
    let chat = client.post(CHAT, &json!({"model": MODEL, "messages": messages, "max_tokens": 1})).await.json();
    assert_eq!(counted["count"], chat["usage"]["prompt_tokens"]);
    assert_eq!(counted["max_model_len"], 2048);
    let tokens = client.post("/tokenize", &json!({"model": MODEL, "prompt": "né"})).await.json()["tokens"].clone();
    assert_eq!(tokens, json!(tokens_of("né")));
    assert_eq!(client.post("/detokenize", &json!({"tokens": tokens})).await.json(), json!({"prompt": "né"}));
}

#[tokio::test]
async fn models_are_listed_and_retrieved() {
    let server = Server::start().await;
    let client = server.client();
    let list = client.get("/v1/models").await.json();
    let model = &list["data"][0];
    assert_eq!((&list["object"], &model["id"]), (&json!("list"), &json!(MODEL)));
    assert_eq!((&model["max_model_len"], &model["capabilities"]), (&json!(2048), &json!(["chat", "completions"])));
    assert_eq!((&model["state"], &model["digest"]), (&json!("ready"), &json!(digest())));
    assert_eq!(client.get(&format!("/v1/models/{MODEL}")).await.json(), list["data"][0]);
}

#[tokio::test]
async fn a_request_id_comes_back() {
    let server = Server::start().await;
    let client = server.client();
    assert!(client.get("/health").await.headers["x-request-id"].starts_with("req_"));
    assert_eq!(client.with("x-request-id", "mine-1").get("/health").await.headers["x-request-id"], "mine-1");
}
