//! The text of an answer taken apart while it is written: what the model thought, what it says, and the tools it calls.

use super::reasoning::{ReasoningFormat, ReasoningSplitter, ReasoningStart};
use super::tokenizer::{SkipSpecialTokens, Tokenizer};
use super::tools::{ToolCallParser, ToolFormat};

/// A piece of an answer. Pieces of one kind that follow each other are one text, cut where tokens end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerDelta {
    /// What the model wrote for itself before answering, without its markers.
    Reasoning(String),
    Content(String),
    CallStart {
        index: usize,
        name: String,
    },
    /// JSON text of the arguments object, or a part of it; the fragments of one call joined are the whole.
    Arguments {
        index: usize,
        fragment: String,
    },
}

impl AnswerDelta {
    /// The same with the pieces of one text put together, so that two cuts of one answer can be compared.
    pub fn joined(deltas: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut joined: Vec<Self> = Vec::new();
        for delta in deltas {
            match (joined.last_mut(), delta) {
                (Some(Self::Content(last)), Self::Content(text)) => last.push_str(&text),
                (Some(Self::Reasoning(last)), Self::Reasoning(text)) => last.push_str(&text),
                (Some(Self::Arguments { index, fragment: last }), Self::Arguments { index: another, fragment })
                    if *index == another =>
                {
                    last.push_str(&fragment)
                }
                (_, delta) => joined.push(delta),
            }
        }
        joined
    }
}

/// How a model's answers are written: found from its chat template, or stated in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerFormat {
    pub tools: ToolFormat,
    /// `None`: the model's answers hold no reasoning that is marked.
    pub reasoning: Option<ReasoningFormat>,
}

/// Takes one answer apart. However the text is cut into pushes, the pieces joined are the same.
#[derive(Debug, Default)]
pub struct AnswerParser {
    reasoning: Option<ReasoningSplitter>,
    tools: Option<ToolCallParser>,
}

impl AnswerFormat {
    /// The formats that a chat template was written for. Where it shows none, the tokens of a vocabulary that were made
    /// for one decide.
    pub fn find(template: &str, has_token: impl Fn(&str) -> bool) -> Self {
        let tools = ToolFormat::find(|text| template.contains(text)).or_else(|| ToolFormat::of_vocabulary(&has_token));
        let reasoning = ReasoningFormat::find(|text| template.contains(text));
        let reasoning = reasoning.or_else(|| ReasoningFormat::find(&has_token));
        Self { tools: tools.unwrap_or(ToolFormat::Json), reasoning }
    }

    /// Where an answer after this prompt begins, if it may hold reasoning. `begun`: the beginning of the same answer, which
    /// the prompt ends with.
    pub fn reasoning_after(
        &self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        begun: Option<&str>,
    ) -> Option<(ReasoningFormat, ReasoningStart)> {
        /// Tokens of the prompt's end that may spell the opening marker of reasoning.
        const END_TOKENS: usize = 16;
        let format = self.reasoning?;
        let start = match begun {
            Some(begun) => format.start_within(begun),
            None => {
                let end = &prompt[prompt.len().saturating_sub(END_TOKENS)..];
                format.start_after(&tokenizer.decode(end, SkipSpecialTokens::No))
            }
        };
        // What continues a content holds no reasoning: a marker there is what the text is about.
        let continues_content = begun.is_some() && start == ReasoningStart::Outside;
        (!continues_content).then_some((format, start))
    }
}

impl AnswerParser {
    /// Leaves the text as it is, until it is told what the text may hold.
    pub fn new() -> Self {
        Self::default()
    }

    /// The answer may hold calls of these tools.
    #[must_use]
    pub fn with_tools(self, format: ToolFormat, offered: impl IntoIterator<Item = String>) -> Self {
        Self { tools: Some(ToolCallParser::new(format, offered)), ..self }
    }

    #[must_use]
    pub fn with_reasoning(self, format: ReasoningFormat, start: ReasoningStart) -> Self {
        Self { reasoning: Some(ReasoningSplitter::new(format, start)), ..self }
    }

    /// Special tokens that must be part of the text which is pushed.
    pub fn markers(&self) -> impl Iterator<Item = &'static str> {
        let reasoning = self.reasoning.iter().flat_map(|splitter| splitter.format().markers());
        let tools = self.tools.iter().flat_map(|parser| parser.format().markers().iter().copied());
        reasoning.chain(tools)
    }

    /// What this piece of text makes certain.
    pub fn push(&mut self, text: &str) -> Vec<AnswerDelta> {
        match &mut self.reasoning {
            None => self.content(text),
            Some(splitter) => {
                let split = splitter.push(text);
                self.outside_reasoning(split)
            }
        }
    }

    /// The text ends here.
    pub fn finish(&mut self) -> Vec<AnswerDelta> {
        let rest = self.reasoning.as_mut().map(ReasoningSplitter::finish).unwrap_or_default();
        let mut deltas = self.outside_reasoning(rest);
        deltas.extend(self.tools.as_mut().map(ToolCallParser::finish).unwrap_or_default());
        deltas
    }

    /// How many calls were given out.
    pub fn calls(&self) -> usize {
        self.tools.as_ref().map_or(0, ToolCallParser::calls)
    }

    fn outside_reasoning(&mut self, split: Vec<AnswerDelta>) -> Vec<AnswerDelta> {
        let mut deltas = Vec::with_capacity(split.len());
        for delta in split {
            match delta {
                AnswerDelta::Content(text) => deltas.extend(self.content(&text)),
                other => deltas.push(other),
            }
        }
        deltas
    }

    fn content(&mut self, text: &str) -> Vec<AnswerDelta> {
        match &mut self.tools {
            Some(parser) => parser.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![AnswerDelta::Content(text.to_owned())],
        }
    }
}

#[cfg(test)]
mod tests;
