//! What a replica that is another server is asked, what it says, and how it can fail. How that travels is the business
//! of whoever implements [`UpstreamDoor`]; this room only passes it along.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;

use super::account::AccountPath;
use super::breaker::Fingerprint;

/// A checked request of OpenAI's shape, ready to be sent to any upstream of its model, more than once if need be.
#[derive(Debug, Clone)]
pub struct Call {
    pub route: CallRoute,
    /// A JSON object, of at least one member, without `model`: each upstream has its own name for that. Asks for a stream.
    pub body: Arc<str>,
    /// For whom, told to upstreams that keep books themselves.
    pub on_behalf: Option<OnBehalf>,
}

/// The reservation that pays for a call here, the same for every try, and its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnBehalf {
    pub reservation: Arc<str>,
    pub account: AccountPath,
    /// `service_tier`, in the words of the API: how urgent it is here, which beyond a grant is less than was asked for.
    pub tier: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallRoute {
    Chat,
    Completions,
}

/// What an upstream says: the data of its events, in order. Ends after the last one, or after a failure. Dropping it
/// closes the connection, which aborts the request over there.
pub type Events = Pin<Box<dyn Stream<Item = Result<String, Failure>> + Send>>;

/// What the gateway may do with an upstream.
pub trait UpstreamDoor: Send + Sync + fmt::Debug {
    /// Nothing is sent before the stream is first polled.
    fn call(&self, call: &Call) -> Events;
}

/// Why an upstream gave no answer, or broke off in one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection: it never saw the request.
    #[error("it cannot be reached")]
    Unreachable,
    #[error("it broke off: {0}")]
    Broke(String),
    #[error("it said nothing for too long")]
    TimedOut,
    /// It wants to be asked later.
    #[error("it is busy")]
    Busy { retry_after: Option<Duration> },
    /// A limit over there has no room for this request; smaller ones may fit.
    #[error("what it grants has no room for this request")]
    NoRoom { retry_after: Option<Duration> },
    /// It does not take our key, or does not know the model under the configured name.
    #[error("it refuses what is configured for it: {0}")]
    Misconfigured(String),
    /// The request's own fault, in the upstream's words.
    #[error("{}", .0.why)]
    Refused(Box<Objection>),
}

/// What an upstream finds wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objection {
    pub parameter: Option<String>,
    /// Prompt and answer are more than it holds.
    pub exceeds_context: bool,
    pub why: String,
}

impl Call {
    /// Of what the client asks for; on whose behalf is no part of it.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut hasher = DefaultHasher::new();
        (self.route, &self.body).hash(&mut hasher);
        Fingerprint(hasher.finish())
    }
}

impl Failure {
    /// Whether it says something about the upstream, and not about this request or this moment.
    pub fn is_illness(&self) -> bool {
        !matches!(self, Self::Busy { .. } | Self::NoRoom { .. } | Self::Refused(_))
    }

    /// Whether the request itself may have brought the upstream down: it was taken, and then nothing came.
    pub fn may_be_poison(&self) -> bool {
        matches!(self, Self::Broke(_) | Self::TimedOut)
    }

    /// For metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Broke(_) => "broke",
            Self::TimedOut => "timed_out",
            Self::Busy { .. } => "busy",
            Self::NoRoom { .. } => "no_room",
            Self::Misconfigured(_) => "misconfigured",
            Self::Refused(_) => "refused",
        }
    }
}
