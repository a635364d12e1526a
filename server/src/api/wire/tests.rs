use serde_json::{Value, json};

use super::chat::{CHAT_FIELDS, read_chat};
use super::completions::{COMPLETION_FIELDS, read_completions};
use super::request::{CompletionPrompt, Prompt, PromptEnding, ReadRequest, RequestBounds};
use super::sampling::{ANSWER_FIELDS, GenerationDefaults, SAMPLING_FIELDS};
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::fields::{Reader, Support, UnknownFields};

fn chat(extra: Value) -> Result<ReadRequest, ApiError> {
    let base = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    read_chat(merged(base, extra), Reader::new(UnknownFields::Error), &RequestBounds::default())
}

fn completion(extra: Value) -> Result<ReadRequest, ApiError> {
    let base = json!({"model": "m", "prompt": "hi"});
    let body = merged(base, extra);
    read_completions(body, Reader::new(UnknownFields::Error), &RequestBounds::default())
}

fn merged(mut base: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        base[name] = value.clone();
    }
    base
}

/// Refused by chat with this kind, naming this parameter.
fn refused(extra: Value, kind: ErrorKind, param: &str) {
    let error = chat(extra.clone()).expect_err(&extra.to_string());
    assert_eq!((error.kind(), error.body()["error"]["param"].as_str()), (kind, Some(param)), "{extra}");
}

#[test]
fn every_honoured_field_is_read_and_null_means_absent() {
    for (table, read) in [(CHAT_FIELDS, chat as fn(Value) -> _), (COMPLETION_FIELDS, completion)] {
        for field in SAMPLING_FIELDS.iter().chain(ANSWER_FIELDS).chain(table) {
            let required = ["model", "messages", "prompt"].contains(&field.name);
            let null: Result<ReadRequest, _> = read(json!({field.name: null}));
            assert_eq!(null.is_err(), required, "{} at null", field.name);
            // No field takes an array of a boolean in an array, so a field that is really read refuses it.
            let odd = read(json!({field.name: [[true]]})).expect_err(field.name);
            let expected = match field.support {
                Support::Honoured => [ErrorKind::InvalidType, ErrorKind::InvalidValue],
                Support::Neutral(_) => [ErrorKind::UnsupportedParameter; 2],
            };
            assert!(expected.contains(&odd.kind()), "{}: {odd:?}", field.name);
        }
    }
}

#[test]
fn every_neutral_value_passes() {
    for (table, read) in [(CHAT_FIELDS, chat as fn(Value) -> _), (COMPLETION_FIELDS, completion)] {
        for field in SAMPLING_FIELDS.iter().chain(ANSWER_FIELDS).chain(table) {
            let Support::Neutral(values) = field.support else { continue };
            let values: Vec<Value> = serde_json::from_str(values).unwrap();
            for value in values {
                let read: Result<ReadRequest, ApiError> = read(json!({field.name: value}));
                read.unwrap_or_else(|error| panic!("{}: {error:?}", field.name));
            }
        }
    }
}

#[test]
fn ranges_are_checked_by_name() {
    let cases = [
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"top_p": -0.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"frequency_penalty": 3}), "frequency_penalty"),
        (json!({"presence_penalty": -3}), "presence_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
        (json!({"logit_bias": {"five": 1}}), "logit_bias"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"stop": ""}), "stop[0]"),
        (json!({"stop": ["a", ""]}), "stop[1]"),
        (json!({"min_tokens": 9, "max_tokens": 3}), "min_tokens"),
        (json!({"max_tokens": 9, "max_completion_tokens": 3}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
    ];
    for (extra, param) in cases {
        refused(extra, ErrorKind::InvalidValue, param);
    }
}

#[test]
fn no_chat_is_answered_with_less_than_one_token_and_every_name_says_so_in_the_same_words() {
    for name in ["max_tokens", "max_completion_tokens"] {
        for few in [0, -1] {
            let error = chat(json!({name: few})).unwrap_err();
            let expected = format!("Invalid value for `{name}`: must be between 1 and 4294967295.");
            assert_eq!(error.message(), expected);
        }
    }
}

#[test]
fn wrong_types_are_named() {
    let cases = [
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [{"role": "user", "content": 3}]}), "messages[0].content"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stop": [1]}), "stop[0]"),
        (json!({"stop_token_ids": ["a"]}), "stop_token_ids[0]"),
        (json!({"metadata": {"a": 1}}), "metadata.a"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}),
            "tools[0].function.parameters",
        ),
    ];
    for (extra, param) in cases {
        refused(extra, ErrorKind::InvalidType, param);
    }
}

#[test]
fn what_is_known_but_not_supported_is_refused_by_name() {
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let cases = [
        (json!({"best_of": 2}), "best_of"),
        (json!({"moderation": {"model": "m"}}), "moderation"),
        (json!({"prompt_cache_retention": "24h"}), "prompt_cache_retention"),
        (json!({"ebnf": "root ::= \"a\""}), "ebnf"),
        (json!({"structured_outputs": {"structural_tag": {}}}), "structured_outputs.structural_tag"),
        (json!({"store": true}), "store"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]}), "tools[0].type"),
        (json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}}), "tool_choice.type"),
        (json!({"service_tier": "scale"}), "service_tier"),
        (json!({"messages": [{"role": "user", "content": image}]}), "messages[0].content[0].type"),
    ];
    for (extra, param) in cases {
        refused(extra, ErrorKind::UnsupportedParameter, param);
    }
}

#[test]
fn what_an_assistant_said_in_declining_is_text_like_any_other() {
    let said = |role: &str| {
        let parts = json!([{"type": "text", "text": "Well,"}, {"type": "refusal", "refusal": "no."}]);
        chat(json!({"messages": [{"role": role, "content": parts}, {"role": "user", "content": "hi"}]}))
    };
    let Prompt::Chat(prompt) = said("assistant").unwrap().prompt else { panic!("a chat") };
    assert_eq!(prompt.messages[0].content.as_deref(), Some("Well,\nno."));
    let error = said("user").unwrap_err();
    assert_eq!(error.body()["error"]["param"], "messages[0].content[1].type");
}

#[test]
fn who_is_served_is_told_by_either_name_and_by_the_newer_one_where_both_are_given() {
    let user = |said: Value| {
        let read = [chat(said.clone()), completion(said)].map(|read| read.unwrap().generate.attribution.user.unwrap());
        assert_eq!(read[0], read[1]);
        read[0].to_string()
    };
    assert_eq!(user(json!({"user": "u"})), "u");
    assert_eq!(user(json!({"safety_identifier": "s"})), "s");
    assert_eq!(user(json!({"user": "u", "safety_identifier": "s"})), "s");
}

#[test]
fn the_names_of_other_servers_ask_for_the_same_structure() {
    let grammar = |extra: Value| chat(extra).unwrap().generate.structure.unwrap().grammar;
    assert_eq!(grammar(json!({"regex": "a+"})), grammar(json!({"guided_regex": "a+"})));
    assert_eq!(grammar(json!({"json_schema": "{}"})), grammar(json!({"guided_json": {}})));
    refused(json!({"regex": "a", "guided_regex": "a"}), ErrorKind::InvalidValue, "regex");
}

#[test]
fn a_grammar_in_another_notation_is_told_so() {
    for gbnf in ["root ::= \"yes\" | \"no\"", "# a comment\n<expr> ::= <expr> \"+\""] {
        let error = chat(json!({"structured_outputs": {"grammar": gbnf}})).unwrap_err();
        assert!(error.message().contains("Lark"), "{}", error.message());
        refused(json!({"guided_grammar": gbnf}), ErrorKind::InvalidValue, "guided_grammar");
    }
    assert!(chat(json!({"guided_grammar": "start: \"a ::= b\" | /x ::= y/"})).is_ok());
}

#[test]
fn ten_thousand_stop_strings_are_refused() {
    refused(json!({"stop": vec!["x"; 10_000]}), ErrorKind::InvalidValue, "stop");
    refused(json!({"stop_token_ids": vec![1; 10_000]}), ErrorKind::InvalidValue, "stop_token_ids");
}

#[test]
fn what_is_required_is_named() {
    let read = |body| read_chat(body, Reader::new(UnknownFields::Error), &RequestBounds::default()).unwrap_err();
    for (body, param) in [
        (json!({"messages": [{"role": "user", "content": "x"}]}), "model"),
        (json!({"model": "m"}), "messages"),
        (json!({"model": "m", "messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"model": "m", "messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"model": "m", "messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id"),
    ] {
        let error = read(body);
        assert_eq!(error.kind(), ErrorKind::MissingParameter);
        assert_eq!(error.body()["error"]["param"], param);
    }
}

#[test]
fn text_parts_join_and_an_assistant_may_only_call_tools() {
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "refusal": null, "annotations": [],
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]);
    let Prompt::Chat(prompt) = chat(json!({"messages": messages})).unwrap().prompt else { panic!("a chat prompt") };
    assert_eq!(prompt.messages[0].content.as_deref(), Some("a\nb"));
    assert_eq!(prompt.messages[1].tool_calls[0].name, "f");
    assert_eq!(prompt.ending, PromptEnding::GenerationPrompt);
}

/// As OpenAI's Python SDK sends back what its helpers made of an answer.
#[test]
fn what_was_parsed_of_an_answer_comes_back_and_says_nothing_more() {
    let messages = |parsed: Value, arguments: Value| {
        let function = merged(json!({"name": "f", "arguments": "{}"}), arguments);
        let calls = json!([{"id": "c1", "type": "function", "function": function}]);
        let asked = merged(json!({"role": "assistant", "content": null, "tool_calls": calls}), parsed);
        let messages =
            json!([{"role": "user", "content": "a"}, asked, {"role": "tool", "tool_call_id": "c1", "content": "3"}]);
        let Prompt::Chat(prompt) = chat(json!({"messages": messages})).unwrap().prompt else { panic!("a chat prompt") };
        prompt.messages
    };
    let plain = messages(json!({}), json!({}));
    assert_eq!(messages(json!({"parsed": null}), json!({"parsed_arguments": {"a": 1}})), plain);
    assert_eq!(messages(json!({"parsed": {"n": 19}}), json!({"parsed_arguments": null})), plain);
    // As the Hugging Face client's.
    assert_eq!(messages(json!({"tool_call_id": null}), json!({"description": null})), plain);
}

#[test]
fn tools_are_hidden_when_the_caller_wants_none() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    for (choice, seen) in [("auto", 1), ("none", 0)] {
        let request = chat(json!({"tools": tools, "tool_choice": choice})).unwrap();
        let Prompt::Chat(prompt) = request.prompt else { panic!("a chat prompt") };
        assert_eq!(prompt.tools.len(), seen);
    }
}

#[test]
fn a_completion_takes_strings_and_token_ids_and_lists_of_them() {
    let cases = [
        (json!("a"), vec![CompletionPrompt::Text("a".to_owned())]),
        (json!([1, 2]), vec![CompletionPrompt::Tokens(vec![1, 2])]),
        (json!([[1], [2, 3]]), vec![CompletionPrompt::Tokens(vec![1]), CompletionPrompt::Tokens(vec![2, 3])]),
        (json!(["a", "b"]), vec![CompletionPrompt::Text("a".to_owned()), CompletionPrompt::Text("b".to_owned())]),
    ];
    for (prompt, expected) in cases {
        let Prompt::Completions { prompts, .. } = completion(json!({"prompt": prompt})).unwrap().prompt else {
            panic!("a completion prompt")
        };
        assert_eq!(prompts, expected);
    }
    for odd in [json!([]), json!([1, "a"]), json!([[]]), json!({}), json!([-1]), json!(3)] {
        completion(json!({"prompt": odd})).expect_err(&odd.to_string());
    }
    for (odd, place) in [(json!([1, -1]), "prompt[1]"), (json!([[1], [2, 1_u64 << 32]]), "prompt[1][1]")] {
        let error = completion(json!({"prompt": odd})).unwrap_err();
        assert_eq!(error.body()["error"]["param"], place);
    }
    let Prompt::Completions { prompts, .. } = completion(json!({"prompt": [1.0, u32::MAX]})).unwrap().prompt else {
        panic!("a completion prompt")
    };
    assert_eq!(prompts, [CompletionPrompt::Tokens(vec![1, u32::MAX])]);
}

#[test]
fn nothing_to_generate_needs_a_question_about_the_prompt() {
    let error = completion(json!({"max_tokens": 0})).unwrap_err();
    for field in ["echo", "prompt_logprobs", "prompt_scores", "prompt_scores_against"] {
        assert!(error.message().contains(&format!("`{field}`")), "{}", error.message());
    }
    assert!(completion(json!({"max_tokens": 0, "echo": true})).is_ok());
    assert_eq!(completion(json!({})).unwrap().generate.sampling.max_tokens, Some(16));
}

#[test]
fn the_range_of_a_completions_length_is_the_one_that_is_taken() {
    for (asks, least) in [(json!({}), 1), (json!({"echo": true}), 0), (json!({"prompt_logprobs": 1}), 0)] {
        for beyond in [json!(-1), json!(4_294_967_296_u64), json!(1e300)] {
            let error = completion(merged(asks.clone(), json!({"max_tokens": beyond}))).unwrap_err();
            let expected = format!("Invalid value for `max_tokens`: must be between {least} and 4294967295.");
            assert_eq!(error.message(), expected);
        }
        for within in [json!(least), json!(u32::MAX)] {
            assert!(completion(merged(asks.clone(), json!({"max_tokens": within}))).is_ok());
        }
    }
}

#[test]
fn what_a_comparison_of_prompts_leaves_no_room_for_is_named_as_it_was_sent() {
    for (name, value) in [("best_of", json!(2)), ("n", json!(2)), ("guided_json", json!({})), ("regex", json!("a"))] {
        let error = completion(json!({"max_tokens": 0, "prompt_scores_against": "o", name: value})).unwrap_err();
        assert_eq!(error.body()["error"]["param"], name);
    }
}

#[test]
fn the_callers_sampling_goes_before_the_models_own() {
    let defaults = GenerationDefaults { temperature: Some(0.3), top_k: Some(5), ..GenerationDefaults::default() };
    let request = chat(json!({"temperature": 0, "stop_token_ids": [9], "seed": -1})).unwrap();
    let engine = request.generate.sampling.to_engine(&defaults, &[2, 9], 10);
    assert_eq!((engine.temperature, engine.top_k, engine.seed), (0.0, Some(5), Some(u64::MAX)));
    assert_eq!(engine.stop_token_ids, [9, 2]);
    let ignoring =
        chat(json!({"ignore_eos": true, "top_k": -1})).unwrap().generate.sampling.to_engine(&defaults, &[2], 10);
    assert_eq!((ignoring.stop_token_ids.as_slice(), ignoring.top_k), ([].as_slice(), None));
}

#[test]
fn a_body_nested_too_deeply_is_refused() {
    let deep = "[".repeat(100_000);
    assert_eq!(super::parse_json(deep.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidJson);
}
