//! The events of an upstream's answer, read leniently: servers differ, and what is not understood is not needed.

use passerelle_engine::Usage;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::AnswerKind;
use crate::api::delta::{AnswerEnd, Candidate, Delta, TextPart, TokenLogprob, TokenText, ToolCallHead, ToolCallPart};
use crate::gateway::journal::Told;

/// What one event says of the one choice that was asked for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) pieces: Vec<Delta>,
    pub(crate) end: Option<AnswerEnd>,
    pub(crate) usage: Option<Usage>,
    /// By a gateway that keeps books itself.
    pub(crate) told: Option<Told>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadChunk {
    /// No JSON, or none of an answer's shape.
    NotAChunk,
    /// The upstream says that it failed.
    SaysError,
}

#[derive(Deserialize)]
struct RawChunk {
    error: Option<Value>,
    choices: Option<Vec<RawChoice>>,
    usage: Option<RawUsage>,
}

#[derive(Deserialize)]
struct RawChoice {
    delta: Option<RawDelta>,
    text: Option<String>,
    logprobs: Option<RawLogprobs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawDelta {
    reasoning_content: Option<String>,
    /// The same under the name that others use. Some write both.
    reasoning: Option<String>,
    content: Option<String>,
    tool_calls: Option<Vec<RawToolCall>>,
}

#[derive(Deserialize)]
struct RawToolCall {
    index: Option<usize>,
    id: Option<String>,
    function: Option<RawFunction>,
}

#[derive(Deserialize)]
struct RawFunction {
    name: Option<String>,
    arguments: Option<String>,
}

/// Chat's entries, or the legacy arrays of completions.
#[derive(Deserialize)]
struct RawLogprobs {
    content: Option<Vec<RawToken>>,
    tokens: Option<Vec<String>>,
    token_logprobs: Option<Vec<Option<f32>>>,
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
}

#[derive(Deserialize)]
struct RawToken {
    token: String,
    /// JSON has no infinity: some write none of a token that could not come.
    logprob: Option<f32>,
    bytes: Option<Vec<u8>>,
    top_logprobs: Option<Vec<RawToken>>,
}

#[derive(Deserialize)]
struct RawUsage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<RawPromptDetails>,
    passerelle: Option<RawBilling>,
}

/// As `Billing` in [`super::answer`] writes it.
#[derive(Deserialize)]
struct RawBilling {
    billed_gpu_ms: f64,
    model_digest: Option<String>,
    site: Option<String>,
}

#[derive(Deserialize)]
struct RawPromptDetails {
    cached_tokens: Option<u32>,
}

/// `offset`: characters of answer so far.
pub(crate) fn read_chunk(kind: AnswerKind, data: &str, offset: usize) -> Result<Chunk, BadChunk> {
    let raw: RawChunk = serde_json::from_str(data).map_err(|_| BadChunk::NotAChunk)?;
    if raw.error.is_some() {
        return Err(BadChunk::SaysError);
    }
    let told = raw.usage.as_ref().and_then(|usage| usage.passerelle.as_ref()).map(RawBilling::read);
    let usage = raw.usage.map(RawUsage::read);
    let choice = raw.choices.and_then(|choices| choices.into_iter().next());
    let Some(choice) = choice else { return Ok(Chunk { usage, told, ..Chunk::default() }) };
    let said = |text: Option<String>| text.filter(|text| !text.is_empty());
    let end = said(choice.finish_reason).as_deref().map(read_end);
    let delta = choice.delta.unwrap_or_default();
    let text = match kind {
        AnswerKind::Chat => delta.content,
        AnswerKind::Completion => choice.text,
    };
    let logprobs = choice.logprobs.map(|logprobs| logprobs.read(offset)).unwrap_or_default();
    let part = TextPart { text: text.unwrap_or_default(), token_ids: Vec::new(), logprobs };
    let text = (part != TextPart::default()).then_some(Delta::Text(part));
    let calls = delta.tool_calls.into_iter().flatten().map(RawToolCall::read);
    let reasoning = said(delta.reasoning_content).or(said(delta.reasoning)).map(Delta::Reasoning);
    Ok(Chunk { pieces: reasoning.into_iter().chain(text).chain(calls).collect(), end, usage, told })
}

/// Reasons that OpenAI does not have end an answer all the same.
fn read_end(reason: &str) -> AnswerEnd {
    match reason {
        "length" => AnswerEnd::Length,
        "tool_calls" | "function_call" => AnswerEnd::ToolCalls,
        "content_filter" => AnswerEnd::ContentFilter,
        _ => AnswerEnd::Stop,
    }
}

impl RawBilling {
    fn read(&self) -> Told {
        /// What is written into the ledger of what another server says.
        const MAX_CHARS: usize = 128;
        let name = |text: &Option<String>| {
            let shown = text.iter().flat_map(|text| text.chars()).filter(char::is_ascii_graphic);
            shown.take(MAX_CHARS).collect()
        };
        // Too large, negative and no number become the nearest that can be written.
        let billed_micros = (self.billed_gpu_ms * 1e3) as u64;
        Told {
            model_digest: name(&self.model_digest),
            site: name(&self.site),
            billed_micros: billed_micros.min(1 << 53),
        }
    }
}

impl RawUsage {
    fn read(self) -> Usage {
        let cached = self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        let prompt_tokens = self.prompt_tokens.unwrap_or(0);
        Usage {
            prompt_tokens,
            cached_tokens: cached.min(prompt_tokens),
            generated_tokens: self.completion_tokens.unwrap_or(0),
            ..Usage::default()
        }
    }
}

impl RawToolCall {
    fn read(self) -> Delta {
        let Self { index, id, function } = self;
        let index = index.unwrap_or(0);
        let (name, arguments) = function.map_or((None, None), |function| (function.name, function.arguments));
        // Some say it again with each piece, as an empty text.
        let head = name
            .filter(|name| !name.is_empty())
            .map(|name| ToolCallHead { id: id.unwrap_or_else(|| format!("call_{index}")), name });
        Delta::ToolCall(ToolCallPart { index, head, arguments: arguments.unwrap_or_default() })
    }
}

impl RawLogprobs {
    fn read(self, mut offset: usize) -> Vec<TokenLogprob> {
        let mut at = |text: &str| {
            let here = offset;
            offset += text.chars().count();
            here
        };
        if let Some(content) = self.content {
            return content.into_iter().map(|token| token.read(&mut at)).collect();
        }
        let logprobs = self.token_logprobs.unwrap_or_default();
        let tops = self.top_logprobs.unwrap_or_default();
        let tops = tops.into_iter().map(Option::unwrap_or_default).chain(std::iter::repeat_with(Map::new));
        let tokens = self.tokens.unwrap_or_default().into_iter().zip(logprobs).zip(tops);
        let read = tokens.filter_map(|((token, logprob), top)| {
            let text = TokenText { id: 0, offset: at(&token), bytes: token.into_bytes() };
            let top = top.into_iter().filter_map(|(token, logprob)| {
                let logprob = logprob.as_f64()? as f32;
                Some(Candidate { id: 0, bytes: token.into_bytes(), logprob })
            });
            Some(TokenLogprob { token: text, logprob: logprob?, rank: 0, entropy: 0.0, top: top.collect() })
        });
        read.collect()
    }
}

impl RawToken {
    fn read(self, at: &mut impl FnMut(&str) -> usize) -> TokenLogprob {
        let offset = at(&self.token);
        let known = |logprob: Option<f32>| logprob.unwrap_or(f32::NEG_INFINITY);
        let top = self.top_logprobs.into_iter().flatten().map(|top| {
            let logprob = known(top.logprob);
            Candidate { id: 0, bytes: top.bytes.unwrap_or_else(|| top.token.into_bytes()), logprob }
        });
        let (top, logprob) = (top.collect(), known(self.logprob));
        let bytes = self.bytes.unwrap_or_else(|| self.token.into_bytes());
        TokenLogprob { token: TokenText { id: 0, bytes, offset }, logprob, rank: 0, entropy: 0.0, top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(data: &Value) -> Chunk {
        read_chunk(AnswerKind::Chat, &data.to_string(), 0).unwrap()
    }

    #[test]
    fn text_calls_ends_and_usage_are_read() {
        let text = chat(&json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "hé"}}]}));
        assert_eq!(text.pieces, [Delta::Text(TextPart { text: "hé".into(), ..TextPart::default() })]);
        let call = json!({"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}});
        let call = chat(&json!({"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}));
        let head = Some(ToolCallHead { id: "c".into(), name: "f".into() });
        assert_eq!(call.pieces, [Delta::ToolCall(ToolCallPart { index: 0, head, arguments: "{".into() })]);
        assert_eq!(call.end, Some(AnswerEnd::ToolCalls));
        for name in ["reasoning_content", "reasoning"] {
            let thought = chat(&json!({"choices": [{"delta": {name: "hm", "content": null}}]}));
            assert_eq!(thought.pieces, [Delta::Reasoning("hm".into())]);
        }
        let twice = chat(&json!({"choices": [{"delta": {"reasoning_content": "hm", "reasoning": "hm"}}]}));
        assert_eq!(twice.pieces, [Delta::Reasoning("hm".into())], "one gateway behind another writes both");
        let once = chat(&json!({"choices": [{"delta": {"reasoning_content": "", "reasoning": "hm"}}]}));
        assert_eq!(once.pieces, [Delta::Reasoning("hm".into())]);
        let usage = json!({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 99}});
        let usage = chat(&json!({"choices": [], "usage": usage})).usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens), (9, 9, 4));
    }

    #[test]
    fn what_another_gateway_says_of_a_request_is_read_and_bounded() {
        let told = |billed: Value, site: &str| {
            let passerelle = json!({"billed_gpu_ms": billed, "model_digest": "sha256:ab", "site": site});
            chat(&json!({"choices": [], "usage": {"prompt_tokens": 1, "passerelle": passerelle}})).told.unwrap()
        };
        let plain = Told { model_digest: "sha256:ab".into(), site: "north".into(), billed_micros: 1_500 };
        assert_eq!(told(json!(1.5), "north"), plain);
        assert_eq!(told(json!(-7.0), "a b\n").site, "ab");
        assert_eq!(told(json!(-7.0), "").billed_micros, 0);
        assert_eq!(told(json!(1e300), &"x".repeat(500)).site.len(), 128);
        assert_eq!(chat(&json!({"choices": [], "usage": {"prompt_tokens": 1}})).told, None);
    }

    #[test]
    fn an_opening_event_says_nothing() {
        let opening = json!({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]});
        assert_eq!(chat(&opening), Chunk::default());
    }

    /// Each is what some server writes, and none of it would be missed.
    #[test]
    fn what_says_nothing_breaks_no_answer() {
        let call = json!({"index": null, "id": "c", "function": {"name": "", "arguments": "{}"}});
        let piece = json!({"delta": {"content": null, "tool_calls": [call]}, "finish_reason": ""});
        let chunk = chat(&json!({"choices": [piece], "error": null}));
        let arguments = ToolCallPart { index: 0, head: None, arguments: "{}".into() };
        assert_eq!((chunk.pieces.as_slice(), chunk.end), (&[Delta::ToolCall(arguments)][..], None));
        let usage = chat(&json!({"choices": null, "usage": {"prompt_tokens": null, "completion_tokens": 4}}));
        let usage = usage.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.generated_tokens), (0, 4));
        let entry = json!({"token": "a", "logprob": null, "top_logprobs": null});
        let text = chat(&json!({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [entry]}}]}));
        let Delta::Text(part) = &text.pieces[0] else { panic!("it is text") };
        assert_eq!((part.logprobs[0].logprob, part.logprobs[0].top.len()), (f32::NEG_INFINITY, 0));
    }

    #[test]
    fn log_probabilities_are_read_in_both_forms() {
        let top = json!([{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.5}]);
        let entry = json!({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top});
        let new = chat(&json!({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [entry]}}]}));
        let arrays = json!({"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -1.5}]});
        let legacy = json!({"choices": [{"text": "a", "logprobs": arrays}]}).to_string();
        let legacy = read_chunk(AnswerKind::Completion, &legacy, 0).unwrap();
        assert_eq!(new.pieces, legacy.pieces);
        let Delta::Text(part) = &new.pieces[0] else { panic!("it is text") };
        assert_eq!(part.logprobs[0].top.len(), 2);
    }

    #[test]
    fn what_is_no_answer_is_told_from_an_error() {
        for odd in ["", "hello", "[1]", "{\"choices\": 3}"] {
            assert_eq!(read_chunk(AnswerKind::Chat, odd, 0), Err(BadChunk::NotAChunk), "{odd}");
        }
        assert_eq!(read_chunk(AnswerKind::Chat, "{\"error\": {}}", 0), Err(BadChunk::SaysError));
    }
}
