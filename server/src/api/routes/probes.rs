//! What orchestrators ask of a server: alive, ready, how it goes.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api::errors::{ApiError, ErrorKind};
use crate::api::state::AppState;
use crate::gateway::Shelf;
use crate::gateway::health::Health;
use crate::gateway::shelf::ShelfState;

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Alive: the process answers.
pub(crate) async fn health() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// Ready: requests are admitted, every model that is served has a replica that gets somewhere, and where none is, not all
/// have failed.
pub(crate) async fn ready(State(state): State<AppState>) -> Result<Response, ApiError> {
    state.readiness().admit()?;
    if has_failed_models_alone(&state) {
        let message = "No model can be loaded; an operator sees why in `passerelle model list`.";
        return Err(ApiError::new(ErrorKind::ModelFailed, message));
    }
    if state.serving().router.is_ready() {
        return Ok(Json(json!({"status": "ready"})).into_response());
    }
    Err(ApiError::new(ErrorKind::NoReplica, "A served model has no replica that makes progress."))
}

/// A folder without any model waits for its first one, and is no failure.
fn has_failed_models_alone(state: &AppState) -> bool {
    let rows = state.shelf().map(Shelf::rows).unwrap_or_default();
    let all_failed = !rows.is_empty() && rows.iter().all(|row| row.state == ShelfState::Failed);
    all_failed && state.serving().router.models().next().is_none()
}

pub(crate) async fn metrics(State(state): State<AppState>) -> Response {
    if let Some(shelf) = state.shelf() {
        state.metrics().models_hold(shelf.memory());
    }
    let (serving, now) = (state.serving(), state.clock().now());
    state.metrics().upstreams_are(serving.router.replicas().filter_map(|replica| {
        let side = replica.as_upstream()?;
        Some((replica.model(), side.name(), replica.observe(now) == Health::Ready))
    }));
    let text = state.metrics().render(&state.ledger().figures());
    ([(CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response()
}
