//! Answers that must look like something: JSON of a schema, an expression, a choice, a grammar.

use crate::common::chance::Chance;
use crate::common::client::{Client, Reply};
use crate::common::schemas::{accepts, random_schema};
use crate::common::{MODEL, Server};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// What half of the random answers may not use up, so that the test means something.
const ANSWER_TOKENS: u32 = 400;

fn body(content: &str, extra: &Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 200});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn choice(client: &Client, body: &Value) -> Value {
    let reply = client.post(CHAT, body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["choices"][0].clone()
}

/// Where nothing is reasoning.
async fn completion(client: &Client, extra: &Value) -> Reply {
    let mut body = json!({"model": MODEL, "prompt": "say:Bonjour!", "max_tokens": 200});
    extra.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    client.post(COMPLETIONS, &body).await
}

fn content(choice: &Value) -> &str {
    choice["message"]["content"].as_str().unwrap()
}

fn json_schema(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}}})
}

fn number_schema() -> Value {
    json!({"type": "object", "properties": {"sum": {"type": "integer", "maximum": 999}}, "required": ["sum"],
        "additionalProperties": false})
}

#[tokio::test]
async fn each_way_to_ask_for_a_structure_is_kept() {
    let server = Server::start().await;
    let is_sum = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value["sum"].is_i64());
    let is_object = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    let schema = number_schema();
    type Check = fn(&str) -> bool;
    let cases: [(Value, Check); 14] = [
        (json_schema(&schema), is_sum),
        (json!({"response_format": {"type": "json_object", "schema": schema}}), is_sum),
        (json!({"response_format": {"type": "json_object", "value": schema}}), is_sum),
        (json!({"guided_json": schema}), is_sum),
        (json!({"guided_json": schema.to_string()}), is_sum),
        (json!({"structured_outputs": {"json": schema}}), is_sum),
        (json!({"response_format": {"type": "json_object"}}), is_object),
        (json!({"structured_outputs": {"json_object": true}}), is_object),
        (json!({"guided_regex": "[0-9]{3}[ab]"}), |text| text.len() == 4 && text.ends_with(['a', 'b'])),
        (json!({"structured_outputs": {"regex": " x{2}"}}), |text| text == " xx"),
        (json!({"guided_choice": ["rouge", "vert"]}), |text| ["rouge", "vert"].contains(&text)),
        (json!({"structured_outputs": {"choice": ["été"]}}), |text| text == "été"),
        (json!({"guided_grammar": "start: \"<\" /[a-z]{1,3}/ \">\""}), |text| {
            text.starts_with('<') && text.ends_with('>')
        }),
        (json!({"structured_outputs": {"grammar": "start: \"ab\" | \"cd\""}}), |text| text == "ab" || text == "cd"),
    ];
    // The order would be followed to the letter, were it not for the structure.
    for (extra, check) in cases {
        let got = choice(&server.client(), &body("say:{\"k\": 1} Bonjour!", &extra)).await;
        assert!(check(content(&got)), "{extra}: {got}");
        assert_eq!(got["finish_reason"], "stop", "{extra}");
        let reply = completion(&server.client(), &extra).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(check(reply.json()["choices"][0]["text"].as_str().unwrap()), "{extra}: {}", reply.text());
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn what_already_has_the_structure_is_said_unchanged_and_streamed_the_same() {
    let server = Server::start().await;
    let extra = json_schema(&number_schema());
    let asked = body("say:{\"sum\": 19}", &extra);
    let whole = choice(&server.client(), &asked).await;
    assert_eq!(content(&whole), "{\"sum\": 19}");
    let mut streaming = asked;
    streaming["stream"] = json!(true);
    let events = server.client().stream(CHAT, &streaming).await.events().await;
    let deltas = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), content(&whole));
}

#[tokio::test]
async fn a_whole_structure_ends_the_answer_without_an_end_token() {
    let server = Server::start().await;
    let extra = json!({"guided_choice": ["oui"], "ignore_eos": true, "min_tokens": 50, "return_token_ids": true});
    let got = completion(&server.client(), &extra).await.json()["choices"][0].clone();
    assert_eq!((got["text"].as_str(), got["token_ids"].as_array().unwrap().len()), (Some("oui"), 3));
    let cut = completion(&server.client(), &json!({"guided_regex": "a{9}", "max_tokens": 5})).await.json();
    assert_eq!((&cut["choices"][0]["text"], &cut["choices"][0]["finish_reason"]), (&json!("aaaaa"), &json!("length")));
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_by_name() {
    let server = Server::start().await;
    let schema = |schema: Value| json_schema(&schema);
    let cases = [
        (schema(json!({"not": {}})), "response_format.json_schema.schema", "not"),
        (json!({"guided_json": {"uniqueItems": true, "type": "array"}}), "guided_json", "uniqueItems"),
        (
            schema(json!({"type": "integer", "multipleOf": 9_999_991})),
            "response_format.json_schema.schema",
            "multipleOf",
        ),
        (json!({"guided_json": {"type": "object", "minProperties": 2}}), "guided_json", "minProperties"),
        (json!({"guided_json": {"const": 9_007_199_254_740_993_i64}}), "guided_json", "2^53"),
        (json!({"guided_grammar": "start: %json {\"multipleOf\": 9999991}"}), "guided_grammar", "multipleOf"),
        (json!({"guided_regex": "("}), "guided_regex", "compiled"),
        (json!({"guided_regex": "a".repeat(300_000)}), "guided_regex", "300000 bytes"),
        (json!({"structured_outputs": {"grammar": "start: x"}}), "structured_outputs.grammar", "x"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice", "at least one"),
        (json!({"structured_outputs": {}}), "structured_outputs", "needs one of"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", "json_schema"),
        (json!({"response_format": {"type": "text", "schema": {}}}), "response_format.schema", "no effect"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
            "response_format.json_schema.schema",
            "Missing",
        ),
        (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice", "guided_regex"),
    ];
    for (extra, param, named) in cases {
        let reply = server.client().post(CHAT, &body("x", &extra)).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(param)), "{}", reply.text());
        assert!(reply.message().contains(named), "{}", reply.text());
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_contradiction_found_on_the_way_is_the_callers_mistake() {
    let server = Server::start().await;
    let reply = completion(&server.client(), &json!({"guided_choice": ["oui"], "bad_words": ["o"]})).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (400, "invalid_value"), "{}", reply.text());
    server.assert_at_rest().await;
}

fn offered(strict: bool, extra: &Value) -> Value {
    let function = json!({"name": "add", "parameters": number_schema(), "strict": strict});
    let other = json!({"name": "look_up", "parameters": {"type": "object"}});
    let mut offered = json!({"tools": [
        {"type": "function", "function": function}, {"type": "function", "function": other}]});
    extra.as_object().unwrap().iter().for_each(|(name, value)| offered[name] = value.clone());
    offered
}

fn arguments(call: &Value) -> Value {
    serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_tool_that_must_be_called_is_called() {
    let server = Server::start().await;
    let named = json!({"type": "function", "function": {"name": "add"}});
    for (tool_choice, parallel) in [(json!("required"), true), (json!("required"), false), (named.clone(), true)] {
        for temperature in [0.0, 1.5] {
            // What the model would rather say is no call.
            let bias = json!({"34": 4, "125": 4});
            let extra = json!({"tool_choice": tool_choice, "parallel_tool_calls": parallel, "temperature": temperature,
                "seed": 1, "logit_bias": bias, "max_tokens": 1000});
            let got = choice(&server.client(), &body("say:I would rather talk.", &offered(false, &extra))).await;
            let calls = got["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{tool_choice}: {got}"));
            assert_eq!(got["finish_reason"], "tool_calls", "{got}");
            assert!(got["message"]["content"].is_null(), "{got}");
            for call in calls {
                let name = call["function"]["name"].as_str().unwrap();
                assert!(name == "add" || tool_choice == "required", "{got}");
                assert!(name != "add" || arguments(call)["sum"].is_i64(), "{got}");
            }
            assert!(calls.len() == 1 || parallel && tool_choice == "required", "{got}");
        }
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_strict_tool_is_called_with_arguments_of_its_schema_or_not_at_all() {
    let server = Server::start().await;
    let wrong = "say:Now <tool_call>\n{\"name\": \"add\", \"arguments\": {\"sum\": 12345678}}\n</tool_call>";
    let got = choice(&server.client(), &body(wrong, &offered(true, &json!({"max_tokens": 1000})))).await;
    let call = &got["message"]["tool_calls"][0];
    assert!(arguments(call)["sum"].as_i64().is_some_and(|sum| sum <= 999), "{got}");
    assert!(content(&got).starts_with("Now"), "{got}");
    let plain = choice(&server.client(), &body("say:Just <b>words</b>.", &offered(true, &json!({})))).await;
    assert_eq!((content(&plain), &plain["finish_reason"]), ("Just <b>words</b>.", &json!("stop")));
}

#[tokio::test]
async fn one_call_at_a_time_is_one_call() {
    let server = Server::start().await;
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"sum\": 1}}\n</tool_call>";
    let asked = |parallel: bool| {
        body(&format!("say:{call}\n{call}"), &offered(false, &json!({"parallel_tool_calls": parallel})))
    };
    for (parallel, calls) in [(true, 2), (false, 1)] {
        let got = choice(&server.client(), &asked(parallel)).await;
        assert_eq!(got["message"]["tool_calls"].as_array().unwrap().len(), calls, "{got}");
    }
}

#[tokio::test]
async fn a_choice_of_tools_that_makes_no_sense_is_refused_by_name() {
    let server = Server::start().await;
    let nobody = json!({"tool_choice": {"type": "function", "function": {"name": "nobody"}}});
    let unenforceable = json!({"tools": [{"type": "function",
        "function": {"name": "f", "strict": true, "parameters": {"type": "object", "not": {}}}}]});
    let cases = [
        (offered(false, &nobody), "tool_choice", "nobody"),
        (json!({"tool_choice": "required"}), "tool_choice", "needs `tools`"),
        (offered(false, &json!({"tool_choice": "any"})), "tool_choice", "required"),
        (offered(false, &json!({"tool_choice": {"type": "custom"}})), "tool_choice.type", "function"),
        (unenforceable, "tools", "not"),
    ];
    for (extra, param, named) in cases {
        let reply = server.client().post(CHAT, &body("x", &extra)).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(param)), "{}", reply.text());
        assert!(reply.message().contains(named), "{}", reply.text());
    }
}

/// Asks for random structures, at several temperatures, and checks what is finished. Returns how many were.
async fn random_answers(seed: u64, pairs: u64) -> u64 {
    let server = Server::start().await;
    let client = server.client();
    let mut chance = Chance::new(seed);
    let mut finished = 0;
    for pair in 0..pairs {
        let schema = random_schema(&mut chance);
        let temperature = *chance.one_of(&[0.0, 0.7, 1.0, 2.0]);
        let prompt = if chance.below(4) == 0 { "say:{\"id\": [1, 2" } else { "anything" };
        // Strings and arrays come to an end.
        let bias = json!({"34": 4, "93": 3, "125": 3});
        let more = json!({"temperature": temperature, "seed": pair, "max_tokens": ANSWER_TOKENS, "logit_bias": bias});
        let mut asked = body(&format!("{prompt} {pair}"), &more);
        asked["response_format"] = json_schema(&schema)["response_format"].clone();
        let got = choice(&client, &asked).await;
        if got["finish_reason"] != "stop" {
            continue;
        }
        let value: Value = serde_json::from_str(content(&got))
            .unwrap_or_else(|error| panic!("seed {seed}, pair {pair}: {error} in {}", content(&got)));
        assert!(accepts(&schema, &schema, &value), "seed {seed}, pair {pair}: {value} is not of {schema}");
        finished += 1;
    }
    server.assert_at_rest().await;
    finished
}

#[tokio::test]
async fn every_finished_answer_is_of_its_random_schema() {
    assert!(random_answers(1, 60).await > 40);
}

#[tokio::test]
#[ignore = "takes minutes; .ci/full runs it"]
async fn every_finished_answer_of_ten_thousand_is_of_its_random_schema() {
    assert!(random_answers(2, 10_000).await > 7_000);
}
