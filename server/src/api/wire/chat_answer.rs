//! The choices of `/v1/chat/completions`.

use passerelle_models::TokenId;
use serde::Serialize;
use serde_json::{Value, json};

use super::request::Output;
use super::usage::logprob_json;
use crate::api::delta::{AnswerEnd, Choice, ChoiceDelta, Delta, TextPart, TokenLogprob, ToolCallPart, display_bytes};

/// A choice of a chunk, written without a detour: each token of each stream comes this way.
#[derive(Debug, Serialize)]
pub(crate) struct ChunkChoice<'a> {
    index: usize,
    delta: ChunkDelta<'a>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [TokenId]>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ChunkDelta<'a> {
    Nothing {},
    Role {
        role: &'static str,
        content: Option<&'static str>,
    },
    Text {
        content: &'a str,
    },
    /// Under both names that clients look for.
    Reasoning {
        reasoning_content: &'a str,
        reasoning: &'a str,
    },
    Call {
        tool_calls: [Value; 1],
    },
}

/// The `content` of a streamed choice, as far as its chunks have said it. They add up to what the whole answer has: null where
/// there are calls and no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Null so far. What ends so is an empty text.
    Unsaid,
    /// Null so far, and beside calls it stays so.
    Calls,
    Text,
}

impl Content {
    /// Where nothing can be called, the first delta is a text already.
    pub(crate) fn at_start(output: &Output) -> Self {
        if output.offers_tools { Self::Unsaid } else { Self::Text }
    }

    pub(crate) fn with(self, delta: &Delta) -> Self {
        match (self, delta) {
            (_, Delta::Text(part)) if !part.text.is_empty() => Self::Text,
            (Self::Unsaid, Delta::ToolCall(_)) => Self::Calls,
            (content, _) => content,
        }
    }
}

/// The first delta of each choice says who speaks.
pub(crate) fn role_choice(index: usize, content: Content) -> ChunkChoice<'static> {
    let content = (content == Content::Text).then_some("");
    ChunkChoice::new(index, ChunkDelta::Role { role: "assistant", content })
}

/// `content`: as far as the chunks have said it, with this one.
pub(crate) fn chunk_choice<'a>(piece: &'a ChoiceDelta, output: &Output, content: Content) -> Option<ChunkChoice<'a>> {
    let delta = match &piece.delta {
        Delta::Finished(_) if content == Content::Unsaid => ChunkDelta::Text { content: "" },
        Delta::Prompt(_) | Delta::Finished(_) => ChunkDelta::Nothing {},
        Delta::Text(part) if part.text.is_empty() && is_silent(part, output) => return None,
        // Tokens that gave no text, such as a call's.
        Delta::Text(part) if part.text.is_empty() && content != Content::Text => ChunkDelta::Nothing {},
        Delta::Text(part) => ChunkDelta::Text { content: &part.text },
        Delta::Reasoning(text) => ChunkDelta::Reasoning { reasoning_content: text, reasoning: text },
        Delta::ToolCall(part) => ChunkDelta::Call { tool_calls: [tool_call_delta(part)] },
    };
    let mut choice = ChunkChoice::new(piece.index, delta);
    match &piece.delta {
        Delta::Prompt(prompt) if output.return_token_ids => choice.prompt_token_ids = Some(&prompt.token_ids),
        Delta::Prompt(_) => return None,
        Delta::Text(part) => {
            choice.logprobs = output.logprobs.map(|_| logprobs_json(&part.logprobs));
            choice.token_ids = output.return_token_ids.then_some(&part.token_ids);
        }
        Delta::Reasoning(_) | Delta::ToolCall(_) => {}
        Delta::Finished(end) => {
            (choice.finish_reason, choice.stop_reason) = (Some(end.as_str()), end.stop_reason());
        }
    }
    Some(choice)
}

/// Whether an empty text says nothing.
fn is_silent(part: &TextPart, output: &Output) -> bool {
    part.logprobs.is_empty() && !output.return_token_ids
}

impl<'a> ChunkChoice<'a> {
    fn new(index: usize, delta: ChunkDelta<'a>) -> Self {
        Self {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            prompt_token_ids: None,
            token_ids: None,
        }
    }
}

/// `stop_reason` stands beside OpenAI's finish reason where that does not tell the cause.
pub(crate) fn add_end(choice: &mut Value, end: AnswerEnd) {
    choice["finish_reason"] = json!(end.as_str());
    if let Some(reason) = end.stop_reason() {
        choice["stop_reason"] = json!(reason);
    }
}

pub(crate) fn whole_choice(index: usize, choice: &Choice, output: &Output) -> Value {
    let text = &choice.text;
    let silent_call = text.text.is_empty() && !choice.tool_calls.is_empty();
    let content = if silent_call { Value::Null } else { json!(text.text) };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !choice.reasoning.is_empty() {
        message["reasoning_content"] = json!(choice.reasoning);
        message["reasoning"] = json!(choice.reasoning);
    }
    if !choice.tool_calls.is_empty() {
        message["tool_calls"] = choice.tool_calls.iter().map(whole_tool_call).collect();
    }
    let mut whole = json!({
        "index": index,
        "message": message,
        "logprobs": output.logprobs.map(|_| logprobs_json(&text.logprobs)),
        "finish_reason": null,
    });
    if let Some(end) = choice.finish {
        add_end(&mut whole, end);
    }
    if output.return_token_ids {
        whole["prompt_token_ids"] = json!(choice.prompt.token_ids);
        whole["token_ids"] = json!(text.token_ids);
    }
    whole
}

fn logprobs_json(tokens: &[TokenLogprob]) -> Value {
    json!({"content": logprob_entries(tokens), "refusal": null})
}

pub(crate) fn logprob_entries(tokens: &[TokenLogprob]) -> Vec<Value> {
    tokens.iter().map(token_json).collect()
}

fn token_json(token: &TokenLogprob) -> Value {
    let mut entry = candidate_json(&token.token.bytes, token.logprob);
    entry["top_logprobs"] = token.top.iter().map(|top| candidate_json(&top.bytes, top.logprob)).collect();
    entry
}

fn candidate_json(bytes: &[u8], logprob: f32) -> Value {
    json!({"token": display_bytes(bytes), "logprob": logprob_json(logprob), "bytes": bytes})
}

fn tool_call_delta(part: &ToolCallPart) -> Value {
    match &part.head {
        Some(head) => json!({
            "index": part.index,
            "id": head.id,
            "type": "function",
            "function": {"name": head.name, "arguments": part.arguments},
        }),
        None => json!({"index": part.index, "function": {"arguments": part.arguments}}),
    }
}

fn whole_tool_call(part: &ToolCallPart) -> Value {
    let head = part.head.as_ref();
    json!({
        "id": head.map(|head| &head.id),
        "type": "function",
        "function": {"name": head.map(|head| &head.name), "arguments": part.arguments},
    })
}
