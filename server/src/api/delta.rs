//! What a choice says, piece by piece: the one stream that both streamed and whole answers are made from.

use passerelle_models::TokenId;

/// A piece of one choice. Order: at most one `Prompt`, then `Text`, `Reasoning` and `ToolCall`s, then exactly
/// one `Finished`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Delta {
    Prompt(PromptPart),
    Text(TextPart),
    /// What the model wrote for itself before answering. The `Text` before it carries its tokens.
    Reasoning(String),
    ToolCall(ToolCallPart),
    Finished(AnswerEnd),
}

/// A piece, and which choice it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChoiceDelta {
    pub(crate) index: usize,
    pub(crate) delta: Delta,
}

/// What the caller asked to see of the prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct PromptPart {
    pub(crate) token_ids: Vec<TokenId>,
    /// The prompt's own text, under `echo`.
    pub(crate) text: Option<String>,
    /// One entry per prompt token; the first has no predecessor.
    pub(crate) tokens: Vec<PromptToken>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PromptToken {
    pub(crate) text: TokenText,
    pub(crate) logprob: Option<TokenLogprob>,
}

/// New text and the tokens read since the last piece. Either may be empty: text is held back while it may become a
/// stop string or is not yet whole UTF-8.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct TextPart {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<TokenId>,
    pub(crate) logprobs: Vec<TokenLogprob>,
}

/// A token as the vocabulary spells it. `bytes` need not be UTF-8 by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenText {
    pub(crate) id: TokenId,
    pub(crate) bytes: Vec<u8>,
    /// Characters of answer (and echoed prompt) before this token.
    pub(crate) offset: usize,
}

impl TokenText {
    /// The token's text, or its bytes in OpenAI's spelling where they are only a part of a character.
    pub(crate) fn display(&self) -> String {
        display_bytes(&self.bytes)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenLogprob {
    pub(crate) token: TokenText,
    pub(crate) logprob: f32,
    pub(crate) rank: u32,
    /// Of the whole distribution, in nats.
    pub(crate) entropy: f32,
    /// Best first.
    pub(crate) top: Vec<Candidate>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: TokenId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) logprob: f32,
}

/// A tool call, whole or in pieces: `id` and `name` come with the first piece of each `index`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolCallPart {
    pub(crate) index: usize,
    pub(crate) head: Option<ToolCallHead>,
    pub(crate) arguments: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolCallHead {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// OpenAI's finish reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerEnd {
    Stop,
    Length,
    /// A budget of the account was used up.
    Quota,
    ToolCalls,
    /// Only upstreams filter.
    ContentFilter,
}

impl AnswerEnd {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            // Clients know these four names and no further one.
            Self::Length | Self::Quota => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
        }
    }

    /// The model had not come to its end.
    pub(crate) fn is_cut(self) -> bool {
        matches!(self, Self::Length | Self::Quota)
    }

    /// What ended the answer, where the finish reason does not tell.
    pub(crate) fn stop_reason(self) -> Option<&'static str> {
        (self == Self::Quota).then_some("quota")
    }
}

/// A whole choice: its pieces joined.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub(crate) prompt: PromptPart,
    pub(crate) text: TextPart,
    pub(crate) reasoning: String,
    pub(crate) tool_calls: Vec<ToolCallPart>,
    pub(crate) finish: Option<AnswerEnd>,
}

impl Choice {
    pub(crate) fn push(&mut self, delta: Delta) {
        match delta {
            Delta::Prompt(prompt) => self.prompt = prompt,
            Delta::Text(part) => {
                self.text.text.push_str(&part.text);
                self.text.token_ids.extend(part.token_ids);
                self.text.logprobs.extend(part.logprobs);
            }
            Delta::Reasoning(text) => self.reasoning.push_str(&text),
            Delta::ToolCall(part) => match self.tool_calls.iter_mut().find(|call| call.index == part.index) {
                Some(call) => call.arguments.push_str(&part.arguments),
                None => self.tool_calls.push(part),
            },
            Delta::Finished(end) => self.finish = Some(end),
        }
    }
}

/// Text where the bytes are whole UTF-8, else `bytes:\xe2\x80`, as OpenAI spells fragments of a character.
pub(crate) fn display_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_character_is_spelt_as_bytes() {
        assert_eq!(display_bytes("é".as_bytes()), "é");
        assert_eq!(display_bytes(&[0xe2, 0x80]), "bytes:\\xe2\\x80");
    }

    #[test]
    fn pieces_of_a_tool_call_join_by_index() {
        let head = |id: &str| Some(ToolCallHead { id: id.to_owned(), name: "f".to_owned() });
        let mut choice = Choice::default();
        for (index, head, arguments) in [(0, head("a"), "{"), (0, None, "}"), (1, head("b"), "{}")] {
            choice.push(Delta::ToolCall(ToolCallPart { index, head, arguments: arguments.to_owned() }));
        }
        let joined: Vec<&str> = choice.tool_calls.iter().map(|call| call.arguments.as_str()).collect();
        assert_eq!(joined, ["{}", "{}"]);
    }
}
