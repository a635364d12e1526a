//! What a worker's engine says of its requests.

use passerelle_engine::{
    ConstraintError, Event as EngineEvent, EventFeed, FeedError, FinishReason, RequestError, TokenEvent, TokenLogprobs,
};

use super::{Cause, Event, Failed, Finished, Logprobs, Malformed, Position, PromptLogprobs, Reason, Token, event};

/// A worker said what no worker says. Its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::workers) enum Violation {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error("it speaks of a request that it does not have")]
    UnknownCall,
    #[error("it speaks of a model that it does not have")]
    UnknownModel,
}

/// In the order in which they came.
pub(in crate::workers) fn feed_events(events: Vec<Event>, feed: &mut EventFeed) -> Result<(), Violation> {
    for event in events {
        match event.what.ok_or(Malformed("event"))? {
            event::What::PromptLogprobs(PromptLogprobs { positions }) => {
                let entry = |position: Position| position.logprobs.map(TokenLogprobs::try_from).transpose();
                feed.prompt_logprobs(positions.into_iter().map(entry).collect::<Result<_, _>>()?)?;
            }
            event::What::Token(Token { choice, token, logprobs }) => {
                let logprobs = logprobs.map(TokenLogprobs::try_from).transpose()?;
                feed.token(TokenEvent { choice, token, logprobs })?;
            }
            event::What::Finished(Finished { choice, reason }) => {
                let reason = Reason::try_from(reason).map_err(|_| Malformed("reason"))?;
                feed.finish(choice, reason.into())?;
            }
            event::What::Failed(failed) => feed.fail(RequestError::try_from(failed)?),
            event::What::Vector(_) => return Err(Malformed("vector").into()),
        }
    }
    Ok(())
}

impl From<EngineEvent> for Event {
    fn from(event: EngineEvent) -> Self {
        let what = match event {
            EngineEvent::PromptLogprobs(entries) => {
                let position = |entry: Option<TokenLogprobs>| Position { logprobs: entry.map(Logprobs::from) };
                event::What::PromptLogprobs(PromptLogprobs { positions: entries.into_iter().map(position).collect() })
            }
            EngineEvent::Token(TokenEvent { choice, token, logprobs }) => {
                event::What::Token(Token { choice, token, logprobs: logprobs.map(Logprobs::from) })
            }
            EngineEvent::Finished { choice, reason, .. } => {
                event::What::Finished(Finished { choice, reason: Reason::from(reason).into() })
            }
            EngineEvent::Failed { error, .. } => event::What::Failed(error.into()),
        };
        Self { what: Some(what) }
    }
}

impl From<TokenLogprobs> for Logprobs {
    fn from(entry: TokenLogprobs) -> Self {
        let TokenLogprobs { token, logprob, rank, entropy, top } = entry;
        let (top_tokens, top_logprobs) = top.into_iter().unzip();
        Self { token, logprob, rank, entropy, top_tokens, top_logprobs }
    }
}

impl TryFrom<Logprobs> for TokenLogprobs {
    type Error = Malformed;

    fn try_from(sent: Logprobs) -> Result<Self, Malformed> {
        let Logprobs { token, logprob, rank, entropy, top_tokens, top_logprobs } = sent;
        if top_tokens.len() != top_logprobs.len() {
            return Err(Malformed("top_logprobs"));
        }
        // One that is infinite is that of a token that was ruled out.
        if logprob.is_nan() || entropy.is_nan() || top_logprobs.iter().any(|logprob| logprob.is_nan()) {
            return Err(Malformed("logprob"));
        }
        Ok(Self { token, logprob, rank, entropy, top: top_tokens.into_iter().zip(top_logprobs).collect() })
    }
}

impl From<FinishReason> for Reason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Aborted => Self::Aborted,
        }
    }
}

impl From<Reason> for FinishReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Stop => Self::Stop,
            Reason::Length => Self::Length,
            Reason::Aborted => Self::Aborted,
        }
    }
}

impl From<RequestError> for Failed {
    fn from(error: RequestError) -> Self {
        let cause = match &error {
            RequestError::Step(_) => Cause::Step,
            RequestError::NotFinite => Cause::NotFinite,
            RequestError::NothingAllowed => Cause::NothingAllowed,
            RequestError::Constraint(ConstraintError::TooComplex) => Cause::GrammarTooComplex,
            RequestError::Constraint(ConstraintError::Lost) => Cause::GrammarLost,
            RequestError::ShuttingDown => Cause::ShuttingDown,
            RequestError::WorkerLost => Cause::Lost,
            RequestError::Panic => Cause::Panic,
            RequestError::Memory(_) => Cause::Memory,
            RequestError::Device(_) => Cause::Device,
        };
        let detail = match error {
            RequestError::Step(detail) | RequestError::Memory(detail) | RequestError::Device(detail) => detail,
            _ => String::new(),
        };
        Self { cause: cause.into(), detail }
    }
}

impl TryFrom<Failed> for RequestError {
    type Error = Malformed;

    fn try_from(sent: Failed) -> Result<Self, Malformed> {
        Ok(match Cause::try_from(sent.cause).map_err(|_| Malformed("cause"))? {
            Cause::Step => Self::Step(sent.detail),
            Cause::Panic => Self::Panic,
            Cause::Memory => Self::Memory(sent.detail),
            Cause::Device => Self::Device(sent.detail),
            Cause::NotFinite => Self::NotFinite,
            Cause::NothingAllowed => Self::NothingAllowed,
            Cause::GrammarTooComplex => Self::Constraint(ConstraintError::TooComplex),
            Cause::GrammarLost => Self::Constraint(ConstraintError::Lost),
            // The worker shuts down; the server does not.
            Cause::ShuttingDown | Cause::Lost => Self::WorkerLost,
        })
    }
}
