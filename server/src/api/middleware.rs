//! Layers that are blind to the body: request ids, the log line, the checks of an open listener, panics.

use std::any::Any;
use std::net::{IpAddr, Ipv6Addr};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{HOST, HeaderName, HeaderValue, ORIGIN};
use axum::http::{HeaderMap, Uri, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::all_routes;
use super::cross_origin::AllowedOrigins;
use super::errors::{ApiError, ErrorKind, ErrorLabel};
use super::ids::random_id;
use super::routes::counted_model;
use super::state::{AppState, BrowserGuard};
use crate::metrics::AnsweredRequest;

const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Names the request in the log and in the answer: with the client's own id if it gave a printable one.
pub(crate) async fn trace(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>();
    let is_matched = |route: &&str| path.is_some_and(|path| path.as_str() == *route);
    let route = all_routes().map(|(path, _)| path).find(is_matched).unwrap_or("unmatched");
    let began = state.clock().now();
    let mut response = next.run(request).await;
    let took_ms = (state.clock().now().saturating_sub(began)).as_millis() as u64;
    let error = response.extensions().get::<ErrorLabel>().map(|label| label.0);
    let status = response.status().as_u16();
    tracing::info!(%method, route, status, error, took_ms, request_id = id.to_str().unwrap_or_default(), "answered");
    let model = counted_model(&response);
    state.metrics().answered(AnsweredRequest { route, status, model });
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id);
    headers.insert(PROCESSING_MS, HeaderValue::from(took_ms));
    response
}

/// An open listener serves this machine's programs, not the pages that its browser shows. A request that two servers could
/// take for two different ones is nobody's.
pub(crate) async fn guard(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if let Err(error) = check_host(request.version(), request.headers()) {
        return error.into_response();
    }
    if state.config().guard == BrowserGuard::LocalOnly
        && let Err(error) = check_local(request.headers(), request.uri(), &state.config().allowed_origins)
    {
        return error.into_response();
    }
    next.run(request).await
}

/// A handler that panicked, without what it said.
pub(crate) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::new(ErrorKind::Internal, "The server failed on this request.").into_response()
}

/// One `Host`, which HTTP/1.1 cannot do without (RFC 9112, 3.2).
fn check_host(version: Version, headers: &HeaderMap) -> Result<(), ApiError> {
    let problem = match headers.get_all(HOST).iter().count() {
        0 if version == Version::HTTP_11 => "HTTP/1.1 asks for a Host header, and the request has none.",
        0 | 1 => return Ok(()),
        _ => "The request has more than one Host header.",
    };
    Err(ApiError::new(ErrorKind::InvalidHost, problem))
}

fn check_local(headers: &HeaderMap, uri: &Uri, welcome: &AllowedOrigins) -> Result<(), ApiError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(uri.authority().map(|name| name.as_str()));
    if !host.is_some_and(is_local) {
        let message = "This server has no API keys and answers only to `localhost`; the Host header names another. \
                       `passerelle key create` makes a key; who starts the server with one may call it anything.";
        return Err(ApiError::new(ErrorKind::ForbiddenHost, message));
    }
    let Some(origin) = headers.get(ORIGIN).filter(|origin| !welcome.contains(origin)) else { return Ok(()) };
    let local =
        origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(|(_, host)| is_local(host));
    if local {
        return Ok(());
    }
    let message = "This server has no API keys and refuses requests from other web origins.";
    Err(ApiError::new(ErrorKind::ForbiddenOrigin, message))
}

/// `localhost` or a loopback address, with or without a port.
fn is_local(authority: &str) -> bool {
    let (host, port) = match authority.rfind(']') {
        Some(end) => authority.split_at(end + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => host.parse().ok(),
    };
    let is_loopback = address.is_some_and(|address| address.to_canonical().is_loopback());
    port_fits && (is_loopback || host.eq_ignore_ascii_case("localhost"))
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(X_REQUEST_ID).filter(|id| is_printable(id.as_bytes()));
    let drawn = || random_id("req_").and_then(|id| HeaderValue::try_from(id).ok());
    given.cloned().or_else(drawn).unwrap_or(HeaderValue::from_static("req_unnamed"))
}

fn is_printable(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_names_are_local() {
        let names = ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8080"];
        for local in names.into_iter().chain(["127.9.9.9:8080", "[::ffff:127.0.0.1]:8080"]) {
            assert!(is_local(local), "{local}");
        }
        let foreign = [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil",
            "",
            "null",
            "localhost:80:80",
            "[::1]evil",
            "[::2]",
            "[::ffff:10.0.0.1]",
            "[127.0.0.1]",
            "localhost:evil",
        ];
        for foreign in foreign {
            assert!(!is_local(foreign), "{foreign}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_answered_without_what_it_said() {
        let response = panicked(Box::new("the secret"));
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("internal_error") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_request_id_is_kept_only_if_short_and_printable() {
        let with = |id: &'static str| HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static(id))]);
        assert_eq!(request_id(&with("abc-1")), "abc-1");
        assert_ne!(request_id(&with("two words")), "two words");
        let long = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::try_from("x".repeat(129)).unwrap())]);
        assert!(request_id(&long).len() < 40);
    }
}
