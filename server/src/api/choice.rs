//! One choice of an answer: an engine's token events made into text, reasoning, tool calls and log-probabilities.

use std::sync::Arc;

use passerelle_engine::{TokenEvent, TokenLogprobs};
use passerelle_models::TokenId;

use super::delta::{
    AnswerEnd, Candidate, Delta, PromptPart, PromptToken, TextPart, TokenLogprob, TokenText, ToolCallHead, ToolCallPart,
};
use super::ids::{random_id, random_short_id};
use super::lease::Lease;
use super::prepare::EncodedPrompt;
use super::wire::request::Output;
use crate::text::{AnswerDelta, AnswerParser, CallIds, Detokenizer, SkipSpecialTokens, StopMatcher, Tokenizer};

/// What a choice needs beside its events.
#[derive(Debug, Clone)]
pub(crate) struct ChoiceSpec {
    pub(crate) model: Lease,
    pub(crate) output: Output,
    pub(crate) stop_strings: Vec<String>,
    /// No stop string counts before the answer has this many tokens.
    pub(crate) min_tokens: u32,
    /// Tokens that end the answer and are no part of its text.
    pub(crate) stop_token_ids: Vec<TokenId>,
    pub(crate) kind: ChoiceContent,
    /// Of all choices.
    pub(crate) prompt: Arc<EncodedPrompt>,
    pub(crate) start: AnswerStart,
}

/// What the answer's text may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChoiceContent {
    PlainText,
    /// Reasoning, and calls of the tools with these names.
    Chat {
        offered: Vec<String>,
        /// The beginning of the same answer, if it stands in the prompt.
        begun: Option<String>,
    },
}

/// Whether the answer is a text of its own, or goes on from the prompt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerStart {
    OwnText,
    GoesOnFromPrompt,
}

/// Makes pieces of text from tokens. Knows nothing of where they come from.
#[derive(Debug)]
pub(crate) struct Writer {
    spec: ChoiceSpec,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    parser: AnswerParser,
    /// Characters of text, echoed prompt included, before the next token.
    offset: usize,
    tokens_seen: u32,
    stopped: bool,
}

impl Writer {
    pub(crate) fn new(spec: ChoiceSpec) -> Self {
        let skip = skip_of(&spec.output);
        let tokenizer = &spec.model.text.tokenizer;
        let detokenizer = match spec.start {
            AnswerStart::OwnText => Detokenizer::new(tokenizer, skip),
            AnswerStart::GoesOnFromPrompt => Detokenizer::after(tokenizer, skip, &spec.prompt.tokens),
        };
        let parser = parser(&spec);
        let detokenizer = detokenizer.showing(parser.markers());
        let stop = StopMatcher::new(&spec.stop_strings);
        Self { spec, detokenizer, stop, parser, offset: 0, tokens_seen: 0, stopped: false }
    }

    pub(crate) fn num_prompt_tokens(&self) -> usize {
        self.spec.prompt.tokens.len()
    }

    /// Generated ones.
    pub(crate) fn tokens_seen(&self) -> u32 {
        self.tokens_seen
    }

    /// Whether a stop string is complete: what follows does not count.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// The prompt's part of the answer, where it needs no word from the engine.
    pub(crate) fn prompt_at_start(&mut self) -> Option<Delta> {
        let waits = engine_prompt_logprobs(&self.spec.output).is_some();
        let shown = self.spec.output.echo || self.spec.output.return_token_ids;
        (shown && !waits).then(|| self.prompt_part(&[]))
    }

    pub(crate) fn prompt_part(&mut self, entries: &[Option<TokenLogprobs>]) -> Delta {
        let EncodedPrompt { tokens: ids, written, .. } = &*self.spec.prompt;
        let echoes = self.spec.output.echo;
        // A long prompt takes long to spell, and those who ask for its tokens alone see nothing of that.
        let is_spelt = !entries.is_empty() || (echoes && written.is_none());
        let (text, tokens) = if is_spelt { self.spelt_prompt(entries) } else { Default::default() };
        let echoed = echoes.then(|| written.clone().unwrap_or(text));
        let token_ids = ids.clone();
        self.offset = echoed.as_deref().map_or(0, |text| text.chars().count());
        Delta::Prompt(PromptPart { token_ids, text: echoed, tokens })
    }

    /// Its text, and an entry for each token that there is one for.
    fn spelt_prompt(&self, entries: &[Option<TokenLogprobs>]) -> (String, Vec<PromptToken>) {
        let tokenizer = &self.spec.model.text.tokenizer;
        let ids = &self.spec.prompt.tokens;
        let mut detokenizer = Detokenizer::new(tokenizer, skip_of(&self.spec.output));
        let mut text = String::new();
        let mut offset = 0;
        let mut tokens = Vec::with_capacity(entries.len());
        for (index, &id) in ids.iter().enumerate() {
            if let Some(entry) = entries.get(index) {
                let spelt = TokenText { id, bytes: tokenizer.token_bytes(id), offset };
                let logprob = entry.as_ref().map(|entry| logprob_of(tokenizer, entry, offset));
                tokens.push(PromptToken { text: spelt, logprob });
            }
            let piece = detokenizer.push(id);
            offset += piece.chars().count();
            text.push_str(&piece);
        }
        text.push_str(&detokenizer.finish());
        (text, tokens)
    }

    pub(crate) fn token(&mut self, event: &TokenEvent) -> Vec<Delta> {
        let logprobs = self.shown_logprob(event);
        let ends_answer = self.spec.stop_token_ids.contains(&event.token);
        let text = if ends_answer { String::new() } else { self.detokenizer.push(event.token) };
        self.offset += text.chars().count();
        let text = self.up_to_stop(text);
        let part = TextPart { text: String::new(), token_ids: vec![event.token], logprobs };
        self.pieces(&text, part)
    }

    fn up_to_stop(&mut self, text: String) -> String {
        self.tokens_seen = self.tokens_seen.saturating_add(1);
        if self.tokens_seen <= self.spec.min_tokens {
            return text;
        }
        let pushed = self.stop.push(&text);
        self.stopped = pushed.stopped.is_some();
        pushed.text
    }

    fn shown_logprob(&self, event: &TokenEvent) -> Vec<TokenLogprob> {
        let wanted = self.spec.output.logprobs.and(event.logprobs.as_ref());
        wanted.map(|entry| logprob_of(&self.spec.model.text.tokenizer, entry, self.offset)).into_iter().collect()
    }

    /// What was held back, once nothing more comes.
    pub(crate) fn finish(&mut self) -> Vec<Delta> {
        let mut text = String::new();
        if !self.stopped {
            let held = self.detokenizer.finish();
            let pushed = self.stop.push(&held);
            self.stopped = pushed.stopped.is_some();
            text = pushed.text;
            if !self.stopped {
                text.push_str(&self.stop.finish());
            }
        }
        let mut deltas = self.pieces(&text, TextPart::default());
        let rest = self.parser.finish();
        deltas.extend(rest.into_iter().filter_map(|delta| self.piece(delta)));
        deltas
    }

    /// What held-back text and calls make of an end.
    pub(crate) fn end(&self, end: AnswerEnd) -> AnswerEnd {
        match end {
            AnswerEnd::Length | AnswerEnd::Quota if !self.stopped => end,
            _ if self.parser.calls() > 0 => AnswerEnd::ToolCalls,
            _ => AnswerEnd::Stop,
        }
    }

    /// `part` carries the tokens; its text is the content that `text` begins with.
    fn pieces(&mut self, text: &str, mut part: TextPart) -> Vec<Delta> {
        let mut others = Vec::new();
        for delta in self.parser.push(text) {
            match self.piece(delta) {
                // Content after something else in one push keeps its place in the order of pieces.
                Some(Delta::Text(content)) if others.is_empty() => part.text.push_str(&content.text),
                Some(piece) => others.push(piece),
                None => {}
            }
        }
        let silent = part == TextPart::default();
        (!silent).then_some(Delta::Text(part)).into_iter().chain(others).collect()
    }

    fn piece(&self, delta: AnswerDelta) -> Option<Delta> {
        match delta {
            AnswerDelta::Content(text) if text.is_empty() => None,
            AnswerDelta::Content(text) => Some(Delta::Text(TextPart { text, ..TextPart::default() })),
            AnswerDelta::Reasoning(text) => Some(Delta::Reasoning(text)),
            AnswerDelta::CallStart { index, name } => {
                let id = match self.spec.model.text.answers.tools.call_ids() {
                    CallIds::Any => random_id("call_"),
                    CallIds::NineAlphanumeric => random_short_id(),
                };
                let id = id.unwrap_or_else(|| format!("call{index:05}"));
                let head = Some(ToolCallHead { id, name });
                Some(Delta::ToolCall(ToolCallPart { index, head, arguments: String::new() }))
            }
            AnswerDelta::Arguments { index, fragment } => {
                Some(Delta::ToolCall(ToolCallPart { index, head: None, arguments: fragment }))
            }
        }
    }
}

/// How many likely tokens the engine must report at prompt positions, for what the caller wants to see.
pub(crate) fn engine_prompt_logprobs(output: &Output) -> Option<u8> {
    let echoed = if output.echo { output.logprobs } else { None };
    let scored = output.prompt_scores.then_some(1);
    echoed.max(output.prompt_logprobs).max(scored)
}

fn skip_of(output: &Output) -> SkipSpecialTokens {
    if output.keep_special_tokens { SkipSpecialTokens::No } else { SkipSpecialTokens::Yes }
}

fn parser(spec: &ChoiceSpec) -> AnswerParser {
    let ChoiceContent::Chat { offered, begun } = &spec.kind else { return AnswerParser::new() };
    let text = &spec.model.text;
    let mut parser = AnswerParser::new();
    if !offered.is_empty() {
        parser = parser.with_tools(text.answers.tools, offered.iter().cloned());
    }
    match text.answers.reasoning_after(&text.tokenizer, &spec.prompt.tokens, begun.as_deref()) {
        Some((format, start)) => parser.with_reasoning(format, start),
        None => parser,
    }
}

fn logprob_of(tokenizer: &Tokenizer, entry: &TokenLogprobs, offset: usize) -> TokenLogprob {
    let candidate = |&(id, logprob): &(TokenId, f32)| Candidate { id, bytes: tokenizer.token_bytes(id), logprob };
    TokenLogprob {
        token: TokenText { id: entry.token, bytes: tokenizer.token_bytes(entry.token), offset },
        logprob: entry.logprob,
        rank: entry.rank,
        entropy: entry.entropy,
        top: entry.top.iter().map(candidate).collect(),
    }
}
