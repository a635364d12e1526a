//! From pieces of choices to what is written: what every kind of answer has, and the answers made of choices.

use std::fmt::Debug;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;

use passerelle_engine::Usage;
use passerelle_models::ModelDigest;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::chat_answer::{self, Content};
use super::completion_answer;
use super::request::{Output, StreamUsage};
use super::usage::{ReasoningTokens, usage_json};
use crate::api::delta::{Choice, ChoiceDelta};
use crate::api::errors::ApiError;
use crate::api::launch::LivePrompt;
use crate::api::sse::StreamEnd;
use crate::api::state::AppState;
use crate::gateway::journal::ToldSoFar;
use crate::gateway::{Ledger, PeerReservation};

/// How pieces of choices become an answer. `usage` is what was used so far.
pub(crate) trait AnswerWriter: Debug + Send {
    /// What each prompt used so far, in their order, before `usage` says what they used together. Most answers tell no more
    /// than that.
    fn note_uses(&mut self, _: &mut dyn Iterator<Item = Usage>) {}

    /// What a stream begins with, before the first token.
    fn opening(&mut self, usage: Usage) -> Vec<Part>;

    /// What a piece adds to a stream.
    fn part(&mut self, piece: ChoiceDelta, usage: Usage) -> Vec<Part>;

    /// What a stream ends with, after the last piece.
    fn closing(&mut self, usage: Usage) -> Vec<Part>;

    /// What a stream ends with if it cannot go on.
    fn failure(&mut self, error: &ApiError) -> Vec<Part>;

    /// Takes a piece of an answer that is not streamed.
    fn join(&mut self, piece: ChoiceDelta);

    /// The answer that the joined pieces make.
    fn whole(&mut self, usage: Usage) -> Value;

    fn stream_end(&self) -> StreamEnd;

    /// What is found out once every choice is over and before the end is written. Most answers need nothing.
    fn conclude<'a>(&'a mut self, _: &'a mut [LivePrompt]) -> Option<Conclusion<'a>> {
        None
    }
}

/// See [`AnswerWriter::conclude`].
pub(crate) type Conclusion<'a> = Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send + 'a>>;

/// One event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// The event's name, where the stream has names.
    pub(crate) event: Option<&'static str>,
    /// JSON on one line.
    pub(crate) data: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    Chat,
    Completion,
}

/// What every part of one answer repeats.
#[derive(Debug, Clone)]
pub(crate) struct AnswerHead {
    pub(crate) id: String,
    /// Seconds since the Unix epoch.
    pub(crate) created: u64,
    pub(crate) model: String,
    /// `None`: another server ran it, and only that one could know.
    pub(crate) fingerprint: Option<String>,
    /// The tier that it was served in, which may be another one than was asked for. `None` as above.
    pub(crate) tier: Option<&'static str>,
    pub(crate) billing: Option<Billing>,
}

/// What another gateway wants to know beside the usage, and finds in it.
#[derive(Debug, Clone)]
pub(crate) struct Billing {
    ledger: Ledger,
    model: String,
    answers: NonZeroU32,
    origin: PeerReservation,
    digest: Option<ModelDigest>,
    /// Of each prompt, where another gateway runs it.
    told: Vec<ToldSoFar>,
    site: Option<String>,
    /// Of each prompt, so far: each is a bill of its own.
    uses: Vec<Usage>,
}

impl Billing {
    /// `None` for whoever is no gateway. `digest`: of the model, as far as it is known here. `told`: of each prompt.
    pub(crate) fn of(
        state: &AppState,
        (model, digest): (&str, Option<ModelDigest>),
        (origin, answers): (Option<PeerReservation>, NonZeroU32),
        told: impl Iterator<Item = ToldSoFar>,
    ) -> Option<Self> {
        let (origin, told) = (origin?, told.collect());
        let (ledger, model, site) = (state.ledger().clone(), model.to_owned(), state.config().site.clone());
        Some(Self { ledger, model, answers, origin, digest, told, site, uses: Vec::new() })
    }

    /// As whoever ran it says, else as it is known here; none where prompts of one list ran on several.
    fn digest(&self) -> Option<ModelDigest> {
        let said = |told: &ToldSoFar| told.get().and_then(|told| told.model_digest.parse().ok()).or(self.digest);
        let mut each = self.told.iter().map(said);
        let first = each.next()?;
        first.filter(|_| each.all(|other| other == first))
    }

    /// Whoever asks again is told what was billed before, and not what it would have cost.
    fn json(&self) -> Value {
        let Self { ledger, model, answers, origin, .. } = self;
        let bill = |(used, part): (&Usage, u32)| ledger.billed_in_all(&origin.part(part), model, *answers, *used);
        let billed = self.uses.iter().zip(0..).map(bill).fold(0, u64::saturating_add);
        // The site is this one, though others run it: here is the entry that the other ledger is matched with.
        json!({"billed_gpu_ms": billed as f64 / 1e3, "model_digest": self.digest(), "site": self.site})
    }
}

/// An answer made of choices, of chat or of completions.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    kind: AnswerKind,
    head: AnswerHead,
    /// What every chunk begins with: an object in JSON without its last brace. Written once, because each token of a stream
    /// repeats it.
    chunk_head: String,
    output: Output,
    /// Of each choice of a streamed chat.
    contents: Vec<Content>,
    reasoning: ReasoningTokens,
    /// Those of a whole answer, so far.
    choices: Vec<Choice>,
}

impl AnswerWriter for Answer {
    fn note_uses(&mut self, uses: &mut dyn Iterator<Item = Usage>) {
        if let Some(billing) = &mut self.head.billing {
            billing.uses.clear();
            billing.uses.extend(uses);
        }
    }

    fn opening(&mut self, usage: Usage) -> Vec<Part> {
        match self.kind {
            AnswerKind::Chat => {
                let choices = self.contents.iter().enumerate();
                let roles = choices.map(|(index, content)| [chat_answer::role_choice(index, *content)]);
                roles.map(|role| self.chunk_of(&role, usage)).collect()
            }
            AnswerKind::Completion => Vec::new(),
        }
    }

    fn part(&mut self, piece: ChoiceDelta, usage: Usage) -> Vec<Part> {
        self.reasoning.count(&piece);
        let part = match self.kind {
            AnswerKind::Chat => {
                let content = self.content_with(&piece);
                let choice = chat_answer::chunk_choice(&piece, &self.output, content);
                choice.map(|choice| self.chunk_of(&[choice], usage))
            }
            AnswerKind::Completion => {
                completion_answer::chunk_choice(&piece, &self.output).map(|choice| self.chunk_of(&[choice], usage))
            }
        };
        part.into_iter().collect()
    }

    /// Where usage is wanted: a chunk without choices, with the whole usage.
    fn closing(&mut self, usage: Usage) -> Vec<Part> {
        if self.stream_usage() == StreamUsage::Never {
            return Vec::new();
        }
        vec![self.chunk::<Value>(&[], Some(&self.usage(usage)))]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Part> {
        vec![Part { event: None, data: error.body().to_string() }]
    }

    fn join(&mut self, piece: ChoiceDelta) {
        self.reasoning.count(&piece);
        if self.choices.len() <= piece.index {
            self.choices.resize_with(piece.index + 1, Choice::default);
        }
        self.choices[piece.index].push(piece.delta);
    }

    fn whole(&mut self, usage: Usage) -> Value {
        let choices = std::mem::take(&mut self.choices);
        let (object, choices): (_, Vec<Value>) = match self.kind {
            AnswerKind::Chat => ("chat.completion", enumerate(&choices, &self.output, chat_answer::whole_choice)),
            AnswerKind::Completion => {
                ("text_completion", enumerate(&choices, &self.output, completion_answer::whole_choice))
            }
        };
        let mut whole = self.head.to_json(self.kind, object);
        whole.insert("choices".to_owned(), Value::Array(choices));
        whole.insert("usage".to_owned(), self.usage(usage));
        Value::Object(whole)
    }

    fn stream_end(&self) -> StreamEnd {
        StreamEnd::DoneMark
    }
}

impl Answer {
    pub(crate) fn new(kind: AnswerKind, head: AnswerHead, output: Output, num_choices: usize) -> Self {
        let object = match kind {
            AnswerKind::Chat => "chat.completion.chunk",
            AnswerKind::Completion => "text_completion",
        };
        let mut chunk_head = json_text(&head.to_json(kind, object));
        chunk_head.pop();
        let contents = vec![Content::at_start(&output); num_choices];
        Self { kind, head, chunk_head, output, contents, reasoning: ReasoningTokens::default(), choices: Vec::new() }
    }

    /// What the chunks of a choice have said once this piece is said too.
    fn content_with(&mut self, piece: &ChoiceDelta) -> Content {
        let Some(content) = self.contents.get_mut(piece.index) else { return Content::Text };
        *content = content.with(&piece.delta);
        *content
    }

    fn chunk_of(&self, choices: &[impl Serialize], usage: Usage) -> Part {
        match self.stream_usage() {
            StreamUsage::Never => self.chunk(choices, None),
            StreamUsage::AtEnd => self.chunk(choices, Some(&Value::Null)),
            StreamUsage::Continuous => self.chunk(choices, Some(&self.usage(usage))),
        }
    }

    fn chunk<T: Serialize>(&self, choices: &[T], usage: Option<&Value>) -> Part {
        let (head, choices) = (self.chunk_head.as_str(), json_text(choices));
        let data = match usage {
            None => [head, ",\"choices\":", &choices, "}"].concat(),
            Some(usage) => [head, ",\"choices\":", &choices, ",\"usage\":", &json_text(usage), "}"].concat(),
        };
        Part { event: None, data }
    }

    fn usage(&self, usage: Usage) -> Value {
        let mut shown = usage_json(usage, &self.reasoning);
        if let Some(billing) = &self.head.billing {
            shown["passerelle"] = billing.json();
        }
        shown
    }

    fn stream_usage(&self) -> StreamUsage {
        self.output.stream.map_or(StreamUsage::Never, |options| options.usage)
    }
}

impl AnswerHead {
    /// Only chat says how it was served.
    pub(super) fn to_json(&self, kind: AnswerKind, object: &str) -> Map<String, Value> {
        let mut head = Map::new();
        head.insert("id".to_owned(), json!(self.id));
        head.insert("object".to_owned(), json!(object));
        head.insert("created".to_owned(), json!(self.created));
        head.insert("model".to_owned(), json!(self.model));
        head.insert("system_fingerprint".to_owned(), json!(self.fingerprint));
        if kind == AnswerKind::Chat {
            head.insert("service_tier".to_owned(), json!(self.tier));
        }
        head
    }
}

/// Whatever is written here has a form in JSON: no map in it has keys that are no strings.
fn json_text<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn enumerate(choices: &[Choice], output: &Output, render: fn(usize, &Choice, &Output) -> Value) -> Vec<Value> {
    choices.iter().enumerate().map(|(index, choice)| render(index, choice, output)).collect()
}
