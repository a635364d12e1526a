//! `/v1/models`: what is served.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use passerelle_models::EncoderOutput;
use serde_json::{Value, json};

use super::authenticate;
use crate::api::causes::{fill_rate_limit_headers, model_not_found};
use crate::api::errors::ApiError;
use crate::api::state::{AppState, ServedModel};
use crate::gateway::router::ModelEntry;

pub(crate) async fn list(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let caller = authenticate(&state, request.headers())?;
    let serving = state.serving();
    let seen = serving.router.models().filter(|entry| state.sees(&caller, &entry.name));
    let data: Vec<Value> = seen.map(|entry| model_json(&state, entry)).collect();
    let mut response = Json(json!({"object": "list", "data": data})).into_response();
    fill_rate_limit_headers(response.headers_mut(), &state.ledger().headroom(&caller, None));
    Ok(response)
}

pub(crate) async fn retrieve(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = authenticate(&state, request.headers())?;
    // A name that is not UTF-8 names no model.
    let Path(name) = name.map_err(|_| model_not_found(request.uri().path()))?;
    let serving = state.serving();
    let entry = serving.router.model(&name).filter(|entry| state.sees(&caller, &entry.name));
    let entry = entry.ok_or_else(|| model_not_found(&name))?;
    Ok(Json(model_json(&state, entry)).into_response())
}

fn model_json(state: &AppState, entry: &ModelEntry) -> Value {
    let model = state.model(&entry.name);
    json!({
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "passerelle",
        "max_model_len": max_model_len(state, &entry.name),
        "capabilities": model.map(|model| capabilities(model)),
    })
}

/// `null` for a model of which only another server knows it.
fn max_model_len(state: &AppState, name: &str) -> Option<usize> {
    match state.model(name) {
        Some(model) => Some(model.max_model_len),
        None => state.serving().remote(name)?.max_model_len,
    }
}

/// What the model can be asked for, named after the routes.
fn capabilities(model: &ServedModel) -> Vec<&'static str> {
    match model.encoder.as_deref().map(|encoder| &encoder.output) {
        None if model.text.template.is_some() => vec!["chat", "completions"],
        None => vec!["completions"],
        Some(EncoderOutput::Embedding(_)) => vec!["embeddings", "rerank", "score"],
        Some(EncoderOutput::Scores(scores)) if scores.labels.len() == 1 => vec!["rerank", "score", "classify"],
        Some(EncoderOutput::Scores(_)) => vec!["classify"],
    }
}
