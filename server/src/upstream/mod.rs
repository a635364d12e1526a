//! Other servers as replicas: the HTTP side of [`UpstreamDoor`]. Whatever answers OpenAI's API over HTTP/1.1 will do.
//!
//! Nothing is sent to anybody but the configured addresses, no redirect is followed, and the key stands in one header
//! and nowhere else.

mod answer;
mod events;
mod exchange;
mod lines;
mod watch;

use std::time::Duration;

use futures_util::stream;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Request, Uri};

use crate::gateway::upstream::{Call, CallRoute, Events, Failure, UpstreamDoor};
use exchange::Exchange;
use lines::{Lines, Question};

pub use watch::watch;

/// One model on another server.
#[derive(Debug, Clone)]
pub struct Upstream {
    lines: Lines,
    kind: UpstreamKind,
    address: Address,
    /// JSON: what that server calls the model, quoted.
    model: String,
    authorization: Option<HeaderValue>,
    timeouts: Timeouts,
}

/// What an upstream understands beside OpenAI's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamKind {
    #[default]
    OpenAi,
    /// Keeps books itself: it is told under which reservation, for which account and how urgently a request is made.
    Passerelle,
}

const RESERVATION: HeaderName = HeaderName::from_static("x-passerelle-reservation");
const ACCOUNT: HeaderName = HeaderName::from_static("x-passerelle-account");

/// How long an upstream may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the sending of a request to the first event of its answer.
    pub first_byte: Duration,
    /// Between two signs of life in an answer.
    pub idle: Duration,
}

/// Where a server's routes are.
#[derive(Debug, Clone)]
struct Address {
    chat: Uri,
    completions: Uri,
    health: Uri,
    /// Its name, for requests.
    host: HeaderValue,
}

/// What an [`Upstream`] is made of.
#[derive(Debug)]
pub struct UpstreamSettings<'a> {
    pub kind: UpstreamKind,
    /// `http://HOST:PORT` or `https://...`, with or without `/v1` at its end.
    pub url: &'a str,
    /// What that server calls the model.
    pub model: &'a str,
    pub key: Option<&'a str>,
    /// Begins with `/`. Answered with a success by a server that is well.
    pub health_path: &'a str,
    pub timeouts: Timeouts,
}

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("`{0}` is not a URL; write http://HOST:PORT or https://HOST")]
    Url(String),
    #[error("the key holds characters that no HTTP header can carry")]
    Key,
}

impl Upstream {
    pub fn new(settings: &UpstreamSettings<'_>) -> Result<Self, UpstreamError> {
        let address = Address::of(settings.url, settings.health_path)?;
        let authorization = settings.key.map(bearer).transpose()?;
        let model = serde_json::Value::from(settings.model).to_string();
        let timeouts = settings.timeouts;
        let lines = Lines::new(address.health.clone(), timeouts.connect);
        Ok(Self { lines, kind: settings.kind, address, model, authorization, timeouts })
    }

    /// Whether it is alive and takes our key.
    pub async fn probe(&self) -> Result<(), Failure> {
        let mut request = Request::get(origin_form(&self.address.health)).header(HOST, &self.address.host);
        if let Some(key) = &self.authorization {
            request = request.header(AUTHORIZATION, key);
        }
        let request = request.body(Full::default()).map_err(|error| Failure::Misconfigured(error.to_string()))?;
        exchange::answers(&self.lines, request, self.timeouts).await
    }

    fn request(&self, call: &Call) -> Result<Question, Failure> {
        let uri = match call.route {
            CallRoute::Chat => &self.address.chat,
            CallRoute::Completions => &self.address.completions,
        };
        let mut request = Request::post(origin_form(uri)).header(HOST, &self.address.host);
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.authorization {
            request = request.header(AUTHORIZATION, key);
        }
        let on_behalf = call.on_behalf.as_ref().filter(|_| self.kind == UpstreamKind::Passerelle);
        let mut tier = String::new();
        if let Some(on_behalf) = on_behalf {
            request = request.header(RESERVATION, &*on_behalf.reservation).header(ACCOUNT, on_behalf.account.as_str());
            tier = format!("\"service_tier\":\"{}\",", on_behalf.tier);
        }
        // The rest of the object follows its first brace.
        let rest = call.body.strip_prefix('{').unwrap_or_default();
        let body = format!("{{\"model\":{},{tier}{rest}", self.model);
        request.body(Full::from(body)).map_err(|error| Failure::Misconfigured(error.to_string()))
    }
}

impl UpstreamDoor for Upstream {
    fn call(&self, call: &Call) -> Events {
        match self.request(call) {
            Ok(question) => Box::pin(Exchange::new(self.lines.clone(), question, self.timeouts)),
            Err(failure) => Box::pin(stream::once(async { Err(failure) })),
        }
    }
}

impl Address {
    fn of(url: &str, health_path: &str) -> Result<Self, UpstreamError> {
        let root = url.trim_end_matches('/').trim_end_matches("/v1");
        let at = |path: &str| {
            let uri: Uri = format!("{root}{path}").parse().map_err(|_| UpstreamError::Url(url.to_owned()))?;
            let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
            if is_http && uri.host().is_some() { Ok(uri) } else { Err(UpstreamError::Url(url.to_owned())) }
        };
        let (chat, completions, health) = (at("/v1/chat/completions")?, at("/v1/completions")?, at(health_path)?);
        let port = health.port().map_or_else(String::new, |port| format!(":{port}"));
        let host = format!("{}{port}", health.host().unwrap_or_default());
        let host = HeaderValue::try_from(host).map_err(|_| UpstreamError::Url(url.to_owned()))?;
        Ok(Self { chat, completions, health, host })
    }
}

/// As a server is asked that is no proxy.
fn origin_form(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |path| path.as_str())
}

fn bearer(key: &str) -> Result<HeaderValue, UpstreamError> {
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| UpstreamError::Key)?;
    // From here on it is never printed.
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
