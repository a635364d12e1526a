//! Reads a request's body: JSON, bounded in size and time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::Value;
use tokio::time::timeout;

use super::errors::{ApiError, ErrorKind};
use super::state::{ApiConfig, AppState};
use super::wire::parse_json;

/// Larger bodies are parsed off the async threads.
const MAX_INLINE_BYTES: usize = 64 << 10;

/// How large a body may be, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyBounds {
    pub(crate) max_bytes: usize,
    pub(crate) timeout: Duration,
}

impl BodyBounds {
    pub(crate) fn of(config: &ApiConfig) -> Self {
        Self { max_bytes: config.max_body_bytes, timeout: config.body_timeout }
    }
}

pub(crate) async fn read_json(request: Request, state: &AppState) -> Result<Value, ApiError> {
    let bytes = read_bytes(request, BodyBounds::of(state.config())).await?;
    if bytes.len() <= MAX_INLINE_BYTES {
        return parse_json(&bytes);
    }
    state.text_work().run(move || parse_json(&bytes)).await
}

/// The bytes of a body that says it is JSON.
pub(crate) async fn read_bytes(request: Request, bounds: BodyBounds) -> Result<Bytes, ApiError> {
    check_content_type(request.headers())?;
    check_length(request.headers(), bounds.max_bytes)?;
    let reading = collect(request.into_body(), bounds.max_bytes);
    timeout(bounds.timeout, reading).await.map_err(|_| too_slow(bounds))?
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        let over_limit =
            std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("length limit"));
        if over_limit { too_large(limit) } else { ApiError::new(ErrorKind::InvalidJson, "The body ended too early.") }
    })
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::new(
            ErrorKind::UnsupportedMediaType,
            "Send the body as `Content-Type: application/json`.",
        ));
    }
    // A small body that unpacks to a large one would pass every bound on what is read.
    match headers.get(CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(ApiError::new(ErrorKind::UnsupportedMediaType, "Send the body without `Content-Encoding`."))
        }
        _ => Ok(()),
    }
}

/// A body that says it is too large is refused before a byte of it is read.
fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let stated = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if stated.is_some_and(|stated| stated > limit as u64) { Err(too_large(limit)) } else { Ok(()) }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(ErrorKind::BodyTooLarge, format!("The body is larger than the limit of {limit} bytes."))
}

fn too_slow(bounds: BodyBounds) -> ApiError {
    let seconds = bounds.timeout.as_secs_f64();
    ApiError::new(ErrorKind::BodyTimeout, format!("The body did not arrive within {seconds} seconds."))
}
