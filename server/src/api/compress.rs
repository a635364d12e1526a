//! Large plain answers are sent with gzip to clients that take it. Streams are not: each token would wait for the next.

use std::io::{self, Write};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, VARY};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::errors::{ApiError, ErrorKind};
use super::state::AppState;

pub(crate) async fn compress(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let is_welcome = accepts_gzip(request.headers());
    let mut response = next.run(request).await;
    // Only what is whole has a known size.
    let size = response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    if size <= state.config().compress_above_bytes || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    if !is_welcome {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(plain) = axum::body::to_bytes(body, size).await else { return failed().into_response() };
    match state.text_work().run(move || gzip(&plain).map_err(|_| failed())).await {
        Ok(packed) => {
            parts.headers.remove(CONTENT_LENGTH);
            parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            Response::from_parts(parts, Body::from(packed))
        }
        Err(error) => error.into_response(),
    }
}

fn gzip(plain: &Bytes) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish()
}

/// `gzip` by its own entry, or else by that of anything, and not at quality 0.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut by_name, mut by_any) = (None, false);
    let written = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for entry in written.flat_map(|value| value.split(',')) {
        let (coding, quality) = entry.split_once(';').unwrap_or((entry, ""));
        let quality = quality.trim().to_ascii_lowercase();
        let quality = quality.strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
        let is_welcome = quality.is_ok_and(|quality| quality > 0.0);
        match coding.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => by_name = Some(is_welcome),
            "*" => by_any = is_welcome,
            _ => {}
        }
    }
    by_name.unwrap_or(by_any)
}

fn failed() -> ApiError {
    ApiError::new(ErrorKind::Internal, "The server failed on this request.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_only_to_who_takes_it() {
        let accepts = |value: &'static str| {
            accepts_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        for taken in ["gzip", "gzip, deflate, br", "br;q=1.0, gzip;q=0.8", "*", "GZIP", "x-gzip;Q=0.5", "*;q=0, gzip"] {
            assert!(accepts(taken), "{taken}");
        }
        for refused in ["", "identity", "gzip;q=0", "gzip; q=0.0", "br", "gzip;q=often", "gzip;q=0, *", "*;q=0, br"] {
            assert!(!accepts(refused), "{refused}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
