//! `/admin/v1/models`: what is in memory, and what comes and goes by hand; for whoever governs the root.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::audited::Audited;
use super::{administrator, no_query, read, require_governed};
use crate::api::admin_backend::{AdminBackend, AdminCaller};
use crate::api::causes::model_not_found;
use crate::api::errors::{ApiError, ErrorKind, echoed};
use crate::api::routes::models::{Identity, Shown, shown};
use crate::api::routes::name_in_path;
use crate::api::state::AppState;
use crate::gateway::shelf::Asked;
use crate::gateway::{AccountPath, Shelf};

/// What can be done to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Load,
    Unload,
    Pin,
    Unpin,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    model: String,
}

/// Every model, and what those that come and go hold of their memory.
pub(crate) async fn list<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let server = server(&backend, &request)?;
    no_query(&request)?;
    let rows: Vec<Value> = shown(server, |_| true).iter().map(|model| row(server, model)).collect();
    let memory = server.shelf().map(Shelf::memory);
    Ok(Json(json!({"object": "list", "data": rows, "memory": memory})).into_response())
}

/// Answers with the model as it is then.
pub(crate) async fn act<D: AdminBackend>(
    State(backend): State<D>,
    act: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let AdminCaller { administration, .. } = administrator(&backend, request.headers())?;
    let server = server(&backend, &request)?.clone();
    let act = Act::named(&name_in_path(act)?)?;
    let Named { model } = read(request, &backend).await?;
    let shelf = server.shelf().filter(|shelf| shelf.row(&model).is_some()).ok_or_else(|| stays(&server, &model))?;
    let audited = Audited::begin(administration.directory, act.audited(), &model).await?;
    let done = match act {
        Act::Load => load(shelf, &model).await,
        Act::Unload => shelf.unload(&model).map_err(ApiError::from),
        Act::Pin => shelf.pin(&model).map_err(ApiError::from),
        Act::Unpin => shelf.unpin(&model).map_err(ApiError::from),
    };
    audited.end(&done).await;
    done?;
    let shown = shown(&server, |name| name == model);
    let now = shown.first().ok_or_else(|| model_not_found(&model))?;
    Ok(Json(row(&server, now)).into_response())
}

impl Act {
    fn named(name: &str) -> Result<Self, ApiError> {
        match name {
            "load" => Ok(Self::Load),
            "unload" => Ok(Self::Unload),
            "pin" => Ok(Self::Pin),
            "unpin" => Ok(Self::Unpin),
            _ => Err(ApiError::new(ErrorKind::NotFound, "A model is loaded, unloaded, pinned or unpinned.")),
        }
    }

    /// In the audit log.
    fn audited(self) -> &'static str {
        match self {
            Self::Load => "load model",
            Self::Unload => "unload model",
            Self::Pin => "pin model",
            Self::Unpin => "unpin model",
        }
    }
}

/// Also one that failed. Whoever asks waits for as long as they like: their place in the line goes with them.
async fn load(shelf: &Shelf, model: &str) -> Result<(), ApiError> {
    shelf.forgive(model)?;
    let mut place = None;
    loop {
        match shelf.ask(model) {
            None => return Err(model_not_found(model)),
            Some(Asked::Failed(why)) => return Err(load_failed(model, &why)),
            Some(Asked::Ready(_)) => return Ok(()),
            Some(Asked::Coming(coming)) => place.insert(coming).changed().await,
        }
    }
}

fn load_failed(model: &str, why: &str) -> ApiError {
    ApiError::new(ErrorKind::ModelFailed, format!("The model `{}` cannot be loaded: {why}", echoed(model)))
}

/// Why a model that does not come and go cannot be told to.
fn stays(server: &AppState, model: &str) -> ApiError {
    if server.model(model).is_none() {
        return model_not_found(model);
    }
    let message = "This model is configured by name and stays in memory; those of --models-dir come and go.";
    ApiError::new(ErrorKind::Conflict, message)
}

fn row(server: &AppState, model: &Shown) -> Value {
    let mut row = json!({
        "model": model.name,
        "state": model.state,
        "error": model.why.as_deref(),
        "comes_and_goes": model.shelved.is_some(),
    });
    Identity::of(server, model).write(&mut row);
    if let Some(shelved) = &model.shelved {
        row["pinned"] = json!(shelved.is_pinned);
        row["requests"] = json!(shelved.uses);
        row["bytes"] = json!(shelved.bytes);
        row["load_seconds"] = json!(shelved.expected.as_secs_f64());
    }
    row
}

fn server<'a>(backend: &'a impl AdminBackend, request: &Request) -> Result<&'a AppState, ApiError> {
    let AdminCaller { caller, .. } = administrator(backend, request.headers())?;
    require_governed(&caller, &AccountPath::root())?;
    backend
        .server()
        .ok_or_else(|| ApiError::new(ErrorKind::NoServer, "No server runs that could have models in memory."))
}
