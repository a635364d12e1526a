use serde_json::{Value, json};

use super::*;
use crate::api::errors::ErrorKind;
use crate::api::fields::{Support, UnknownFields};
use crate::api::wire::carried_reasoning::carried;
use crate::api::wire::messages::Role;
use crate::api::wire::request::{ChatPrompt, Prompt};

fn read(extra: Value) -> Result<ReadResponse, ApiError> {
    let mut body = json!({"model": "m", "input": "hi"});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    read_response(body, Reader::new(UnknownFields::Error), &RequestBounds::default())
}

fn prompt(extra: Value) -> ChatPrompt {
    match read(extra).unwrap().request.prompt {
        Prompt::Chat(chat) => chat,
        other => panic!("{other:?}"),
    }
}

fn refused(extra: Value, kind: ErrorKind, param: &str) {
    let error = read(extra.clone()).expect_err(&extra.to_string());
    assert_eq!((error.kind(), error.body()["error"]["param"].as_str()), (kind, Some(param)), "{extra}");
}

#[test]
fn every_field_is_read_and_null_means_absent() {
    for field in SAMPLING_FIELDS.iter().chain(PASSED_FIELDS).chain(RESPONSE_FIELDS) {
        let required = ["model", "input"].contains(&field.name);
        assert_eq!(read(json!({field.name: null})).is_err(), required, "{} at null", field.name);
        let odd = read(json!({field.name: [[true]]})).expect_err(field.name);
        let known = [ErrorKind::InvalidType, ErrorKind::InvalidValue, ErrorKind::UnsupportedParameter];
        assert!(known.contains(&odd.kind()), "{}: {odd:?}", field.name);
        if let Support::Neutral(values) = field.support {
            for value in serde_json::from_str::<Vec<Value>>(values).unwrap() {
                read(json!({field.name: value})).unwrap();
            }
        }
    }
}

#[test]
fn numbers_come_back_as_they_were_meant() {
    let sent = json!({"max_output_tokens": 31.0, "top_logprobs": 2.0, "temperature": 1, "top_p": 0.5});
    let repeated = read(sent).unwrap().repeated;
    for (name, written) in [("max_output_tokens", "31"), ("top_logprobs", "2"), ("temperature", "1"), ("top_p", "0.5")]
    {
        assert_eq!(repeated[name].to_string(), written, "{name}");
    }
    assert_eq!(read(json!({})).unwrap().repeated["max_output_tokens"], Value::Null);
}

#[test]
fn for_whom_and_under_which_key_it_was_asked_for_comes_back() {
    let said = json!({"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"});
    let read_whole = read(said.clone()).unwrap();
    for (name, value) in said.as_object().unwrap() {
        assert_eq!(&read_whole.repeated[name], value);
        assert_eq!(read(json!({})).unwrap().repeated[name], Value::Null);
    }
    let generate = read_whole.request.generate;
    assert_eq!((generate.attribution.user.as_deref(), generate.caching.key.as_deref()), (Some("s"), Some("k")));
}

#[test]
fn what_an_assistant_said_in_declining_comes_back_as_its_text() {
    let parts = json!([{"type": "refusal", "refusal": "no."}]);
    let chat = prompt(json!({"input": [{"role": "assistant", "content": parts}, {"role": "user", "content": "hi"}]}));
    assert_eq!(chat.messages[0].content.as_deref(), Some("no."));
}

#[test]
fn an_answer_that_was_cut_while_reasoning_comes_back_as_a_turn_without_words() {
    let content = json!([{"type": "reasoning_text", "text": "hm"}]);
    let reasoning =
        json!({"type": "reasoning", "id": "rs_1", "summary": [], "content": content, "status": "incomplete"});
    let chat = prompt(json!({"input": [reasoning.clone(), {"role": "user", "content": "go on"}]}));
    let turn = &chat.messages[0];
    assert_eq!((turn.content.as_deref(), turn.reasoning_content.as_deref()), (Some(""), Some("hm")));
    let answered = prompt(json!({"input": [reasoning, {"role": "assistant", "content": "so"}]}));
    assert_eq!((answered.messages.len(), answered.messages[0].content.as_deref()), (1, Some("so")));
}

#[test]
fn reasoning_comes_back_by_what_clients_keep_of_it() {
    let with = |carried: Value, content: Value| {
        let item = json!({"type": "reasoning", "summary": [], "encrypted_content": carried, "content": content});
        json!({"input": [item, {"role": "assistant", "content": "so"}, {"role": "user", "content": "go on"}]})
    };
    for content in [Value::Null, json!([])] {
        let chat = prompt(with(carried("hm").into(), content));
        assert_eq!(chat.messages[0].reasoning_content.as_deref(), Some("hm"));
    }
    assert_eq!(prompt(with(json!(""), Value::Null)).messages[0].reasoning_content, None);
    refused(with(json!("gAAAAABn"), Value::Null), ErrorKind::InvalidValue, "input[0].encrypted_content");
}

/// As OpenAI's Python SDK sends back what its helpers made of an answer, and as it dumps it.
#[test]
fn what_was_parsed_of_a_response_comes_back_and_says_nothing_more() {
    let part = json!({"type": "output_text", "text": "{}", "annotations": [], "logprobs": [], "parsed": {}});
    let call = json!({"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}",
        "parsed_arguments": {}, "status": "completed", "caller": null, "namespace": null});
    let output = json!({"type": "function_call_output", "call_id": "c1", "output": "3"});
    let input = json!([{"role": "assistant", "content": [part], "phase": null}, call, output]);
    let chat = prompt(json!({"input": input}));
    assert_eq!(chat.messages[0].content.as_deref(), Some("{}"));
    assert_eq!(chat.messages[0].tool_calls[0].name, "f");
}

#[test]
fn only_what_is_included_is_shown() {
    let included = |extra: Value| {
        let Included { logprobs, carried_reasoning } = read(extra).unwrap().included;
        [logprobs, carried_reasoning]
    };
    let (shown, hidden) = (Inclusion::Shown, Inclusion::Hidden);
    assert_eq!(included(json!({"include": []})), [hidden, hidden]);
    assert_eq!(included(json!({"top_logprobs": 1})), [shown, hidden]);
    assert_eq!(included(json!({"include": ["reasoning.encrypted_content"]})), [hidden, shown]);
    let both = json!(["reasoning.encrypted_content", "message.output_text.logprobs"]);
    assert_eq!(included(json!({"include": both})), [shown, shown]);
}

#[test]
fn what_would_need_a_memory_is_refused_by_name() {
    for (name, value) in [
        ("store", json!(true)),
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!("conv_1")),
        ("background", json!(true)),
    ] {
        refused(json!({name: value}), ErrorKind::UnsupportedParameter, name);
    }
    for reference in
        [json!({"previous_response_id": "resp_1"}), json!({"input": [{"type": "item_reference", "id": "x"}]})]
    {
        let error = read(reference).unwrap_err();
        assert!(error.message().contains("`store` at false"), "says what to do: {}", error.message());
    }
    assert!(read(json!({"store": false})).is_ok());
}

#[test]
fn refusals_of_the_chats_reader_come_under_this_routes_names() {
    refused(json!({"max_output_tokens": 0}), ErrorKind::InvalidValue, "max_output_tokens");
    refused(json!({"max_output_tokens": -1}), ErrorKind::InvalidValue, "max_output_tokens");
    let numbered = json!({"tool_choice": {"type": "function", "name": 5}});
    refused(numbered, ErrorKind::InvalidType, "tool_choice.name");
    refused(json!({"max_tokens": 1}), ErrorKind::UnknownParameter, "max_tokens");
    for name in ["messages", "inputs", "content"] {
        let refused = read(json!({name: []})).unwrap_err();
        assert_eq!(refused.message(), format!("Unknown parameter: `{name}`. Did you mean `input`?"));
    }
    refused(json!({"tools": [{"type": "function", "name": "a b"}]}), ErrorKind::InvalidValue, "tools[0].name");
    refused(json!({"tools": [{"type": "web_search"}]}), ErrorKind::UnsupportedParameter, "tools[0].type");
    refused(json!({"top_logprobs": 21}), ErrorKind::InvalidValue, "top_logprobs");
    refused(json!({"include": ["file_search_call.results"]}), ErrorKind::UnsupportedParameter, "include[0]");
    refused(json!({"client_metadata": "codex"}), ErrorKind::InvalidType, "client_metadata");
    refused(json!({"text": {"format": {"type": "xml"}}}), ErrorKind::InvalidValue, "text.format.type");
    let unnamed = json!({"text": {"format": {"type": "json_schema", "schema": {}}}});
    refused(unnamed, ErrorKind::MissingParameter, "text.format.name");
}

#[test]
fn a_conversation_of_items_becomes_turns() {
    let output = json!({"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": "one moment", "annotations": [], "logprobs": []}]});
    let call = |id: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": "{}", "status": "completed"});
    let items = json!([
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        output, call("c1"), call("c2"),
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "thanks"},
    ]);
    let chat = prompt(json!({"input": items, "instructions": "be brief"}));
    let roles: Vec<Role> = chat.messages.iter().map(|message| message.role).collect();
    let (user, assistant, tool) = (Role::User, Role::Assistant, Role::Tool);
    assert_eq!(roles, [Role::System, user, assistant, tool, tool, assistant, user]);
    assert_eq!(chat.messages[1].content.as_deref(), Some("a\nb"));
    assert_eq!(chat.messages[2].content.as_deref(), Some("one moment"));
    assert_eq!(chat.messages[2].tool_calls.len(), 2);
    assert_eq!(chat.messages[4].content.as_deref(), Some("2"));
    assert_eq!(chat.messages[5].reasoning_content.as_deref(), Some("hm"));
    assert_eq!(chat.messages[5].content.as_deref(), Some("done"));
}

#[test]
fn instructions_are_one_of_the_messages_that_a_conversation_may_have() {
    let most = RequestBounds::default().max_messages;
    let input = |count: usize| Value::from(vec![json!({"role": "user", "content": "x"}); count]);
    assert_eq!(prompt(json!({"input": input(most - 1), "instructions": "be brief"})).messages.len(), most);
    refused(json!({"input": input(most), "instructions": "be brief"}), ErrorKind::InvalidValue, "input");
    assert_eq!(prompt(json!({"input": input(most)})).messages.len(), most);
}

#[test]
fn items_that_cannot_be_served_are_refused_by_their_place() {
    let cases = [
        (json!([{"type": "item_reference", "id": "x"}]), ErrorKind::UnsupportedParameter, "input[0].type"),
        (json!([{"role": "user"}]), ErrorKind::MissingParameter, "input[0].content"),
        (json!([{"role": "king", "content": "x"}]), ErrorKind::InvalidValue, "input[0].role"),
        (
            json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
            ErrorKind::UnsupportedParameter,
            "input[0].content[0].type",
        ),
        (json!([{"type": "function_call", "call_id": "c"}]), ErrorKind::MissingParameter, "input[0].name"),
        (json!([]), ErrorKind::InvalidValue, "input"),
        (json!(7), ErrorKind::InvalidType, "input"),
        (json!(["hi"]), ErrorKind::InvalidType, "input[0]"),
    ];
    for (input, kind, param) in cases {
        refused(json!({"input": input}), kind, param);
    }
}

/// A program that sends an item back as its SDK writes it whole sends every field that the SDK knows.
#[test]
fn what_the_sdks_know_and_say_nothing_of_is_absent() {
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": null,
        "status": null, "async": null, "caller": null, "namespace": null});
    let output = json!({"type": "function_call_output", "call_id": "c", "id": null, "status": null, "name": null,
        "caller": null, "namespace": null,
        "output": [{"type": "input_text", "text": "1", "prompt_cache_breakpoint": null}]});
    let tool = json!({"type": "function", "name": "f", "description": null, "parameters": null, "strict": null,
        "async": null, "allowed_callers": null, "defer_loading": null, "output_schema": null});
    let reasoning = json!({"effort": null, "summary": null, "generate_summary": null, "context": null, "mode": null});
    let chat = prompt(json!({"input": [call.clone(), output], "tools": [tool.clone()], "reasoning": reasoning}));
    assert_eq!((chat.messages.len(), chat.tools.len()), (2, 1));
    for (name, value) in [("async", json!(true)), ("caller", json!({"type": "direct"}))] {
        let mut call = call.clone();
        call[name] = value;
        refused(json!({"input": [call]}), ErrorKind::UnsupportedParameter, &format!("input[0].{name}"));
    }
    let mut slow = tool;
    slow["defer_loading"] = json!(true);
    refused(json!({"tools": [slow]}), ErrorKind::UnsupportedParameter, "tools[0].defer_loading");
}

#[test]
fn what_an_item_says_of_itself_is_of_its_type() {
    let part = |name: &str, value: Value| {
        let part = json!({"type": "output_text", "text": "x", name: value});
        json!([{"role": "assistant", "content": [part]}])
    };
    let output = |name: &str| json!([{"type": "function_call_output", "call_id": "c", "output": "", name: 7}]);
    for (input, param) in [
        (json!([{"type": 7, "role": "user", "content": "x"}]), "input[0].type"),
        (json!([{"role": "user", "content": "x", "id": 7}]), "input[0].id"),
        (json!([{"role": "user", "content": "x", "phase": 7}]), "input[0].phase"),
        (json!([{"type": "reasoning", "summary": [], "status": 7}]), "input[0].status"),
        (output("status"), "input[0].status"),
        (part("annotations", json!(7)), "input[0].content[0].annotations"),
        (part("logprobs", json!(7)), "input[0].content[0].logprobs"),
    ] {
        refused(json!({"input": input}), ErrorKind::InvalidType, param);
    }
    let unread = part("refusal", json!("no"));
    refused(json!({"input": unread}), ErrorKind::UnsupportedParameter, "input[0].content[0].refusal");
    refused(json!({"tools": [{"type": 7, "name": "f"}]}), ErrorKind::InvalidType, "tools[0].type");
}

#[test]
fn tools_are_offered_as_in_a_chat() {
    let tool = json!({"type": "function", "name": "add", "description": "adds", "parameters": {"type": "object"}});
    let chat = prompt(json!({"tools": [tool]}));
    assert_eq!((chat.tools[0].name.as_str(), chat.tools[0].description.as_deref()), ("add", Some("adds")));
    assert!(prompt(json!({"tools": [tool], "tool_choice": "none"})).tools.is_empty());
}
