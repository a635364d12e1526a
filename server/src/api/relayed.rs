//! One choice of an answer that an upstream gives: its events made into the same pieces that an engine's become.

use std::collections::VecDeque;
use std::sync::Arc;

use passerelle_engine::Usage;

use super::delta::{AnswerEnd, Delta};
use super::errors::ApiError;
use super::meter::PromptMeter;
use super::wire::answer::AnswerKind;
use super::wire::relayed::{BadChunk, Chunk, read_chunk};
use super::wire::request::Output;
use crate::gateway::journal::EntryEnd;
use crate::gateway::{Failure, Relay};
use crate::text::{AddSpecialTokens, SpecialTokens, TextModel};

/// A choice on its way from an upstream. Dropping it closes the connection and settles what came so far.
#[derive(Debug)]
pub(crate) struct RelayedChoice {
    /// `None` once it is settled: at its end where the client gets what comes, before the end is written; else when all of the
    /// client's answer is known to be whole, or not.
    relay: Option<Relay>,
    is_over: bool,
    /// Nothing of it has been given to anybody.
    is_unread: bool,
    reader: ChoiceReader,
    meter: PromptMeter,
    sent: Sent,
    pending: VecDeque<Delta>,
}

/// When a client gets what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    AsItComes,
    /// All of it, or nothing: then it pays nothing.
    AtTheEnd,
}

impl Sent {
    pub(crate) fn of(output: &Output) -> Self {
        if output.stream.is_some() { Self::AsItComes } else { Self::AtTheEnd }
    }
}

/// Makes pieces of events and counts them.
#[derive(Debug)]
pub(crate) struct ChoiceReader {
    kind: AnswerKind,
    prompt: PromptCount,
    /// What was reserved; no upstream makes a client pay more.
    max_tokens: u32,
    /// Counts an answer whose upstream does not.
    text: Option<Arc<TextModel>>,
    generated: u32,
    /// Of answer so far, as it is kept.
    num_bytes: u64,
    told: Option<Usage>,
    end: Option<AnswerEnd>,
    /// Characters of answer so far.
    offset: usize,
}

/// More than those of any text; a single token may have as many as are spared.
const BYTES_OF_TOKEN: u64 = 64;
const BYTES_TO_SPARE: u64 = 64 * 1024;

/// How long the prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PromptCount {
    /// By the model's own tokenizer, or because it was written in tokens.
    Exact(u32),
    /// Nobody here can tell: the upstream's word counts up to what was reserved, and the estimate where it says none.
    Estimated { about: u32, at_most: u32 },
}

impl PromptCount {
    pub(crate) fn about(self) -> u32 {
        match self {
            Self::Exact(tokens) | Self::Estimated { about: tokens, .. } => tokens,
        }
    }

    pub(crate) fn exact(self) -> Option<u32> {
        match self {
            Self::Exact(tokens) => Some(tokens),
            Self::Estimated { .. } => None,
        }
    }
}

impl RelayedChoice {
    /// `first`: the pieces of the event that the relay began with.
    pub(crate) fn new(relay: Relay, reader: ChoiceReader, first: Chunk, meter: PromptMeter, sent: Sent) -> Self {
        let mut choice =
            Self { relay: Some(relay), is_over: false, is_unread: true, reader, meter, sent, pending: VecDeque::new() };
        choice.take(first);
        choice
    }

    /// The next piece; `None` after `Finished`. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Delta>, ApiError> {
        while self.pending.is_empty() {
            let Some(relay) = self.relay.as_mut().filter(|_| !self.is_over) else { return Ok(None) };
            match relay.next().await {
                Some(Ok(data)) => match self.reader.read(&data) {
                    Ok(chunk) => self.take(chunk),
                    Err(failure) => return Err(self.blame(&failure)),
                },
                Some(Err(failure)) => return Err(self.fail(&failure)),
                None => self.finish()?,
            }
        }
        if let Some(relay) = &mut self.relay
            && let Err(unwritten) = relay.covers().await
        {
            self.settle();
            return Err(unwritten.into());
        }
        let piece = self.pending.pop_front();
        self.is_unread = false;
        if matches!(&piece, Some(Delta::Text(part)) if !part.text.is_empty()) {
            self.meter.token(0);
        }
        Ok(piece)
    }

    /// What came so far, then what was settled.
    pub(crate) fn usage(&self) -> Usage {
        self.reader.used()
    }

    fn take(&mut self, chunk: Chunk) {
        self.reader.count(&chunk);
        if let Some(relay) = &mut self.relay {
            relay.record(self.reader.used());
            if let Some(told) = chunk.told {
                relay.told(told);
            }
        }
        if self.reader.runs_on() {
            self.cut_off();
        } else {
            self.pending.extend(chunk.pieces);
        }
    }

    /// It is not listened to any longer, and what it said last is nobody's.
    fn cut_off(&mut self) {
        if let Some(relay) = &self.relay {
            self.meter.ran_on(relay.replica());
        }
        self.end(self.reader.end.unwrap_or(AnswerEnd::Length));
    }

    /// The upstream says nothing more.
    fn finish(&mut self) -> Result<(), ApiError> {
        let Some(reason) = self.reader.end else {
            return Err(self.blame(&Failure::Broke("the answer ended too early".to_owned())));
        };
        if let Some(relay) = &self.relay {
            relay.praise();
        }
        self.end(reason);
        Ok(())
    }

    fn end(&mut self, reason: AnswerEnd) {
        let end = match reason {
            AnswerEnd::Length | AnswerEnd::Quota => EntryEnd::Length,
            AnswerEnd::Stop | AnswerEnd::ToolCalls | AnswerEnd::ContentFilter => EntryEnd::Stop,
        };
        if let Some(relay) = &mut self.relay {
            relay.end(end);
        }
        self.is_over = true;
        if self.sent == Sent::AsItComes {
            self.settle();
        }
        self.pending.push_back(Delta::Finished(reason));
    }

    fn blame(&mut self, failure: &Failure) -> ApiError {
        if let Some(relay) = &self.relay {
            relay.blame(failure);
        }
        self.fail(failure)
    }

    fn fail(&mut self, failure: &Failure) -> ApiError {
        if let Some(relay) = &self.relay {
            self.meter.broke_off(relay.replica(), failure);
        }
        let error = ApiError::from(failure);
        self.fall_with(&error);
        error
    }

    /// The client's answer fails as a whole: what it does not get it does not pay, unless that is its own doing.
    pub(crate) fn fall_with(&mut self, error: &ApiError) {
        if let Some(relay) = self.relay.as_mut().filter(|_| error.is_our_fault()) {
            match self.sent {
                Sent::AsItComes if !self.is_unread => relay.end(EntryEnd::Failed),
                Sent::AtTheEnd | Sent::AsItComes => relay.make_free(),
            }
        }
        self.settle();
    }

    /// The one way out of a relay, so that what is measured is what is settled.
    fn settle(&mut self) {
        let Some(relay) = self.relay.take() else { return };
        self.meter.ended(relay.close());
    }
}

impl Drop for RelayedChoice {
    fn drop(&mut self) {
        self.settle();
    }
}

impl ChoiceReader {
    pub(crate) fn new(kind: AnswerKind, prompt: PromptCount, max_tokens: u32, text: Option<Arc<TextModel>>) -> Self {
        Self { kind, prompt, max_tokens, text, generated: 0, num_bytes: 0, told: None, end: None, offset: 0 }
    }

    pub(crate) fn read(&self, data: &str) -> Result<Chunk, Failure> {
        read_chunk(self.kind, data, self.offset).map_err(|bad| {
            let why = match bad {
                BadChunk::NotAChunk => "it sent an event that is no part of an answer",
                BadChunk::SaysError => "it says that it failed",
            };
            Failure::Broke(why.to_owned())
        })
    }

    fn count(&mut self, chunk: &Chunk) {
        for piece in &chunk.pieces {
            let text = match piece {
                Delta::Text(part) => part.text.as_str(),
                Delta::Reasoning(text) => text.as_str(),
                Delta::ToolCall(part) => part.arguments.as_str(),
                Delta::Prompt(_) | Delta::Finished(_) => continue,
            };
            self.offset += text.chars().count();
            self.num_bytes += text.len() as u64;
            self.generated = self.generated.saturating_add(self.tokens_of(text));
        }
        self.end = chunk.end.or(self.end);
        self.told = chunk.usage.or(self.told);
    }

    /// Whether it goes on past all that it can have been asked for. Not exactly: pieces are tokenised apart from one another
    /// here, and one that nobody here can tokenise is a token, however long.
    fn runs_on(&self) -> bool {
        let asked = u64::from(self.max_tokens);
        u64::from(self.generated) > 2 * asked + 64 || self.num_bytes > BYTES_OF_TOKEN * asked + BYTES_TO_SPARE
    }

    /// A piece is a token at least; a tokenizer sees where it is more.
    fn tokens_of(&self, piece: &str) -> u32 {
        let encode = |text: &Arc<TextModel>| {
            text.tokenizer.encode(piece, AddSpecialTokens::No, SpecialTokens::Parse).map(|tokens| tokens.len()).ok()
        };
        let counted = self.text.as_ref().and_then(encode).unwrap_or(1);
        u32::try_from(counted).unwrap_or(u32::MAX).max(1)
    }

    /// What was used so far: as the upstream tells it once it does, else as counted here.
    fn used(&self) -> Usage {
        let told = self.told.unwrap_or_default();
        let prompt_tokens = match (self.prompt, told.prompt_tokens) {
            (PromptCount::Exact(counted), _) => counted,
            (PromptCount::Estimated { about, .. }, 0) => about,
            (PromptCount::Estimated { at_most, .. }, told) => told.min(at_most),
        };
        let generated = if self.told.is_some() { told.generated_tokens } else { self.generated };
        Usage {
            prompt_tokens,
            cached_tokens: told.cached_tokens.min(prompt_tokens),
            generated_tokens: generated.min(self.max_tokens),
            ..Usage::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn used(prompt: PromptCount, events: &[Value]) -> (u32, u32, u32) {
        let mut reader = ChoiceReader::new(AnswerKind::Chat, prompt, 10, None);
        for event in events {
            let chunk = reader.read(&event.to_string()).unwrap();
            reader.count(&chunk);
        }
        let Usage { prompt_tokens, cached_tokens, generated_tokens, .. } = reader.used();
        (prompt_tokens, cached_tokens, generated_tokens)
    }

    fn piece() -> Value {
        json!({"choices": [{"delta": {"content": "word"}}]})
    }

    fn usage(prompt: u32, completion: u32) -> Value {
        json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})
    }

    #[test]
    fn an_upstream_that_tells_its_usage_is_believed_up_to_what_was_reserved() {
        let estimated = PromptCount::Estimated { about: 100, at_most: 400 };
        assert_eq!(used(estimated, &[piece(), usage(7, 3)]), (7, 0, 3));
        assert_eq!(used(estimated, &[piece(), usage(1_000_000_000, 3)]), (400, 0, 3));
        assert_eq!(used(PromptCount::Exact(8), &[piece(), usage(7, 3)]), (8, 0, 3), "our count of the input leads");
        assert_eq!(used(PromptCount::Exact(8), &[usage(7, 1_000_000)]), (8, 0, 10));
    }

    #[test]
    fn an_answer_that_broke_off_is_counted_here() {
        assert_eq!(used(PromptCount::Estimated { about: 100, at_most: 400 }, &[piece(), piece()]), (100, 0, 2));
        assert_eq!(used(PromptCount::Exact(8), &vec![piece(); 50]), (8, 0, 10));
    }

    #[test]
    fn an_answer_runs_on_that_is_longer_than_pieces_of_what_was_asked_for_can_make_it() {
        let runs_on = |max_tokens, words: usize, bytes: usize| {
            let mut reader = ChoiceReader::new(AnswerKind::Chat, PromptCount::Exact(8), max_tokens, None);
            let piece = json!({"choices": [{"delta": {"content": "x".repeat(bytes)}}]}).to_string();
            for _ in 0..words {
                reader.count(&reader.read(&piece).unwrap());
            }
            reader.runs_on()
        };
        assert!(!runs_on(10, 84, 4) && runs_on(10, 85, 4), "pieces");
        assert!(!runs_on(10, 2, 33_088) && runs_on(10, 2, 33_089), "bytes of pieces that nobody here can tokenise");
        assert!(!runs_on(u32::MAX, 1_000, 4));
    }
}
