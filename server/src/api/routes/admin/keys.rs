//! Keys: made, listed, rotated and revoked.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    administrator, blocking, changing, no_query, read, require_governed, require_real_models, warning_of_unserved,
};
use crate::api::admin_backend::{AdminBackend, AdminCaller};
use crate::api::errors::{ApiError, ErrorKind};
use crate::gateway::account::{ModelAccess, Scopes, ServiceClass};
use crate::gateway::directory::{KeyInfo, NewKey};
use crate::gateway::keys::ApiKey;
use crate::gateway::{AccountPath, Caller, Directory, DirectoryError, Scope};

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

/// Whoever does not administrate sees their own key.
pub(super) async fn list<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = backend.identify(request.headers())?;
    no_query(&request)?;
    let directory = administration.directory;
    let (keys, now) = blocking(move || Ok((directory.list_keys()?, directory.now()))).await?;
    let is_seen = |key: &KeyInfo| caller.governs(&key.account) || caller.via.label() == key.id.as_str();
    let shown = |key: KeyInfo| {
        let mut shown = json!(key);
        shown["status"] = json!(key.status(now));
        shown
    };
    Ok(super::list(keys.into_iter().filter(is_seen).map(shown).collect::<Vec<_>>()))
}

pub(super) async fn create<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let NewKeyBody { account, name, scopes, models, class, valid_for_seconds } = read(request, &backend).await?;
    let account = account.unwrap_or_else(|| caller.account.path.clone());
    require_governed(&caller, &account)?;
    require_no_more(&caller, Rights { scopes: &scopes, models: &models, class })?;
    require_real_models(&backend, models.named())?;
    let warning = warning_of_unserved(&backend, &caller, models.named());
    let valid_for = valid_for_seconds.map(Duration::from_secs);
    let new = NewKey { account, name, scopes, models, class, valid_for };
    let (key, info) = changing(&backend, move || administration.directory.create_key(new)).await?;
    Ok(shown_once(&key, &info, warning))
}

pub(super) async fn rotate<D: AdminBackend>(
    State(backend): State<D>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let RotateBody { overlap_seconds } = read(request, &backend).await?;
    let KeyInfo { id, scopes, models, class, .. } = governed_key(&caller, &administration.directory, id).await?;
    // A new secret is the key itself, handed to whoever asked for it. Its own a key has already.
    if caller.via.label() != id.as_str() {
        require_no_more(&caller, Rights { scopes: &scopes, models: &models, class })?;
    }
    let overlap = Duration::from_secs(overlap_seconds);
    let (key, info) = changing(&backend, move || administration.directory.rotate_key(id.as_str(), overlap)).await?;
    Ok(shown_once(&key, &info, None))
}

pub(super) async fn revoke<D: AdminBackend>(
    State(backend): State<D>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let id = governed_key(&caller, &administration.directory, id).await?.id;
    let info = changing(&backend, move || administration.directory.revoke_key(id.as_str())).await?;
    Ok(Json(info).into_response())
}

/// What a key may do.
struct Rights<'a> {
    scopes: &'a Scopes,
    models: &'a ModelAccess,
    class: ServiceClass,
}

/// A key hands on no more than it has. What `gateway` allows is a matter of trust between operators: such a key says itself
/// what it was billed for already.
fn require_no_more(caller: &Caller, Rights { scopes, models, class }: Rights<'_>) -> Result<(), ApiError> {
    let refused = |message: &str| Err(ApiError::new(ErrorKind::InsufficientScope, message));
    if scopes.allow(Scope::Gateway) && !caller.governs(&AccountPath::root()) {
        return refused("Only whoever governs `/` hands out keys with the scope `gateway`.");
    }
    if !caller.models.covers(models) {
        return refused("This key is for some models only, and so are the keys that it hands out.");
    }
    if caller.classes.grant(Some(class)) != class {
        return refused(
            "This key's requests are less urgent than that, and so are those of the keys that it hands out.",
        );
    }
    Ok(())
}

/// By id or name. A key that the caller does not govern is not told from one that does not exist.
async fn governed_key(
    caller: &Caller,
    directory: &Directory,
    id: Result<Path<String>, PathRejection>,
) -> Result<KeyInfo, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::new(ErrorKind::NotFound, "There is no such key."))?;
    let (directory, asked) = (directory.clone(), id.clone());
    let info = blocking(move || directory.find_key(&asked)).await?;
    if caller.governs(&info.account) {
        return Ok(info);
    }
    Err(DirectoryError::UnknownKey(id).into())
}

fn shown_once(key: &ApiKey, info: &KeyInfo, warning: Option<String>) -> Response {
    let mut shown: Value = json!(info);
    shown["key"] = json!(key.reveal());
    if let Some(warning) = warning {
        shown["warning"] = json!(warning);
    }
    Json(shown).into_response()
}
