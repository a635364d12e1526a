//! From pieces of choices to JSON, for either route.

use passerelle_engine::Usage;
use serde_json::{Map, Value, json};

use super::request::{Output, StreamUsage};
use super::usage::usage_json;
use super::{chat_answer, completion_answer};
use crate::api::delta::{Choice, ChoiceDelta};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    Chat,
    Completion,
}

/// What every part of one answer repeats.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) kind: AnswerKind,
    pub(crate) id: String,
    /// Seconds since the Unix epoch.
    pub(crate) created: u64,
    pub(crate) model: String,
    /// `None`: another server ran it, and only that one could know.
    pub(crate) fingerprint: Option<String>,
    pub(crate) output: Output,
}

impl Answer {
    /// The chunk that opens a stream, before the first token. `usage`: so far, as in every chunk.
    pub(crate) fn opening(&self, usage: Usage) -> Option<Value> {
        match self.kind {
            AnswerKind::Chat => Some(self.chunk_of(vec![chat_answer::role_choice()], usage)),
            AnswerKind::Completion => None,
        }
    }

    pub(crate) fn chunk(&self, piece: &ChoiceDelta, usage: Usage) -> Option<Value> {
        let choice = match self.kind {
            AnswerKind::Chat => chat_answer::chunk_choice(piece, &self.output),
            AnswerKind::Completion => completion_answer::chunk_choice(piece, &self.output),
        }?;
        Some(self.chunk_of(vec![choice], usage))
    }

    /// The last chunk, where usage is wanted: no choices, the whole usage.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Option<Value> {
        if self.stream_usage() == StreamUsage::Never {
            return None;
        }
        let mut chunk = self.chunk_of(Vec::new(), usage);
        chunk["usage"] = usage_json(usage);
        Some(chunk)
    }

    pub(crate) fn whole(&self, choices: &[Choice], usage: Usage) -> Value {
        let (object, choices): (_, Vec<Value>) = match self.kind {
            AnswerKind::Chat => ("chat.completion", enumerate(choices, &self.output, chat_answer::whole_choice)),
            AnswerKind::Completion => {
                ("text_completion", enumerate(choices, &self.output, completion_answer::whole_choice))
            }
        };
        let mut whole = self.head(object);
        whole.insert("choices".to_owned(), Value::Array(choices));
        whole.insert("usage".to_owned(), usage_json(usage));
        Value::Object(whole)
    }

    fn chunk_of(&self, choices: Vec<Value>, usage: Usage) -> Value {
        let object = match self.kind {
            AnswerKind::Chat => "chat.completion.chunk",
            AnswerKind::Completion => "text_completion",
        };
        let mut chunk = self.head(object);
        chunk.insert("choices".to_owned(), Value::Array(choices));
        match self.stream_usage() {
            StreamUsage::Never => None,
            StreamUsage::AtEnd => chunk.insert("usage".to_owned(), Value::Null),
            StreamUsage::Continuous => chunk.insert("usage".to_owned(), usage_json(usage)),
        };
        Value::Object(chunk)
    }

    fn stream_usage(&self) -> StreamUsage {
        self.output.stream.map_or(StreamUsage::Never, |options| options.usage)
    }

    fn head(&self, object: &str) -> Map<String, Value> {
        let head = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        });
        match head {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

fn enumerate(choices: &[Choice], output: &Output, render: fn(usize, &Choice, &Output) -> Value) -> Vec<Value> {
    choices.iter().enumerate().map(|(index, choice)| render(index, choice, output)).collect()
}
