//! `/admin/v1`, and `/v1/me/keys`: accounts, limits and keys, for keys with the scope `admin`, each within its own part of
//! the tree. Also where nobody needs a key otherwise.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::me::{nothing_kept, sums};
use super::{authenticate_key, require};
use crate::api::body::read_json;
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::state::AppState;
use crate::gateway::account::{ModelAccess, Scopes, ServiceClass};
use crate::gateway::directory::{KeyInfo, NewKey};
use crate::gateway::keys::ApiKey;
use crate::gateway::quota::{Quota, WrittenLimit};
use crate::gateway::{AccountPath, Administration, Caller, Directory, DirectoryError, Limit, LimitName, Scope};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAccountBody {
    path: AccountPath,
    #[serde(default)]
    limits: Quota,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitBody {
    account: AccountPath,
    set: Option<WrittenLimit>,
    remove: Option<RemovedLimit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemovedLimit {
    limit: String,
    model: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKeyBody {
    /// Default: the account of the key that asks.
    account: Option<AccountPath>,
    name: String,
    #[serde(default)]
    scopes: Scopes,
    #[serde(default)]
    models: ModelAccess,
    #[serde(default)]
    class: ServiceClass,
    valid_for_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    overlap_seconds: u64,
}

pub(crate) async fn accounts(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (caller, directory) = administrator(&state, request.headers())?;
    let snapshot = blocking(move || directory.snapshot()).await?;
    let governed = snapshot.accounts.into_iter().filter(|account| caller.governs(&account.path));
    Ok(list(governed.collect::<Vec<_>>()))
}

pub(crate) async fn create_account(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (caller, directory) = administrator(&state, request.headers())?;
    let NewAccountBody { path, limits } = read(request, &state).await?;
    require_below(&caller, &path)?;
    let created = json!({"path": path, "limits": limits});
    blocking(move || directory.create_account(&path, limits)).await?;
    Ok(Json(created).into_response())
}

/// Whoever governs a part of the tree limits what is below their own account; their own limits are set from above.
pub(crate) async fn change_limit(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (caller, directory) = administrator(&state, request.headers())?;
    let LimitBody { account, set, remove } = read(request, &state).await?;
    require_below(&caller, &account)?;
    let said = |error: String| ApiError::new(ErrorKind::InvalidValue, error);
    match (set, remove) {
        (Some(limit), None) => {
            let limit = Limit::try_from(limit).map_err(|error| said(error.to_string()))?;
            blocking(move || directory.set_limit(&account, limit)).await?;
        }
        (None, Some(RemovedLimit { limit, model })) => {
            let name: LimitName = limit.parse().map_err(said)?;
            blocking(move || directory.remove_limit(&account, name, model.as_deref())).await?;
        }
        _ => return Err(said("Say either `set` or `remove`.".to_owned())),
    }
    Ok(Json(json!({"changed": true})).into_response())
}

/// Whoever does not administrate sees their own key.
pub(crate) async fn keys(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let caller = authenticate_key(&state, request.headers())?;
    let directory = kept(&state)?.directory.clone();
    let keys = blocking(move || directory.list_keys()).await?;
    let is_seen = |key: &KeyInfo| caller.governs(&key.account) || caller.via.label() == key.id.as_str();
    Ok(list(keys.into_iter().filter(is_seen).collect::<Vec<_>>()))
}

pub(crate) async fn create_key(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (caller, directory) = administrator(&state, request.headers())?;
    let NewKeyBody { account, name, scopes, models, class, valid_for_seconds } = read(request, &state).await?;
    let account = account.unwrap_or_else(|| caller.account.path.clone());
    require_governed(&caller, &account)?;
    let new = NewKey { account, name, scopes, models, class, valid_for: valid_for_seconds.map(Duration::from_secs) };
    let (key, info) = blocking(move || directory.create_key(new)).await?;
    Ok(shown_once(&key, &info))
}

pub(crate) async fn rotate_key(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (caller, directory) = administrator(&state, request.headers())?;
    let RotateBody { overlap_seconds } = read(request, &state).await?;
    let id = governed_key(&caller, &directory, id).await?;
    let (key, info) = blocking(move || directory.rotate_key(&id, Duration::from_secs(overlap_seconds))).await?;
    Ok(shown_once(&key, &info))
}

pub(crate) async fn revoke_key(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (caller, directory) = administrator(&state, request.headers())?;
    let id = governed_key(&caller, &directory, id).await?;
    let info = blocking(move || directory.revoke_key(&id)).await?;
    Ok(Json(info).into_response())
}

/// Of everything that the caller governs.
pub(crate) async fn usage(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (caller, _) = administrator(&state, request.headers())?;
    sums(&state, caller.account.path.clone(), request.uri().query().unwrap_or_default()).await
}

/// Every administrative act, for whoever governs the root.
pub(crate) async fn audit(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (caller, directory) = administrator(&state, request.headers())?;
    require_governed(&caller, &AccountPath::root())?;
    let log = blocking(move || directory.audit_log()).await?;
    Ok(list(log))
}

/// What outlives the process, on servers that keep it.
pub(crate) fn kept(state: &AppState) -> Result<&Administration, ApiError> {
    state.administration().ok_or_else(nothing_kept)
}

/// Off the async threads: each change waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DirectoryError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    let failed = |_| ApiError::new(ErrorKind::Internal, "The server failed on this request.");
    Ok(done.map_err(failed)??)
}

/// The caller, and the directory as they change it.
fn administrator(state: &AppState, headers: &HeaderMap) -> Result<(std::sync::Arc<Caller>, Directory), ApiError> {
    let caller = authenticate_key(state, headers)?;
    require(&caller, Scope::Admin)?;
    let actor = format!("key {}", caller.via.label());
    Ok((caller, kept(state)?.directory.acting_as(&actor)))
}

fn require_governed(caller: &Caller, path: &AccountPath) -> Result<(), ApiError> {
    if caller.governs(path) {
        return Ok(());
    }
    let message = format!("This key governs `{}` and what is below it, not `{path}`.", caller.account.path);
    Err(ApiError::new(ErrorKind::InsufficientScope, message))
}

fn require_below(caller: &Caller, path: &AccountPath) -> Result<(), ApiError> {
    require_governed(caller, path)?;
    if *path != caller.account.path || path.is_root() {
        return Ok(());
    }
    let message = format!("The limits of `{path}` are set from above it.");
    Err(ApiError::new(ErrorKind::InsufficientScope, message))
}

/// A key that the caller does not govern is not told from one that does not exist.
async fn governed_key(
    caller: &Caller,
    directory: &Directory,
    id: Result<Path<String>, PathRejection>,
) -> Result<String, ApiError> {
    let unknown = || ApiError::new(ErrorKind::NotFound, "There is no such key.");
    let Path(id) = id.map_err(|_| unknown())?;
    let directory = directory.clone();
    let info = blocking(move || directory.find_key(&id)).await?;
    if caller.governs(&info.account) { Ok(info.id.as_str().to_owned()) } else { Err(unknown()) }
}

async fn read<T: DeserializeOwned>(request: Request, state: &AppState) -> Result<T, ApiError> {
    let body = read_json(request, state).await?;
    serde_json::from_value(body).map_err(|error| ApiError::new(ErrorKind::InvalidValue, format!("The body: {error}.")))
}

fn list(data: impl serde::Serialize) -> Response {
    Json(json!({"object": "list", "data": data})).into_response()
}

fn shown_once(key: &ApiKey, info: &KeyInfo) -> Response {
    let mut shown: Value = json!(info);
    shown["key"] = json!(key.reveal());
    Json(shown).into_response()
}
