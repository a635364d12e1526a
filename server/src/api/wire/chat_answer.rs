//! The choices of `/v1/chat/completions`.

use serde_json::{Value, json};

use super::request::Output;
use super::usage::logprob_json;
use crate::api::delta::{AnswerEnd, Choice, ChoiceDelta, Delta, TokenLogprob, ToolCallPart, display_bytes};

/// The first delta of each choice says who speaks.
pub(crate) fn role_choice(index: usize) -> Value {
    json!({"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null})
}

pub(crate) fn chunk_choice(piece: &ChoiceDelta, output: &Output) -> Option<Value> {
    let mut choice = json!({"index": piece.index, "delta": {}, "logprobs": null, "finish_reason": null});
    match &piece.delta {
        Delta::Prompt(prompt) if output.return_token_ids => choice["prompt_token_ids"] = json!(prompt.token_ids),
        Delta::Prompt(_) => return None,
        Delta::Text(part) => {
            let silent = part.logprobs.is_empty() && !output.return_token_ids;
            if part.text.is_empty() && silent {
                return None;
            }
            choice["delta"] = json!({"content": part.text});
            if output.logprobs.is_some() {
                choice["logprobs"] = logprobs_json(&part.logprobs);
            }
            if output.return_token_ids {
                choice["token_ids"] = json!(part.token_ids);
            }
        }
        // Under both names that clients look for.
        Delta::Reasoning(text) => choice["delta"] = json!({"reasoning_content": text, "reasoning": text}),
        Delta::ToolCall(part) => choice["delta"] = json!({"tool_calls": [tool_call_delta(part)]}),
        Delta::Finished(end) => add_end(&mut choice, *end),
    }
    Some(choice)
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
