//! One chat or completion, streamed and whole: the two are compared in everything but ids and times.

use serde_json::{Value, json};

use super::client::Client;

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// What an answer says, whichever way it came.
#[derive(Debug, Default, PartialEq)]
struct Said {
    /// `None`: null, in every piece.
    content: Option<String>,
    reasoning: String,
    /// Name and arguments; the ids are random.
    calls: Vec<Value>,
    logprobs: Vec<Value>,
    token_ids: Vec<Value>,
    finish: Value,
    usage: Value,
}

/// Asks twice, streamed and not, and returns the whole answer after checking that they agree.
pub(crate) async fn both_ways(client: &Client, route: &str, body: Value) -> Value {
    let reply = client.post(route, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let whole = reply.json();
    let mut streaming = body;
    streaming["stream"] = json!(true);
    streaming["stream_options"] = json!({"include_usage": true});
    let events = client.stream(route, &streaming).await.events().await;
    assert_eq!(Said::of_events(&events), Said::of_whole(&whole), "{streaming}");
    whole
}

impl Said {
    fn of_whole(whole: &Value) -> Self {
        let choice = &whole["choices"][0];
        let mut said = Self { usage: counts(&whole["usage"]), ..Self::default() };
        said.take(choice, &choice["message"]);
        said
    }

    fn of_events(events: &[Value]) -> Self {
        let usage = events.last().map(|event| counts(&event["usage"])).unwrap_or_default();
        let mut said = Self { usage, ..Self::default() };
        for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
            said.take(choice, &choice["delta"]);
        }
        said
    }

    /// `part`: a message, or a piece of one.
    fn take(&mut self, choice: &Value, part: &Value) {
        assert_eq!(part.get("reasoning_content"), part.get("reasoning"), "clients look for either");
        if let Some(text) = part["content"].as_str().or(choice["text"].as_str()) {
            self.content.get_or_insert_default().push_str(text);
        }
        self.reasoning.push_str(part["reasoning"].as_str().unwrap_or_default());
        for (place, call) in part["tool_calls"].as_array().into_iter().flatten().enumerate() {
            self.take_call(call["index"].as_u64().map_or(place, |index| index as usize), &call["function"]);
        }
        self.logprobs.extend(logprobs(&choice["logprobs"]));
        self.token_ids.extend(choice["token_ids"].as_array().into_iter().flatten().cloned());
        if !choice["finish_reason"].is_null() {
            self.finish = choice["finish_reason"].clone();
        }
    }

    fn take_call(&mut self, index: usize, function: &Value) {
        match self.calls.get_mut(index) {
            None => self.calls.push(function.clone()),
            Some(known) => {
                let more = function["arguments"].as_str().unwrap_or_default();
                known["arguments"] = json!(known["arguments"].as_str().unwrap_or_default().to_owned() + more);
            }
        }
    }
}

/// An entry a token: a chat has a list of them, a completion four arrays.
fn logprobs(logprobs: &Value) -> Vec<Value> {
    if let Some(content) = logprobs["content"].as_array() {
        return content.clone();
    }
    let arrays = ["tokens", "token_logprobs", "top_logprobs", "text_offset"].map(|name| logprobs[name].as_array());
    let count = arrays[0].map_or(0, Vec::len);
    (0..count).map(|token| arrays.iter().map(|array| array.unwrap()[token].clone()).collect()).collect()
}

fn counts(usage: &Value) -> Value {
    let reasoning = &usage["completion_tokens_details"]["reasoning_tokens"];
    json!([usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"], reasoning])
}
