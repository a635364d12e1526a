//! Other rooms' refusals and failures, as answers. The second half of the table in [`super::errors`].

use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::{HeaderName, HeaderValue};
use passerelle_engine::{ConstraintError, RequestError};

use super::errors::{ApiError, ErrorKind, echoed};
use super::fields::invalid;
use super::reached_limit::ReachedLimit;
use crate::batches::BatchError;
use crate::gateway::journal::JournalUnavailable;
use crate::gateway::ledger::{LedgerClosed, Retry, Unpriced};
use crate::gateway::router::RouteError;
use crate::gateway::shelf::{HandError, HeldUp, NotTogether};
use crate::gateway::{
    AuthError, DataError, DirectoryError, Failure, Objection, RateLimitState, Refusal, ReplicaRefusal, WindowState,
};
use crate::text::{GrammarError, TextError};

/// OpenAI's clients retry a 429 by themselves, unless the answer says not to.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// What is further away than this is no matter of a rate: whoever retries meanwhile retries in vain.
pub(super) const WORTH_A_RETRY: Duration = Duration::from_secs(60);

/// One answer whatever was wrong with the key: only the log knows which.
impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        tracing::debug!(cause = error.label(), "a key was refused");
        let message = match error {
            AuthError::Missing => "You did not provide an API key. Send it as `Authorization: Bearer KEY`.",
            _ => "Incorrect API key provided.",
        };
        Self::new(ErrorKind::InvalidApiKey, message)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let exhausted = || {
            Self::new(ErrorKind::QuotaExhausted, format!("Quota exhausted: {refusal}."))
                .header(X_SHOULD_RETRY, HeaderValue::from_static("false"))
        };
        let error = match refusal.retry {
            Retry::After(wait) if wait > WORTH_A_RETRY => exhausted().retry_after(wait),
            Retry::After(wait) => {
                Self::new(ErrorKind::RateLimited, format!("Rate limit reached: {refusal}.")).retry_after(wait)
            }
            Retry::Spent => exhausted(),
            Retry::Never => Self::new(ErrorKind::ExceedsLimit, format!("Request too large: {refusal}.")),
        };
        let error = error.limit(ReachedLimit::from(&refusal));
        let scope = HeaderValue::from_str(refusal.scope.as_str()).expect("a path is made of printable characters");
        error
            .header(HeaderName::from_static("x-ratelimit-limit-name"), HeaderValue::from_static(refusal.limit.as_str()))
            .header(HeaderName::from_static("x-ratelimit-limit-scope"), scope)
    }
}

impl From<LedgerClosed> for ApiError {
    fn from(closed: LedgerClosed) -> Self {
        match closed {
            LedgerClosed::Unwritable(error) => error.into(),
            LedgerClosed::ClockLeapt => Self::new(
                ErrorKind::LedgerUnavailable,
                "The server's clock leapt ahead, so that nobody knows what is left of a budget; an operator must look at it.",
            ),
        }
    }
}

impl From<JournalUnavailable> for ApiError {
    fn from(_: JournalUnavailable) -> Self {
        Self::new(ErrorKind::LedgerUnavailable, "Usage cannot be written down at the moment, so nothing is answered.")
    }
}

/// Trying again changes nothing until somebody states a price.
impl From<Unpriced> for ApiError {
    fn from(error: Unpriced) -> Self {
        Self::new(ErrorKind::ExceedsLimit, format!("{}.", capitalised(&error.to_string())))
    }
}

impl From<DirectoryError> for ApiError {
    fn from(error: DirectoryError) -> Self {
        use DirectoryError as Cause;
        let kind = match error {
            Cause::UnknownAccount(_) | Cause::UnknownKey(_) | Cause::NoSuchLimit(..) => ErrorKind::NotFound,
            Cause::AccountExists(_)
            | Cause::AccountInUse(_)
            | Cause::NameTaken { .. }
            | Cause::AmbiguousKey(_)
            | Cause::KeyRevoked(_)
            | Cause::TooMany(..) => ErrorKind::Conflict,
            Cause::Path(_) | Cause::Quota(_) | Cause::BadName(_) | Cause::NamedTwice(_) => ErrorKind::InvalidValue,
            Cause::Data(DataError::CopyInMemory) => ErrorKind::StorageFull,
            Cause::Data(_) | Cause::Sql(_) | Cause::Random(_) => {
                tracing::error!(%error, "accounts and keys cannot be read or changed");
                return Self::new(ErrorKind::Internal, "Accounts and keys cannot be read or changed at the moment.");
            }
        };
        Self::new(kind, format!("{}.", capitalised(&error.to_string())))
    }
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::UnknownModel(name) => model_not_found(&name),
            RouteError::NoReplicaReady { retry_after, .. } => {
                let refused = Self::new(ErrorKind::NoReplica, format!("{}.", capitalised(&error.to_string())));
                match retry_after {
                    Some(wait) => refused.retry_after(wait),
                    None => refused,
                }
            }
        }
    }
}

impl From<ReplicaRefusal> for ApiError {
    fn from(error: ReplicaRefusal) -> Self {
        match error {
            ReplicaRefusal::QueueFull => Self::new(ErrorKind::QueueFull, "The queue is full; try again shortly."),
            ReplicaRefusal::Closed => Self::new(ErrorKind::Draining, "The server is shutting down."),
            ReplicaRefusal::Dead | ReplicaRefusal::Away => {
                Self::new(ErrorKind::NoReplica, "No replica of this model is ready.")
            }
            ReplicaRefusal::ExceedsContext(why) => {
                Self::new(ErrorKind::ContextLengthExceeded, format!("{}.", capitalised(&why)))
            }
            ReplicaRefusal::Refused { parameter, why } => {
                let refused = Self::new(ErrorKind::InvalidValue, format!("{}.", capitalised(&why)));
                match parameter {
                    Some(parameter) => refused.param(parameter),
                    None => refused,
                }
            }
        }
    }
}

/// Whatever an upstream does, a client sees one of these; only a request's own fault is told in the upstream's words.
impl From<&Failure> for ApiError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::TimedOut => {
                Self::new(ErrorKind::UpstreamTimeout, "The server that runs this model did not answer in time.")
            }
            Failure::Unreachable | Failure::Broke(_) | Failure::Misconfigured(_) => {
                Self::new(ErrorKind::UpstreamFailed, "The server that runs this model failed.")
            }
            Failure::Busy { retry_after } => {
                later(Self::new(ErrorKind::QueueFull, "The server that runs this model is busy."), *retry_after)
            }
            Failure::NoRoom { retry_after } => {
                let message = "What the server that runs this model grants to this one has no room for the request.";
                later(Self::new(ErrorKind::QueueFull, message), *retry_after)
            }
            Failure::Refused(objection) => {
                let Objection { parameter, exceeds_context, why } = objection.as_ref();
                let kind = if *exceeds_context { ErrorKind::ContextLengthExceeded } else { ErrorKind::InvalidValue };
                let refused = Self::new(kind, format!("The server that runs this model refuses the request: {why}"));
                match parameter {
                    Some(parameter) => refused.param(parameter),
                    None => refused,
                }
            }
        }
    }
}

/// When another server takes it, as far as it said.
fn later(error: ApiError, wait: Option<Duration>) -> ApiError {
    match wait {
        Some(wait) if wait > WORTH_A_RETRY => {
            error.retry_after(wait).header(X_SHOULD_RETRY, HeaderValue::from_static("false"))
        }
        Some(wait) => error.retry_after(wait),
        None => error,
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::ShuttingDown => Self::new(ErrorKind::Draining, "The server is shutting down."),
            RequestError::WorkerLost => {
                Self::new(ErrorKind::WorkerLost, "The process that ran this request is gone; try again.")
            }
            RequestError::NotFinite => {
                Self::new(ErrorKind::EngineFailed, format!("{}.", capitalised(&error.to_string())))
            }
            // The request's own fields leave no way on.
            RequestError::NothingAllowed | RequestError::Constraint(ConstraintError::TooComplex) => {
                Self::new(ErrorKind::InvalidValue, format!("{}.", capitalised(&error.to_string())))
            }
            RequestError::Constraint(ConstraintError::Lost) => {
                tracing::error!(%error, "a grammar failed a request");
                Self::new(ErrorKind::EngineFailed, "The grammar of this request could not be followed.")
            }
            RequestError::Step(_) | RequestError::Panic | RequestError::Memory(_) | RequestError::Device(_) => {
                tracing::error!(detail = %error, "a step failed a request");
                Self::new(ErrorKind::EngineFailed, "The step that ran this request failed.")
            }
        }
    }
}

/// An operator must know whose files are at fault.
pub(crate) fn text_failed(model: &str, error: TextError) -> ApiError {
    if !error.is_request_fault() {
        tracing::error!(model, label = error.label(), %error, "the model's own files fail a request");
    }
    error.into()
}

/// What a model's own files may be at fault for goes through [`text_failed`].
impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        if !error.is_request_fault() {
            return Self::new(ErrorKind::Internal, "The model's text files cannot serve this request.");
        }
        let kind = match error {
            TextError::TemplateRefused(_) | TextError::NoTemplate => ErrorKind::TemplateRefused,
            TextError::PromptTooLong { .. } | TextError::TooLong { .. } => ErrorKind::ContextLengthExceeded,
            _ => ErrorKind::InvalidValue,
        };
        Self::new(kind, format!("{}.", capitalised(&error.to_string())))
    }
}

impl From<BatchError> for ApiError {
    fn from(error: BatchError) -> Self {
        let kind = match &error {
            BatchError::NoFile | BatchError::NoBatch => ErrorKind::NotFound,
            BatchError::FileInUse | BatchError::Over(_) => ErrorKind::Conflict,
            BatchError::FileTooLarge(_) => ErrorKind::BodyTooLarge,
            BatchError::TooManyFiles(_) | BatchError::TooManyBatches(_) => ErrorKind::ExceedsLimit,
            BatchError::Full => ErrorKind::StorageFull,
            full if full.is_for_want_of_room() => {
                tracing::error!(%error, "files and batches");
                return Self::new(ErrorKind::StorageFull, "The server's disk has no room for this at the moment.");
            }
            BatchError::NoRandomness | BatchError::Disk(_) => {
                tracing::error!(%error, "files and batches");
                return Self::new(ErrorKind::Internal, "The server failed on this request.");
            }
        };
        Self::new(kind, format!("{}.", capitalised(&error.to_string())))
    }
}

/// `param`: the field that asked for the grammar.
pub(crate) fn grammar_refused(error: &GrammarError, model: &str, param: &str) -> ApiError {
    if error.is_request_fault() {
        return invalid(param, error);
    }
    tracing::error!(model, %error, "a grammar could not be compiled");
    ApiError::new(ErrorKind::Internal, "The server failed on this request.")
}

pub(crate) fn model_not_found(name: &str) -> ApiError {
    let message = format!("The model `{}` does not exist. `GET /v1/models` lists the models.", echoed(name));
    ApiError::new(ErrorKind::ModelNotFound, message).param("model")
}

/// On its way from the disk, or waiting for room. `wait`: until it could be used.
pub(crate) fn model_loading(name: &str, wait: Duration) -> ApiError {
    let message = format!("The model `{}` is not in memory yet; it is being brought there.", echoed(name));
    ApiError::new(ErrorKind::ModelLoading, message).param("model").retry_after(wait)
}

/// One that is on the disk and stays there for now; `wait`: how long at least.
pub(crate) fn model_has_no_room(name: &str, why: HeldUp, wait: Duration) -> ApiError {
    /// Somebody has to unpin a model first.
    const UNTIL_A_PERSON_ACTS: Duration = Duration::from_secs(60);
    let (why, wait) = match why {
        HeldUp::ByPins => ("models that are pinned leave it no room", UNTIL_A_PERSON_ACTS),
        HeldUp::ByUse => ("models in use leave it no room; when they will be done is not known", wait),
    };
    let message = format!("The model `{}` is not in memory: {why}.", echoed(name));
    ApiError::new(ErrorKind::ModelLoading, message).param("model").retry_after(wait)
}

/// Why is told to operators alone: it names files of this machine.
pub(crate) fn model_failed(name: &str) -> ApiError {
    let message =
        format!("The model `{}` cannot be loaded; an operator sees why in `passerelle model list`.", echoed(name));
    ApiError::new(ErrorKind::ModelFailed, message).param("model")
}

impl From<HandError> for ApiError {
    fn from(error: HandError) -> Self {
        match error {
            HandError::Unknown(name) => model_not_found(&name),
            HandError::InUse { .. } | HandError::Pinned(_) | HandError::Loading(_) => {
                Self::new(ErrorKind::Conflict, format!("{}.", capitalised(&error.to_string())))
            }
        }
    }
}

impl From<NotTogether> for ApiError {
    fn from(error: NotTogether) -> Self {
        Self::new(ErrorKind::ExceedsLimit, format!("{}.", capitalised(&error.to_string())))
    }
}

/// A generator was asked for a vector.
pub(crate) fn not_an_encoder(name: &str) -> ApiError {
    unfit_encoder(name, "generates text and gives no vectors", "/v1/chat/completions or /v1/completions")
}

/// An encoder was asked to generate.
pub(crate) fn not_a_generator(name: &str) -> ApiError {
    unfit_encoder(name, "is an encoder and generates no text", "/v1/embeddings, /v1/rerank or /v1/classify")
}

/// The model is not of the kind that the route needs.
pub(crate) fn unfit_encoder(name: &str, what_it_is: &str, routes: &str) -> ApiError {
    let message = format!("The model `{}` {what_it_is}; use {routes}, or another model.", echoed(name));
    ApiError::new(ErrorKind::UnsupportedParameter, message).param("model")
}

/// What is left of an account's rates, in OpenAI's headers.
pub(crate) fn fill_rate_limit_headers(headers: &mut HeaderMap, state: &RateLimitState) {
    let windows = [
        (
            state.requests,
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
        ),
        (state.tokens, ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]),
    ];
    for (window, [limit_name, remaining_name, reset_name]) in windows {
        let Some(WindowState { limit, remaining, reset }) = window else { continue };
        headers.insert(HeaderName::from_static(limit_name), HeaderValue::from(limit));
        headers.insert(HeaderName::from_static(remaining_name), HeaderValue::from(remaining));
        if let Ok(reset) = HeaderValue::from_str(&wait_text(reset)) {
            headers.insert(HeaderName::from_static(reset_name), reset);
        }
    }
}

/// `850ms`, `6.200s`, `6m0s`, `2h0m0s`: as OpenAI writes waits.
fn wait_text(wait: Duration) -> String {
    if wait < Duration::from_secs(1) {
        return format!("{}ms", wait.as_millis());
    }
    let (minutes, seconds) = (wait.as_secs() / 60, wait.as_secs() % 60);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{:.3}s", wait.as_secs_f64()),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::gateway::LimitName;

    fn refusal(retry: Retry) -> ApiError {
        let scope = "lab".parse().unwrap();
        let limit = LimitName::ConcurrentRequests;
        let (model, window) = (None, None);
        Refusal { limit, scope, model, limit_value: 20, current_value: 20, asked: 1, window, retry }.into()
    }

    #[test]
    fn a_refusal_names_its_limit_and_when_to_come_back() {
        let error = refusal(Retry::After(Duration::from_millis(200)));
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert!(error.message().contains("concurrent_requests"), "{}", error.message());
    }

    #[test]
    fn what_is_spent_or_far_away_is_not_worth_a_retry() {
        for retry in [Retry::Spent, Retry::After(Duration::from_secs(61))] {
            let error = refusal(retry);
            assert_eq!((error.status().as_u16(), error.kind()), (429, ErrorKind::QuotaExhausted));
            let response = error.into_response();
            assert_eq!(response.headers()["x-should-retry"], "false");
            assert_eq!(response.headers().contains_key("retry-after"), retry != Retry::Spent);
        }
        assert_eq!(refusal(Retry::After(Duration::from_secs(60))).kind(), ErrorKind::RateLimited);
    }

    #[test]
    fn waits_are_written_as_openai_writes_them() {
        let texts = [850, 6_200, 60_000, 361_000, 7_384_000].map(|ms| wait_text(Duration::from_millis(ms)));
        assert_eq!(texts, ["850ms", "6.200s", "1m0s", "6m1s", "2h3m4s"]);
    }

    #[test]
    fn what_can_never_fit_is_the_callers_mistake() {
        assert_eq!(refusal(Retry::Never).status(), 400);
    }

    #[test]
    fn a_second_copy_in_memory_is_refused_until_later() {
        let response = ApiError::from(DirectoryError::from(DataError::CopyInMemory)).into_response();
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
    }

    #[test]
    fn what_an_engine_refuses_names_its_parameter() {
        let long = ApiError::from(ReplicaRefusal::ExceedsContext("9 tokens".to_owned()));
        assert_eq!(long.kind(), ErrorKind::ContextLengthExceeded);
        assert!(long.body()["error"]["param"].is_null(), "whoever asked knows what the field is called");
        let odd = ApiError::from(ReplicaRefusal::Refused {
            parameter: Some("min_p"),
            why: "min_p is out of range".to_owned(),
        });
        assert_eq!((odd.kind(), &odd.body()["error"]["param"]), (ErrorKind::InvalidValue, &"min_p".into()));
    }

    #[test]
    fn waits_read_like_openais() {
        assert_eq!(wait_text(Duration::from_millis(850)), "850ms");
        assert_eq!(wait_text(Duration::from_millis(6200)), "6.200s");
    }
}
