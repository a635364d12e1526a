//! `/v1/models`: what is served.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use passerelle_models::{EncoderOutput, ModelDigest};
use serde_json::{Value, json};

use super::authenticate;
use crate::api::causes::{fill_rate_limit_headers, model_not_found};
use crate::api::errors::ApiError;
use crate::api::state::{AppState, ServedModel};
use crate::gateway::router::ModelEntry;
use crate::gateway::{Alias, Caller};

pub(crate) async fn list(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let caller = authenticate(&state, request.headers())?;
    let serving = state.serving();
    let seen = serving.router.models().filter(|entry| state.sees(&caller, &entry.name));
    let aliases = serving.aliases().filter_map(|(name, alias)| alias_json(&state, &caller, (name, alias)));
    let data: Vec<Value> = seen.map(|entry| model_json(&state, entry)).chain(aliases).collect();
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
    let model = entry.map(|entry| model_json(&state, entry));
    let alias = || alias_json(&state, &caller, (name.as_str(), serving.alias(&name)?));
    let shown = model.or_else(alias).ok_or_else(|| model_not_found(&name))?;
    Ok(Json(shown).into_response())
}

/// As the first of the models that it stands for; the room is that of the smallest. `None` if the caller sees none.
fn alias_json(state: &AppState, caller: &Caller, (name, alias): (&str, &Alias)) -> Option<Value> {
    let serving = state.serving();
    let seen: Vec<&ModelEntry> = alias
        .models()
        .filter(|model| state.sees(caller, model))
        .filter_map(|model| serving.router.model(model))
        .collect();
    let mut shown = model_json(state, seen.first()?);
    shown["id"] = json!(name);
    shown["max_model_len"] = json!(seen.iter().filter_map(|entry| max_model_len(state, &entry.name)).min());
    shown["digest"] = json!(digest(state, &seen));
    shown["alias_of"] = seen.iter().map(|entry| entry.name.as_str()).collect();
    Some(shown)
}

/// `null` for an alias of several checkpoints.
fn digest(state: &AppState, seen: &[&ModelEntry]) -> Option<ModelDigest> {
    match seen {
        [only] => state.model(&only.name).map(|model| model.digest),
        _ => None,
    }
}

fn model_json(state: &AppState, entry: &ModelEntry) -> Value {
    let model = state.model(&entry.name);
    json!({
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "passerelle",
        "max_model_len": max_model_len(state, &entry.name),
        "digest": model.map(|model| model.digest),
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
