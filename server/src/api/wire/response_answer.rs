//! The answer of `/v1/responses`: typed events, and the response that they add up to. The whole answer is what the events
//! would have built, so the two cannot differ.

use passerelle_engine::Usage;
use serde_json::{Map, Value, json};

use super::answer::{AnswerHead, AnswerWriter, Part};
use super::carried_reasoning::carried;
use super::chat_answer::logprob_entries;
use super::usage::ReasoningTokens;
use crate::api::delta::{AnswerEnd, ChoiceDelta, Delta, TextPart, ToolCallPart};
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::ids::random_id;
use crate::api::sse::StreamEnd;

#[derive(Debug)]
pub(crate) struct ResponseAnswer {
    head: AnswerHead,
    repeated: Map<String, Value>,
    included: Included,
    reasoning: ReasoningTokens,
    next_sequence: u64,
    /// Items that are over.
    output: Vec<Value>,
    open: Option<OpenItem>,
    /// Log-probabilities of tokens whose text is not known yet to belong to a message.
    held: Vec<Value>,
    end: Option<AnswerEnd>,
}

/// What an answer holds beside its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Included {
    pub(crate) logprobs: Inclusion,
    pub(crate) carried_reasoning: Inclusion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inclusion {
    Shown,
    Hidden,
}

impl Inclusion {
    pub(crate) fn when(is_asked_for: bool) -> Self {
        if is_asked_for { Self::Shown } else { Self::Hidden }
    }
}

#[derive(Debug)]
enum OpenItem {
    Message { id: String, text: String, logprobs: Vec<Value> },
    Reasoning { id: String, text: String },
    Call { id: String, call_id: String, name: String, arguments: String },
}

impl ResponseAnswer {
    pub(crate) fn new(head: AnswerHead, repeated: Map<String, Value>, included: Included) -> Self {
        let reasoning = ReasoningTokens::default();
        let (output, held) = (Vec::new(), Vec::new());
        Self { head, repeated, included, reasoning, next_sequence: 0, output, open: None, held, end: None }
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Part {
        data["type"] = name.into();
        data["sequence_number"] = self.next_sequence.into();
        self.next_sequence += 1;
        Part { event: Some(name), data: data.to_string() }
    }

    fn push(&mut self, delta: &Delta) -> Vec<Part> {
        match delta {
            Delta::Prompt(_) => Vec::new(),
            Delta::Text(part) => self.push_text(part),
            Delta::Reasoning(text) => self.push_reasoning(text),
            Delta::ToolCall(part) => self.push_call(part),
            Delta::Finished(end) => self.finish(*end),
        }
    }

    fn push_text(&mut self, part: &TextPart) -> Vec<Part> {
        let entries = match self.included.logprobs {
            Inclusion::Shown => logprob_entries(&part.logprobs),
            Inclusion::Hidden => Vec::new(),
        };
        self.held.extend(entries);
        let is_open = matches!(self.open, Some(OpenItem::Message { .. }));
        if part.text.is_empty() && (self.held.is_empty() || !is_open) {
            return Vec::new();
        }
        let mut parts = self.open_message();
        let entries = std::mem::take(&mut self.held);
        let place = self.place();
        if let Some(OpenItem::Message { text, logprobs, .. }) = &mut self.open {
            text.push_str(&part.text);
            logprobs.extend(entries.iter().cloned());
        }
        let mut data = json!({"delta": part.text, "content_index": 0, "logprobs": entries});
        merge(&mut data, place);
        parts.push(self.event("response.output_text.delta", data));
        parts
    }

    fn push_reasoning(&mut self, text: &str) -> Vec<Part> {
        // The tokens before were those of the reasoning.
        self.held.clear();
        let mut parts = Vec::new();
        if !matches!(self.open, Some(OpenItem::Reasoning { .. })) {
            parts = self.close(ItemStatus::Completed);
            let id = random_id("rs_").unwrap_or_else(|| format!("rs_{}", self.output.len()));
            self.open = Some(OpenItem::Reasoning { id, text: String::new() });
            parts.push(self.item_added());
        }
        if let Some(OpenItem::Reasoning { text: written, .. }) = &mut self.open {
            written.push_str(text);
        }
        let mut data = json!({"delta": text, "content_index": 0});
        merge(&mut data, self.place());
        parts.push(self.event("response.reasoning_text.delta", data));
        parts
    }

    /// The message that text goes to: the one that is open, or a new one.
    fn open_message(&mut self) -> Vec<Part> {
        if matches!(self.open, Some(OpenItem::Message { .. })) {
            return Vec::new();
        }
        let mut parts = self.close(ItemStatus::Completed);
        let id = random_id("msg_").unwrap_or_else(|| format!("msg_{}", self.output.len()));
        self.open = Some(OpenItem::Message { id, text: String::new(), logprobs: Vec::new() });
        parts.push(self.item_added());
        let mut data = json!({"content_index": 0, "part": text_part("", &[])});
        merge(&mut data, self.place());
        parts.push(self.event("response.content_part.added", data));
        parts
    }

    fn push_call(&mut self, part: &ToolCallPart) -> Vec<Part> {
        let mut parts = Vec::new();
        // The tokens before were those of the call.
        self.held.clear();
        if let Some(head) = &part.head {
            parts = self.close(ItemStatus::Completed);
            let id = random_id("fc_").unwrap_or_else(|| format!("fc_{}", self.output.len()));
            let (call_id, name) = (head.id.clone(), head.name.clone());
            self.open = Some(OpenItem::Call { id, call_id, name, arguments: String::new() });
            parts.push(self.item_added());
        }
        if part.arguments.is_empty() {
            return parts;
        }
        if let Some(OpenItem::Call { arguments, .. }) = &mut self.open {
            arguments.push_str(&part.arguments);
        }
        let mut data = json!({"delta": part.arguments});
        merge(&mut data, self.place());
        parts.push(self.event("response.function_call_arguments.delta", data));
        parts
    }

    fn finish(&mut self, end: AnswerEnd) -> Vec<Part> {
        self.end = Some(end);
        // An answer without a word is still an answer.
        let mut parts = if self.output.is_empty() && self.open.is_none() { self.open_message() } else { Vec::new() };
        parts.extend(self.close(ItemStatus::at(end)));
        parts
    }

    fn item_added(&mut self) -> Part {
        let item = self.open.as_ref().map(|open| open.to_json(ItemStatus::InProgress));
        self.event("response.output_item.added", json!({"output_index": self.output.len(), "item": item}))
    }

    /// Where the open item stands.
    fn place(&self) -> Value {
        json!({"item_id": self.open.as_ref().map(OpenItem::id), "output_index": self.output.len()})
    }

    fn close(&mut self, status: ItemStatus) -> Vec<Part> {
        let place = self.place();
        let Some(open) = self.open.take() else { return Vec::new() };
        let mut parts = Vec::new();
        match &open {
            OpenItem::Message { text, logprobs, .. } => {
                let mut data = json!({"content_index": 0, "text": text, "logprobs": logprobs});
                merge(&mut data, place.clone());
                parts.push(self.event("response.output_text.done", data));
                let mut data = json!({"content_index": 0, "part": text_part(text, logprobs)});
                merge(&mut data, place);
                parts.push(self.event("response.content_part.done", data));
            }
            OpenItem::Reasoning { text, .. } => {
                let mut data = json!({"content_index": 0, "text": text});
                merge(&mut data, place);
                parts.push(self.event("response.reasoning_text.done", data));
            }
            OpenItem::Call { name, arguments, .. } => {
                let mut data = json!({"name": name, "arguments": arguments});
                merge(&mut data, place);
                parts.push(self.event("response.function_call_arguments.done", data));
            }
        }
        let mut item = open.to_json(status);
        if let (OpenItem::Reasoning { text, .. }, Inclusion::Shown) = (&open, self.included.carried_reasoning) {
            item["encrypted_content"] = carried(text).into();
        }
        let data = json!({"output_index": self.output.len(), "item": item});
        parts.push(self.event("response.output_item.done", data));
        self.output.push(item);
        parts
    }

    fn response(&self, status: &str, usage: Option<Usage>) -> Value {
        let cut = self.end.is_some_and(AnswerEnd::is_cut).then(|| json!({"reason": "max_output_tokens"}));
        let mut response = json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": cut,
            "model": self.head.model,
            "output": self.output,
            "previous_response_id": null,
            "service_tier": self.head.tier.unwrap_or("default"),
            "store": false,
            "truncation": "disabled",
            "usage": usage.map(|usage| usage_json(usage, &self.reasoning)),
        });
        merge(&mut response, Value::Object(self.repeated.clone()));
        response
    }

    fn last_status(&self) -> &'static str {
        if self.end.is_some_and(AnswerEnd::is_cut) { "incomplete" } else { "completed" }
    }
}

impl AnswerWriter for ResponseAnswer {
    fn opening(&mut self, _: Usage) -> Vec<Part> {
        let response = self.response("in_progress", None);
        let names = ["response.created", "response.in_progress"];
        names.map(|name| self.event(name, json!({"response": response}))).into()
    }

    fn part(&mut self, piece: ChoiceDelta, _: Usage) -> Vec<Part> {
        self.reasoning.count(&piece);
        self.push(&piece.delta)
    }

    fn closing(&mut self, usage: Usage) -> Vec<Part> {
        let status = self.last_status();
        let response = self.response(status, Some(usage));
        let name = if status == "incomplete" { "response.incomplete" } else { "response.completed" };
        vec![self.event(name, json!({"response": response}))]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Part> {
        // Clients hear of a response first that it was created, also of one that was never admitted.
        let mut parts = if self.next_sequence == 0 { self.opening(Usage::default()) } else { Vec::new() };
        let mut response = self.response("failed", None);
        response["error"] = json!({"code": failure_code(error.kind()), "message": error.message()});
        parts.push(self.event("response.failed", json!({"response": response})));
        parts
    }

    fn join(&mut self, piece: ChoiceDelta) {
        self.reasoning.count(&piece);
        // The events are for readers of a stream; what they say is kept.
        drop(self.push(&piece.delta));
    }

    fn whole(&mut self, usage: Usage) -> Value {
        self.response(self.last_status(), Some(usage))
    }

    fn stream_end(&self) -> StreamEnd {
        StreamEnd::Silent
    }
}

/// Of the few that clients know.
fn failure_code(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::RateLimited | ErrorKind::QuotaExhausted => "rate_limit_exceeded",
        _ => "server_error",
    }
}

#[derive(Debug, Clone, Copy)]
enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

impl ItemStatus {
    fn at(end: AnswerEnd) -> Self {
        if end.is_cut() { Self::Incomplete } else { Self::Completed }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

impl OpenItem {
    fn id(&self) -> &str {
        match self {
            Self::Message { id, .. } | Self::Reasoning { id, .. } | Self::Call { id, .. } => id,
        }
    }

    fn to_json(&self, status: ItemStatus) -> Value {
        match self {
            Self::Message { id, text, logprobs } => {
                let content = match status {
                    ItemStatus::InProgress => Vec::new(),
                    _ => vec![text_part(text, logprobs)],
                };
                json!({"type": "message", "id": id, "status": status.as_str(), "role": "assistant", "content": content})
            }
            Self::Reasoning { id, text } => json!({
                "type": "reasoning",
                "id": id,
                "summary": [],
                "content": [{"type": "reasoning_text", "text": text}],
                "status": status.as_str(),
            }),
            Self::Call { id, call_id, name, arguments } => json!({
                "type": "function_call",
                "id": id,
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
                "status": status.as_str(),
            }),
        }
    }
}

fn text_part(text: &str, logprobs: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

fn usage_json(usage: Usage, reasoning: &ReasoningTokens) -> Value {
    // What is not read from the cache is computed into it.
    let written = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": written},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning.total()},
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.generated_tokens),
    })
}

/// Adds the entries of an object to another.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_read_from_the_cache_or_written_to_it() {
        let usage = Usage { prompt_tokens: 20, cached_tokens: 16, generated_tokens: 3, ..Usage::default() };
        let said = usage_json(usage, &ReasoningTokens::default());
        assert_eq!(said["input_tokens_details"], json!({"cached_tokens": 16, "cache_write_tokens": 4}));
        assert_eq!((&said["input_tokens"], &said["total_tokens"]), (&json!(20), &json!(23)));
    }

    #[test]
    fn a_response_that_was_never_admitted_is_created_before_it_fails() {
        let head = AnswerHead {
            id: "resp_1".to_owned(),
            created: 1,
            model: "m".to_owned(),
            fingerprint: None,
            tier: None,
            billing: None,
        };
        let included = Included { logprobs: Inclusion::Hidden, carried_reasoning: Inclusion::Hidden };
        let mut answer = ResponseAnswer::new(head, Map::new(), included);
        let parts = answer.failure(&ApiError::new(ErrorKind::RateLimited, "wait"));
        let names: Vec<_> = parts.iter().filter_map(|part| part.event).collect();
        assert_eq!(names, ["response.created", "response.in_progress", "response.failed"]);
        let events: Vec<Value> = parts.iter().map(|part| serde_json::from_str(&part.data).unwrap()).collect();
        assert!(events.iter().enumerate().all(|(place, event)| event["sequence_number"] == place));
        assert_eq!(events[2]["response"]["error"]["code"], "rate_limit_exceeded");
    }
}
