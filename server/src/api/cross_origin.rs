//! Which web pages may call this server (CORS). None, unless an operator lists their origins.

use std::time::Duration;

use axum::http::Method;
use axum::http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

/// How long a browser may remember that a page is welcome.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// What pages may read of an answer beside its body.
const EXPOSED: [&str; 13] = [
    "x-request-id",
    "openai-processing-ms",
    "x-passerelle-ignored-fields",
    "x-should-retry",
    "retry-after-ms",
    "x-ratelimit-limit-name",
    "x-ratelimit-limit-scope",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

/// Origins as browsers write them: `https://app.example`.
#[derive(Debug, Clone, Default)]
pub struct AllowedOrigins {
    origins: Vec<HeaderValue>,
}

/// An origin that no browser could send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an origin")]
pub struct InvalidOrigin(String);

impl AllowedOrigins {
    pub fn new(origins: impl IntoIterator<Item = String>) -> Result<Self, InvalidOrigin> {
        let parse = |origin: String| HeaderValue::from_str(&origin).map_err(|_| InvalidOrigin(origin));
        Ok(Self { origins: origins.into_iter().map(parse).collect::<Result<_, _>>()? })
    }

    pub(crate) fn contains(&self, origin: &HeaderValue) -> bool {
        self.origins.contains(origin)
    }

    /// Answers what browsers ask before they send a page's request. `None`: no page is welcome.
    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        if self.origins.is_empty() {
            return None;
        }
        let exposed = EXPOSED.into_iter().map(HeaderName::from_static).chain([RETRY_AFTER]);
        let layer = CorsLayer::new()
            .allow_origin(AllowOrigin::list(self.origins.clone()))
            .allow_methods(AllowMethods::list([Method::GET, Method::POST, Method::DELETE]))
            // SDKs send headers of their own; a key travels in one of them, never in a cookie.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(ExposeHeaders::list(exposed))
            .max_age(MAX_AGE);
        Some(layer)
    }
}
