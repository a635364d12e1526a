//! What browsers get: a page to try the models, one to compare them, and the reference of the routes. Each is one
//! embedded document that loads nothing from elsewhere; its policy forbids browsers to do so.

use axum::Json;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};

use crate::api::errors::ApiError;
use crate::api::ids::random_id;
use crate::api::openapi::document;
use crate::api::state::AppState;

const HOME: &str = include_str!("../pages/home.html");
const DOCS: &str = include_str!("../pages/docs.html");
const COMPARE: &str = include_str!("../pages/compare.html");
/// What the pages' scripts share, and what stands in them where it goes.
const SCRIPT: &str = include_str!("../pages/shared.js");
const SHARED: &str = "SHARED";
/// Stands in the pages where each answer's own word goes: only what carries that word runs.
const NONCE: &str = "NONCE";

pub(crate) async fn home() -> Response {
    page(HOME)
}

pub(crate) async fn docs() -> Response {
    page(DOCS)
}

pub(crate) async fn compare() -> Response {
    page(COMPARE)
}

pub(crate) async fn openapi(State(state): State<AppState>) -> Response {
    Json(document(&state)).into_response()
}

fn page(source: &'static str) -> Response {
    let policy = random_id("").and_then(|nonce| {
        let policy = format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        HeaderValue::try_from(policy).ok().map(|policy| (nonce, policy))
    });
    let Some((nonce, policy)) = policy else {
        return ApiError::no_randomness().into_response();
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, source.replace(SHARED, SCRIPT).replace(NONCE, &nonce)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_loads_nothing_from_elsewhere() {
        for source in [HOME, DOCS, COMPARE].map(|source| source.replace(SHARED, SCRIPT)) {
            assert_eq!(source.matches(SCRIPT).count(), 1, "the common script, once");
            for loads in ["src=", "@import", "url(", "<link", "<img", "<iframe", "import("] {
                assert!(!source.contains(loads), "{loads}");
            }
            let addresses = source.match_indices("://").count();
            assert_eq!(addresses, 0, "no address but this server's own");
            assert_eq!(source.matches(NONCE).count(), 2, "one style and one script");
            assert!(!source.contains(" style="), "the policy would block it");
        }
    }

    #[test]
    fn every_answer_has_a_word_of_its_own() {
        let policies = [page(HOME), page(HOME)].map(|page| page.headers()[CONTENT_SECURITY_POLICY].clone());
        assert_ne!(policies[0], policies[1]);
    }
}
