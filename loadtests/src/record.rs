//! What is kept of each request, in times since the run's start.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::clock::Instant;
use crate::generate::Answer;
use crate::schema;

#[derive(Debug, Clone)]
pub struct Record {
    /// Which request of the plan, counted over the whole scenario.
    pub index: usize,
    /// How often closed users had asked it before.
    pub lap: usize,
    /// Which turn of its conversation.
    pub turn: usize,
    /// Which entry of the scenario's traffic.
    pub traffic: usize,
    /// When it should have been sent. Latency counts from here, so that a generator or a server that stalls does not
    /// hide the wait of those who queued behind (coordinated omission).
    pub intended: Duration,
    pub sent: Duration,
    /// Each event that carried text.
    pub events: Vec<Duration>,
    pub end: Duration,
    pub ending: Ending,
    pub delivery: Delivery,
    pub usage: Option<Usage>,
    pub text: String,
}

/// How an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Delivery {
    #[default]
    Streamed,
    /// In one piece, so that nothing is known of its tokens' times.
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    Finished,
    /// The generator closed the connection, as the scenario says.
    Left,
    /// A status other than 200.
    Refused {
        status: u16,
        code: Option<String>,
    },
    /// A poison request was refused with a 4xx, as it should be.
    RefusedAsExpected {
        status: u16,
    },
    Failed(ErrorKind),
    /// It was on its way when the run was stopped.
    Interrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    Connect,
    /// The generator may open no more connections.
    OutOfFiles,
    Timeout,
    /// The connection ended before the answer.
    StreamCut,
    /// An error event in the stream.
    StreamError,
    Malformed,
    /// It ended well and said nothing, though every scenario asks for at least one token.
    EmptyAnswer,
    /// A poison request was answered as if nothing were wrong, or with a 5xx.
    PoisonAccepted,
    /// The answer does not fit the JSON schema's form.
    NotJson,
    /// The generator had too much in flight.
    NotSent,
}

/// What the sender wants to see.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Expect {
    #[default]
    Answer,
    /// JSON that fits this schema.
    Json { schema: Arc<Value> },
    /// A refusal with a 4xx.
    Refusal,
}

impl Record {
    pub fn new(place: Place, start: Instant, answer: Answer) -> Self {
        let since = |instant: Instant| instant.saturating_duration_since(start);
        Self {
            index: place.index,
            lap: place.lap,
            turn: place.turn,
            traffic: place.traffic,
            intended: place.intended,
            sent: since(answer.sent),
            events: answer.events.into_iter().map(since).collect(),
            end: since(answer.end),
            ending: answer.ending,
            delivery: answer.delivery,
            usage: answer.usage,
            text: answer.text,
        }
    }

    /// What makes it comparable with another run of the same plan.
    pub fn place(&self) -> (usize, usize, usize) {
        (self.index, self.lap, self.turn)
    }

    pub fn is_finished(&self) -> bool {
        self.ending == Ending::Finished
    }

    pub fn time_to_first_token(&self) -> Option<Duration> {
        match self.delivery {
            Delivery::Streamed => Some(self.events.first()?.saturating_sub(self.intended)),
            Delivery::Whole => None,
        }
    }

    pub fn end_to_end(&self) -> Duration {
        self.end.saturating_sub(self.intended)
    }

    /// The server's count, or else the number of events.
    pub fn output_tokens(&self) -> u64 {
        self.usage.map_or(self.events.len() as u64, |usage| usage.output_tokens)
    }

    /// From the first event to the end, over the tokens after the first; `None` below two tokens. Not to the last
    /// event: the last tokens may have no text. Nor of an answer in one piece.
    pub fn time_per_output_token(&self) -> Option<Duration> {
        let (first, tokens) = (self.events.first()?, self.output_tokens());
        (tokens >= 2 && self.delivery == Delivery::Streamed)
            .then(|| self.end.saturating_sub(*first).div_f64((tokens - 1) as f64))
    }

    pub fn inter_token_gaps(&self) -> impl Iterator<Item = Duration> {
        self.events.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// How late the generator sent it.
    pub fn lateness(&self) -> Duration {
        self.sent.saturating_sub(self.intended)
    }
}

/// Where in the plan a request stands.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub index: usize,
    pub lap: usize,
    pub turn: usize,
    pub traffic: usize,
    pub intended: Duration,
}

impl Expect {
    /// The ending, seen with this expectation.
    pub(crate) fn judge(&self, ending: Ending, finish_reason: Option<&str>, text: &str) -> Ending {
        match (self, ending) {
            (Self::Refusal, Ending::Refused { status, .. }) if (400..500).contains(&status) => {
                Ending::RefusedAsExpected { status }
            }
            (Self::Refusal, Ending::Finished | Ending::Refused { .. }) => Ending::Failed(ErrorKind::PoisonAccepted),
            (Self::Json { schema }, Ending::Finished)
                if finish_reason != Some("length") && !schema::is_kept_by(schema, text) =>
            {
                Ending::Failed(ErrorKind::NotJson)
            }
            (_, ending) => ending,
        }
    }
}

impl Ending {
    /// As the scenario has it.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(self, Self::Finished | Self::Left | Self::RefusedAsExpected { .. })
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Finished => formatter.write_str("finished"),
            Self::Left => formatter.write_str("left"),
            Self::Refused { status, code: Some(code) } => write!(formatter, "refused {status} {code}"),
            Self::Refused { status, code: None } => write!(formatter, "refused {status}"),
            Self::RefusedAsExpected { status } => write!(formatter, "poison refused {status}"),
            Self::Failed(kind) => formatter.write_str(kind.name()),
            Self::Interrupted => formatter.write_str("in flight when the run was stopped"),
        }
    }
}

impl ErrorKind {
    /// It says nothing of the server.
    pub fn is_of_generator(self) -> bool {
        matches!(self, Self::OutOfFiles | Self::NotSent)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "cannot connect",
            Self::OutOfFiles => "the generator may open no more connections",
            Self::Timeout => "timeout",
            Self::StreamCut => "stream cut",
            Self::StreamError => "error in the stream",
            Self::Malformed => "malformed answer",
            Self::EmptyAnswer => "empty answer",
            Self::PoisonAccepted => "poison not refused",
            Self::NotJson => "answer is not the asked JSON",
            Self::NotSent => "not sent: too much in flight",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poison_request_must_be_refused_with_a_4xx() {
        let judged = |ending| Expect::Refusal.judge(ending, None, "");
        assert_eq!(judged(Ending::Refused { status: 400, code: None }), Ending::RefusedAsExpected { status: 400 });
        assert_eq!(judged(Ending::Refused { status: 500, code: None }), Ending::Failed(ErrorKind::PoisonAccepted));
        assert_eq!(judged(Ending::Finished), Ending::Failed(ErrorKind::PoisonAccepted));
    }

    #[test]
    fn a_structured_answer_must_have_its_keys_unless_it_was_cut() {
        let schema = Arc::new(serde_json::json!({"type": "object", "required": ["name"]}));
        let expect = Expect::Json { schema };
        assert_eq!(expect.judge(Ending::Finished, Some("stop"), r#"{"name":1}"#), Ending::Finished);
        assert_eq!(expect.judge(Ending::Finished, Some("length"), r#"{"na"#), Ending::Finished);
        let not_json = Ending::Failed(ErrorKind::NotJson);
        assert_eq!(expect.judge(Ending::Finished, Some("stop"), r#"{"other":1}"#), not_json);
    }
}
