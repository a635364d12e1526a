//! A checked request as it is passed on to an upstream.

use serde_json::{Map, Value, json};

use super::answer::AnswerKind;
use super::request::CompletionPrompt;
use super::structure::in_common_form;
use crate::gateway::{Call, CallRoute};

/// What this server acts on itself, or sets for every upstream. `model` is each upstream's own.
const OWN_FIELDS: [&str; 10] = [
    "model",
    "stream",
    "stream_options",
    "cache_salt",
    "user",
    "safety_identifier",
    "metadata",
    "priority",
    "service_tier",
    "return_token_ids",
];
const PROMPT: &str = "prompt";

/// The body of a request as its client wrote it and this server checked it, less what is this server's own, and less the
/// prompts of completions: each call is given its own.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    kind: AnswerKind,
    fields: Map<String, Value>,
}

impl Outgoing {
    /// `ignored`: the fields that were accepted without being read, which nobody is to read.
    pub(crate) fn new(kind: AnswerKind, body: Value, ignored: &[String]) -> Self {
        let mut fields = if let Value::Object(fields) = body { fields } else { Map::new() };
        let is_given = |name: &str| kind == AnswerKind::Completion && name == PROMPT;
        fields.retain(|name, value| {
            let is_ours = OWN_FIELDS.contains(&name.as_str()) || is_given(name);
            !value.is_null() && !is_ours && !ignored.contains(name)
        });
        if let Some(format) = fields.get_mut("response_format") {
            *format = in_common_form(format.take());
        }
        Self { kind, fields }
    }

    /// One prompt of the request. Every answer comes as a stream, so that it is counted while it is made, whatever its
    /// client wants of it. `max_tokens` is what was reserved.
    pub(crate) fn call(&self, prompt: Option<&CompletionPrompt>, max_tokens: u32) -> Call {
        let mut fields = self.fields.clone();
        let newer = "max_completion_tokens";
        let bound = if fields.contains_key(newer) { newer } else { "max_tokens" };
        fields.insert(bound.to_owned(), json!(max_tokens));
        fields.insert("stream".to_owned(), json!(true));
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
        if let Some(prompt) = prompt {
            let prompt = match prompt {
                CompletionPrompt::Text(text) => json!(text),
                CompletionPrompt::Tokens(tokens) => json!(tokens),
            };
            fields.insert(PROMPT.to_owned(), prompt);
        }
        let route = match self.kind {
            AnswerKind::Chat => CallRoute::Chat,
            AnswerKind::Completion => CallRoute::Completions,
        };
        Call { route, body: Value::Object(fields).to_string().into(), on_behalf: None }
    }

    /// What the prompt of a conversation is made of, as text: its size and its beginning are those of the prompt, nearly.
    pub(crate) fn conversation(&self) -> String {
        let part = |name: &str| self.fields.get(name).map(Value::to_string).unwrap_or_default();
        part("tools") + &part("messages")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(call: &Call) -> Value {
        serde_json::from_str(&call.body).unwrap()
    }

    #[test]
    fn what_a_client_wrote_goes_on_and_what_is_ours_does_not() {
        let body = json!({
            "messages": [{"role": "user", "content": "hi"}], "model": "chat", "temperature": 0.5, "top_p": null,
            "user": "u", "safety_identifier": "s", "metadata": {"ticket": "4711"}, "colour": "red",
            "max_completion_tokens": 500,
        });
        let outgoing = Outgoing::new(AnswerKind::Chat, body, &["colour".to_owned()]);
        let call = outgoing.call(None, 100);
        assert_eq!(call.route, CallRoute::Chat);
        let expected = json!({
            "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "max_completion_tokens": 100,
            "stream": true, "stream_options": {"include_usage": true},
        });
        assert_eq!(sent(&call), expected);
    }

    #[test]
    fn a_bare_schema_goes_on_under_the_name_that_every_server_reads() {
        let schema = json!({"type": "object"});
        for bare in [json!({"schema": schema}), json!({"value": schema}), json!({"value": schema.to_string()})] {
            let mut body = json!({"prompt": "a", "response_format": bare});
            body["response_format"]["type"] = json!("json_object");
            let sent = sent(&Outgoing::new(AnswerKind::Completion, body, &[]).call(None, 9));
            let named = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
            assert_eq!(sent["response_format"], named);
        }
        let plain = json!({"prompt": "a", "response_format": {"type": "json_object"}});
        let sent = sent(&Outgoing::new(AnswerKind::Completion, plain.clone(), &[]).call(None, 9));
        assert_eq!(sent["response_format"], plain["response_format"]);
    }

    #[test]
    fn each_prompt_of_a_list_is_a_call_of_its_own() {
        let outgoing = Outgoing::new(AnswerKind::Completion, json!({"prompt": ["a", [1, 2]], "model": "m"}), &[]);
        let prompts = [CompletionPrompt::Text("a".into()), CompletionPrompt::Tokens(vec![1, 2])];
        let sent = prompts.map(|prompt| sent(&outgoing.call(Some(&prompt), 9)));
        assert_eq!([&sent[0]["prompt"], &sent[1]["prompt"]], [&json!("a"), &json!([1, 2])]);
        assert_eq!(sent[0]["max_tokens"], 9);
        assert!(!outgoing.fields.contains_key(PROMPT), "the whole list is copied for none of them");
    }
}
