//! Every way a request can be answered with an error, and the one table that says how: only here is a kind given a status
//! code. What other rooms' errors become is in [`super::causes`].

use std::time::Duration;

use axum::http::header::{HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::reached_limit::ReachedLimit;

pub(super) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// Longest piece of a caller's own text that an error message repeats.
const MAX_ECHOED_CHARS: usize = 64;

/// Why a request is refused or failed. Each kind is one row of [`ErrorKind::row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidJson,
    InvalidType,
    InvalidValue,
    MissingParameter,
    UnknownParameter,
    UnsupportedParameter,
    TemplateRefused,
    ContextLengthExceeded,
    ExceedsLimit,
    InvalidApiKey,
    InsufficientScope,
    InvalidHost,
    IncompleteHead,
    ForbiddenHost,
    ForbiddenOrigin,
    ModelNotFound,
    NotFound,
    NoServer,
    Conflict,
    RouteNotFound,
    MethodNotAllowed,
    HeadTimeout,
    BodyTooLarge,
    BodyTimeout,
    UnsupportedMediaType,
    RateLimited,
    QuotaExhausted,
    Internal,
    EngineFailed,
    QueueFull,
    StorageFull,
    NoReplica,
    WorkerLost,
    ModelLoading,
    ModelFailed,
    LedgerUnavailable,
    Draining,
    RequestTimeout,
    UpstreamFailed,
    UpstreamTimeout,
}

/// How a kind looks on the wire.
#[derive(Debug)]
struct Row {
    status: StatusCode,
    /// OpenAI's error type.
    type_: &'static str,
    /// OpenAI's error code; also the low-cardinality label in logs and metrics.
    code: &'static str,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ErrorKind {
    #[rustfmt::skip]
    fn row(self) -> Row {
        let (status, type_, code) = match self {
            Self::InvalidJson           => (400, INVALID, "invalid_json"),
            Self::InvalidType           => (400, INVALID, "invalid_type"),
            Self::InvalidValue          => (400, INVALID, "invalid_value"),
            Self::MissingParameter      => (400, INVALID, "missing_required_parameter"),
            Self::UnknownParameter      => (400, INVALID, "unknown_parameter"),
            Self::UnsupportedParameter  => (400, INVALID, "unsupported_parameter"),
            Self::TemplateRefused       => (400, INVALID, "chat_template_refused"),
            Self::ContextLengthExceeded => (400, INVALID, "context_length_exceeded"),
            Self::ExceedsLimit          => (400, INVALID, "request_exceeds_limit"),
            Self::InvalidHost           => (400, INVALID, "invalid_host"),
            Self::IncompleteHead        => (400, INVALID, "incomplete_head"),
            Self::InvalidApiKey         => (401, INVALID, "invalid_api_key"),
            Self::InsufficientScope     => (403, INVALID, "insufficient_scope"),
            Self::ForbiddenHost         => (403, INVALID, "forbidden_host"),
            Self::ForbiddenOrigin       => (403, INVALID, "forbidden_origin"),
            Self::ModelNotFound         => (404, INVALID, "model_not_found"),
            Self::NotFound              => (404, INVALID, "not_found"),
            Self::NoServer              => (404, INVALID, "no_server"),
            Self::Conflict              => (409, INVALID, "conflict"),
            Self::RouteNotFound         => (404, INVALID, "unknown_url"),
            Self::MethodNotAllowed      => (405, INVALID, "method_not_allowed"),
            Self::HeadTimeout           => (408, INVALID, "head_timeout"),
            Self::BodyTimeout           => (408, INVALID, "body_timeout"),
            Self::BodyTooLarge          => (413, INVALID, "request_too_large"),
            Self::UnsupportedMediaType  => (415, INVALID, "unsupported_media_type"),
            Self::RateLimited           => (429, "rate_limit_error", "rate_limit_exceeded"),
            Self::QuotaExhausted        => (429, "insufficient_quota", "insufficient_quota"),
            Self::Internal              => (500, SERVER, "internal_error"),
            Self::EngineFailed          => (500, SERVER, "engine_failed"),
            Self::UpstreamFailed        => (502, SERVER, "upstream_failed"),
            Self::UpstreamTimeout       => (504, SERVER, "upstream_timeout"),
            Self::QueueFull             => (503, SERVER, "queue_full"),
            Self::StorageFull           => (503, SERVER, "storage_full"),
            Self::NoReplica             => (503, SERVER, "no_replica"),
            Self::WorkerLost            => (503, SERVER, "worker_lost"),
            Self::ModelLoading          => (503, SERVER, "model_loading"),
            Self::ModelFailed           => (503, SERVER, "model_failed"),
            Self::LedgerUnavailable     => (503, SERVER, "ledger_unavailable"),
            Self::Draining              => (503, SERVER, "draining"),
            Self::RequestTimeout        => (503, SERVER, "request_timeout"),
        };
        let status = StatusCode::from_u16(status).expect("every status in the table above is a three-digit literal");
        Row { status, type_, code }
    }

    /// What 503s tell a client to wait when nothing better is known.
    fn default_retry_after(self) -> Option<Duration> {
        let seconds = match self {
            Self::QueueFull | Self::NoReplica | Self::WorkerLost | Self::ModelLoading => 1,
            Self::StorageFull => 60,
            Self::LedgerUnavailable | Self::Draining | Self::RequestTimeout => 5,
            _ => return None,
        };
        Some(Duration::from_secs(seconds))
    }
}

/// An answer of OpenAI's shape: `{"error":{"message","type","param","code"}}`, and `limit` where a limit refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    kind: ErrorKind,
    message: String,
    param: Option<String>,
    limit: Option<Box<ReachedLimit>>,
    retry_after: Option<Duration>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The body as it is written: under load most answers are refusals, so there is no detour over a [`Value`].
#[derive(Debug, Serialize)]
struct ErrorBody<'a> {
    error: ShownError<'a>,
}

#[derive(Debug, Serialize)]
struct ShownError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    type_: &'static str,
    param: Option<&'a str>,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a ReachedLimit>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retry_after = kind.default_retry_after();
        Self { kind, message: message.into(), param: None, limit: None, retry_after, headers: Vec::new() }
    }

    /// Names the parameter at fault, in the form `messages[0].content`.
    #[must_use]
    pub fn param(mut self, param: impl AsRef<str>) -> Self {
        self.param = Some(echoed(param.as_ref()));
        self
    }

    /// Names `param` instead of what is named, if anything of the request is at fault.
    #[must_use]
    pub(crate) fn at_fault_is(self, param: impl AsRef<str>) -> Self {
        if self.param.is_some() { self.param(param) } else { self }
    }

    /// Tells the error under other names: each first one becomes the second.
    #[must_use]
    pub(crate) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        self.message = renamed(&self.message, names);
        self.param = self.param.map(|param| renamed(&param, names));
        self
    }

    /// Says one sentence more.
    #[must_use]
    pub(crate) fn also(mut self, sentence: &str) -> Self {
        self.message = format!("{} {sentence}", self.message);
        self
    }

    /// The same, if it is told by a limit for which the length of a prompt counts.
    #[must_use]
    pub(crate) fn also_of_prompts(self, sentence: &str) -> Self {
        if self.limit.as_ref().is_some_and(|limit| limit.counts_prompts) { self.also(sentence) } else { self }
    }

    #[must_use]
    pub(crate) fn limit(mut self, reached: ReachedLimit) -> Self {
        self.limit = Some(Box::new(reached));
        self
    }

    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    #[must_use]
    pub fn header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Where something had to be drawn at random.
    pub(crate) fn no_randomness() -> Self {
        Self::new(ErrorKind::Internal, "The system gave no randomness.")
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn status(&self) -> StatusCode {
        self.kind.row().status
    }

    /// Whether the server failed at what it had begun. One that ends, or whose time for an answer is over, has done
    /// what it did.
    pub(crate) fn is_our_fault(&self) -> bool {
        self.status().is_server_error() && !matches!(self.kind, ErrorKind::Draining | ErrorKind::RequestTimeout)
    }

    /// Low-cardinality label for logs and metrics.
    pub fn label(&self) -> &'static str {
        self.kind.row().code
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn body(&self) -> Value {
        json!(self.shown())
    }

    fn shown(&self) -> ErrorBody<'_> {
        let Row { type_, code, .. } = self.kind.row();
        let (param, limit) = (self.param.as_deref(), self.limit.as_deref());
        ErrorBody { error: ShownError { message: &self.message, type_, param, code, limit } }
    }

    fn fill_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(ceil_seconds(wait)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(ceil_millis(wait)));
        }
        if self.kind == ErrorKind::InvalidApiKey {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.shown())).into_response();
        self.fill_headers(response.headers_mut());
        response.extensions_mut().insert(ErrorLabel(self.label()));
        response
    }
}

/// Left in the response's extensions for the trace layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorLabel(pub(crate) &'static str);

impl ErrorLabel {
    pub(crate) fn is(self, kind: ErrorKind) -> bool {
        self.0 == kind.row().code
    }
}

/// A wait in whole seconds, never rounded down: a client that obeys it is not refused again for the same reason.
pub(crate) fn ceil_seconds(wait: Duration) -> u64 {
    let partial = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(partial).max(1)
}

/// The same in milliseconds, which OpenAI's clients prefer.
fn ceil_millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// Each first text becomes the second.
pub(crate) fn renamed(text: &str, names: &[(&str, &str)]) -> String {
    names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A caller's own text, short enough to repeat.
pub(crate) fn echoed(text: &str) -> String {
    if text.chars().count() <= MAX_ECHOED_CHARS {
        return text.to_owned();
    }
    text.chars().take(MAX_ECHOED_CHARS).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_has_openai_shape() {
        let error = ApiError::new(ErrorKind::InvalidValue, "no").param("top_p");
        let expected = json!({"error": {"message": "no", "type": "invalid_request_error", "param": "top_p", "code": "invalid_value"}});
        assert_eq!(error.body(), expected);
    }

    #[tokio::test]
    async fn what_is_sent_is_the_body_to_the_byte() {
        let error = ApiError::new(ErrorKind::InvalidValue, "no");
        let text = error.body().to_string();
        let expected =
            r#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"invalid_value"}}"#;
        assert_eq!(text, expected);
        let response = error.into_response();
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(axum::body::to_bytes(response.into_body(), 1000).await.unwrap(), text);
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let error = ApiError::new(ErrorKind::RateLimited, "wait").retry_after(Duration::from_micros(1_200_100));
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[RETRY_AFTER_MS], "1201");
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let response = ApiError::new(ErrorKind::QueueFull, "full").into_response();
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key(RETRY_AFTER));
    }

    #[test]
    fn a_long_parameter_is_not_repeated_whole() {
        let error = ApiError::new(ErrorKind::UnknownParameter, "no").param("x".repeat(10_000));
        assert!(error.body().to_string().len() < 300);
    }
}
