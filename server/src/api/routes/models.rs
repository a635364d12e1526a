//! `/v1/models`: what is served, or could be.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use passerelle_models::{EncoderOutput, ModelDigest};
use serde_json::{Value, json};

use super::authenticate;
use crate::api::causes::{fill_rate_limit_headers, model_not_found};
use crate::api::errors::ApiError;
use crate::api::state::{AppState, ServedModel};
use crate::gateway::account::Via;
use crate::gateway::shelf::{DiskDigest, ShelfRow, ShelfState};
use crate::gateway::{AccountPath, Alias, Caller, Shelf};

/// Where each model is.
pub(crate) const MODEL_PREFIX: &str = "/v1/models/";

/// A model that is served, or that comes into memory when somebody asks for it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) name: String,
    /// Seconds since 1970.
    created: u64,
    pub(crate) state: &'static str,
    /// Of one that failed.
    pub(crate) why: Option<Arc<str>>,
    /// `None`: it stays in memory, or another server has it.
    pub(crate) shelved: Option<ShelfRow>,
}

pub(crate) async fn list(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let caller = authenticate(&state, request.headers())?;
    let serving = state.serving();
    let mut seen = shown(&state, |name| state.sees(&caller, name));
    seen.iter_mut().for_each(|model| model.tell(&caller));
    let aliases = serving.aliases().filter_map(|(name, alias)| alias_json(&state, &caller, (name, alias)));
    let data: Vec<Value> = seen.iter().map(|model| model_json(&state, model)).chain(aliases).collect();
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
    // An empty name, and one that is not UTF-8, name no model.
    let Path(name) = name.map_err(|_| model_not_found(written_name(request.uri())))?;
    let serving = state.serving();
    let mut seen = shown(&state, |model| model == name && state.sees(&caller, model));
    seen.iter_mut().for_each(|model| model.tell(&caller));
    let model = seen.first().map(|model| model_json(&state, model));
    let alias = || alias_json(&state, &caller, (name.as_str(), serving.alias(&name)?));
    let found = model.or_else(alias).ok_or_else(|| model_not_found(&name))?;
    Ok(Json(found).into_response())
}

/// What was asked for, as it was written.
fn written_name(uri: &Uri) -> &str {
    uri.path().strip_prefix(MODEL_PREFIX).unwrap_or(uri.path())
}

/// By name, in the order of names.
pub(crate) fn shown(state: &AppState, is_seen: impl Fn(&str) -> bool) -> Vec<Shown> {
    let serving = state.serving();
    let served = serving.router.models().filter(|entry| is_seen(&entry.name)).map(|entry| {
        let (name, created) = (entry.name.clone(), entry.created);
        let state = if serving.router.is_model_ready(&name) { "ready" } else { "unready" };
        (name.clone(), Shown { name, created, state, why: None, shelved: None })
    });
    let mut models: BTreeMap<String, Shown> = served.collect();
    let shelved = state.shelf().into_iter().flat_map(Shelf::rows).filter(|row| is_seen(&row.model));
    for row in shelved {
        let (name, in_memory) = (row.model.clone(), row.state == ShelfState::Ready);
        let shown = Shown::of(row);
        match models.get_mut(&name) {
            // The shelf does not know whether what it has loaded makes progress.
            Some(served) if in_memory => *served = Shown { state: served.state, ..shown },
            _ => drop(models.insert(name, shown)),
        }
    }
    models.into_values().collect()
}

impl Shown {
    /// Why it failed is for operators, and for everybody where nobody needs a key: it names files of this machine.
    fn tell(&mut self, caller: &Caller) {
        let may_know = caller.via == Via::OpenDoor || caller.governs(&AccountPath::root());
        self.why = self.why.take().map(|why| if may_know { why } else { "it cannot be loaded".into() });
    }

    fn of(row: ShelfRow) -> Self {
        let state = match row.state {
            ShelfState::Available => "available",
            ShelfState::Loading => "loading",
            ShelfState::Ready => "ready",
            ShelfState::Leaving => "unloading",
            ShelfState::Failed => "failed",
        };
        let (name, created, why) = (row.model.clone(), row.created, row.why.clone());
        Self { name, created, state, why, shelved: Some(row) }
    }
}

/// Which checkpoint a model is, and how that is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    digest: Option<ModelDigest>,
    state: &'static str,
}

impl Identity {
    /// Of an alias.
    const SEVERAL: Self = Self { digest: None, state: "several" };

    pub(crate) fn of(state: &AppState, shown: &Shown) -> Self {
        let on_disk = shown.shelved.as_ref().map(|row| row.digest);
        match (state.model(&shown.name), on_disk) {
            (Some(model), _) => Self { digest: Some(model.digest), state: "loaded" },
            (None, Some(Some(DiskDigest::Hashed(digest)))) => Self { digest: Some(digest), state: "on_disk" },
            (None, Some(Some(DiskDigest::Stated(digest)))) => Self { digest: Some(digest), state: "manifest" },
            (None, Some(None)) => Self { digest: None, state: "not_hashed" },
            (None, None) => Self { digest: None, state: "elsewhere" },
        }
    }

    pub(crate) fn write(self, row: &mut Value) {
        (row["digest"], row["digest_state"]) = (json!(self.digest), json!(self.state));
    }
}

/// As the first of the models that it stands for; the room is that of the smallest. `None` if the caller sees none.
fn alias_json(state: &AppState, caller: &Caller, (name, alias): (&str, &Alias)) -> Option<Value> {
    let is_target = |model: &str| alias.models().any(|target| target == model) && state.sees(caller, model);
    let mut seen = shown(state, is_target);
    seen.sort_by_key(|model| alias.models().position(|target| target == model.name));
    let mut shown = model_json(state, seen.first()?);
    shown["id"] = json!(name);
    shown["max_model_len"] = json!(seen.iter().filter_map(|model| max_model_len(state, &model.name)).min());
    let identity = if let [only] = &seen[..] { Identity::of(state, only) } else { Identity::SEVERAL };
    identity.write(&mut shown);
    shown["alias_of"] = seen.iter().map(|model| model.name.as_str()).collect();
    Some(shown)
}

/// What is known of a model only while it is in memory is `null` before.
fn model_json(state: &AppState, shown: &Shown) -> Value {
    let model = state.model(&shown.name);
    let mut json = json!({
        "id": shown.name,
        "object": "model",
        "created": shown.created,
        "owned_by": "passerelle",
        "state": shown.state,
        "max_model_len": max_model_len(state, &shown.name),
        "capabilities": model.as_deref().map(capabilities),
    });
    Identity::of(state, shown).write(&mut json);
    if let Some(why) = &shown.why {
        json["error"] = json!(**why);
    }
    json
}

/// `None` for a model of which only another server knows it, and for one that is not in memory.
pub(crate) fn max_model_len(state: &AppState, name: &str) -> Option<usize> {
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
