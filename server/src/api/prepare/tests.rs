use serde_json::json;

use super::*;
use crate::api::fields::{Reader, UnknownFields};
use crate::api::wire::chat::read_chat;
use crate::api::wire::completions::read_completions;
use crate::api::wire::request::{ReadRequest, RequestBounds};
use crate::api::wire::responses::read_response;

const LLAMA: &str = include_str!("../../../tests/goldens/templates/llama3.jinja");
/// Of a family whose calls are lists of words.
const BY_WORD: &str = "{% for message in messages %}{% if 'tool_calls' in message %}{% for call in message.tool_calls %}\
                       {% for key, value in call.function.arguments | items %}{{ key }}{% endfor %}\
                       {% endfor %}{% endif %}{% endfor %}";
const BROKEN: &str = "{{ no_function() }}";

/// What the template makes of it, as a kind of error and the field that is named.
fn told(template: &str, read: ReadRequest) -> (ErrorKind, Option<String>) {
    let read_file = |name: &str| Ok((name == "chat_template.jinja").then(|| template.as_bytes().to_vec()));
    let text = TextModel::load(read_file).unwrap();
    let error = encode_all("m", &text, read.prompt, Duration::ZERO).unwrap_err();
    (error.kind(), error.body()["error"]["param"].as_str().map(str::to_owned))
}

fn chat(extra: &[(&str, Value)]) -> ReadRequest {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    extra.iter().for_each(|(name, value)| body[*name] = value.clone());
    read_chat(body, Reader::new(UnknownFields::Error), &RequestBounds::default()).unwrap()
}

fn messages_with(arguments: &str) -> Value {
    let call = |arguments: &str| json!({"id": "c", "function": {"name": "f", "arguments": arguments}});
    let turn = |calls: Value| json!({"role": "assistant", "tool_calls": calls});
    json!([{"role": "user", "content": "hi"}, turn(json!([call("{}")])), turn(json!([call("{}"), call(arguments)]))])
}

#[test]
fn what_a_template_breaks_on_is_named_where_a_request_brought_it() {
    let refused = |param: &str| (ErrorKind::InvalidValue, Some(param.to_owned()));
    let odd = chat(&[("chat_template_kwargs", json!({"builtin_tools": 5}))]);
    assert_eq!(told(LLAMA, odd), refused("chat_template_kwargs"));
    let odd = chat(&[("messages", messages_with("no"))]);
    assert_eq!(told(BY_WORD, odd), refused("messages[2].tool_calls[1].function.arguments"));
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "no"});
    let body = json!({"model": "m", "input": [call]});
    let read = read_response(body, Reader::new(UnknownFields::Error), &RequestBounds::default()).unwrap();
    assert_eq!(told(BY_WORD, read.request), refused("input"));
}

#[test]
fn a_template_that_breaks_on_anything_is_the_models_own_fault() {
    let kwargs = ("chat_template_kwargs", json!({"enable_thinking": false}));
    for read in [chat(&[]), chat(&[("messages", messages_with("[1]"))]), chat(&[kwargs])] {
        assert_eq!(told(BROKEN, read), (ErrorKind::Internal, None));
    }
}

/// A model whose tokenizer is not there encodes no text, and takes token ids.
#[test]
fn a_text_that_cannot_be_encoded_is_named_as_its_caller_calls_it() {
    let refused = |param: &str| (ErrorKind::InvalidValue, Some(param.to_owned()));
    assert_eq!(told(LLAMA, chat(&[])), refused("messages"));
    let response = json!({"model": "m", "input": "hi"});
    let response = read_response(response, Reader::new(UnknownFields::Error), &RequestBounds::default()).unwrap();
    assert_eq!(told(LLAMA, response.request), refused("input"));
    let two = json!({"model": "m", "prompt": [[1], "hi"]});
    let two = read_completions(two, Reader::new(UnknownFields::Error), &RequestBounds::default()).unwrap();
    assert_eq!(told(LLAMA, two), refused("prompt[1]"));
    let error = spell_bad_words(&Tokenizer::absent(), &["cat".to_owned()]).unwrap_err();
    assert_eq!((error.kind(), &error.body()["error"]["param"]), (ErrorKind::InvalidValue, &json!("bad_words")));
}

#[test]
fn a_message_that_the_template_leaves_out_cannot_be_continued_and_the_field_that_asks_for_it_is_named() {
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]);
    let continued = chat(&[("messages", messages), ("continue_final_message", json!(true))]);
    let refused = (ErrorKind::InvalidValue, Some("continue_final_message".to_owned()));
    assert_eq!(told("silent", continued), refused);
}

#[test]
fn what_an_engine_has_no_room_for_names_what_takes_more_of_it_and_no_length_that_nobody_stated() {
    let named = |tokens: Option<u32>, prompt_tokens: usize| {
        let asked = AskedLength { tokens, field: LengthField::Chat, prompt: "messages" };
        let refusal = ApiError::new(ErrorKind::ContextLengthExceeded, "It is too long.");
        engine_overflow(refusal, prompt_tokens, asked).body()["error"]["param"].as_str().map(str::to_owned)
    };
    assert_eq!(named(Some(500), 30).as_deref(), Some("max_completion_tokens"));
    for (tokens, prompt_tokens) in [(Some(5), 500), (Some(0), 500), (Some(1), 0), (None, 500), (None, 3)] {
        assert_eq!(named(tokens, prompt_tokens).as_deref(), Some("messages"), "{tokens:?} {prompt_tokens}");
    }
}

#[test]
fn a_bad_word_is_one_at_the_start_of_a_text_and_after_a_space() {
    for word in ["cat", " cat", "\n cat"] {
        assert_eq!(written_bad_word(word), ["cat", " cat"], "{word:?}");
    }
    assert_eq!(written_bad_word("\n"), ["\n"], "and a space is still a good one");
}
