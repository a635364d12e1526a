//! Accounts, their weights and their limits.

use std::num::NonZeroU32;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::{
    administrator, blocking, changing, no_query, read, require_below, require_real_models, warning_of_unserved,
};
use crate::api::admin_backend::{AdminBackend, AdminCaller};
use crate::api::errors::{ApiError, ErrorKind};
use crate::gateway::directory::{Making, WantedAccount};
use crate::gateway::quota::{Enforcement, Quota, WrittenLimit};
use crate::gateway::{AccountPath, Limit, LimitName};

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
    /// The one on trial.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightBody {
    account: AccountPath,
    weight: NonZeroU32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplyBody {
    accounts: Vec<WantedBody>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedBody {
    path: AccountPath,
    weight: Option<NonZeroU32>,
    #[serde(default)]
    limits: Quota,
}

pub(super) async fn list<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    no_query(&request)?;
    let snapshot = blocking(move || administration.directory.snapshot()).await?;
    let governed = snapshot.accounts.into_iter().filter(|account| caller.governs(&account.path));
    Ok(super::list(governed.collect::<Vec<_>>()))
}

pub(super) async fn create<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let NewAccountBody { path, limits } = read(request, &backend).await?;
    require_below(&caller, &path)?;
    require_real_models(&backend, limited(&limits))?;
    let created = json!({"path": path, "limits": limits});
    changing(&backend, move || administration.directory.create_account(&path, limits)).await?;
    Ok(Json(created).into_response())
}

pub(super) async fn remove<D: AdminBackend>(
    State(backend): State<D>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let named = path.ok().and_then(|Path(path)| path.parse().ok());
    let path: AccountPath = named.ok_or_else(|| ApiError::new(ErrorKind::NotFound, "There is no such account."))?;
    require_below(&caller, &path)?;
    let removed = json!({"path": path, "removed": true});
    changing(&backend, move || administration.directory.remove_account(&path)).await?;
    Ok(Json(removed).into_response())
}

pub(crate) async fn change_limit<D: AdminBackend>(
    State(backend): State<D>,
    request: Request,
) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let LimitBody { account, set, remove } = read(request, &backend).await?;
    require_below(&caller, &account)?;
    let directory = administration.directory;
    let said = |error: String| ApiError::new(ErrorKind::InvalidValue, error);
    match (set, remove) {
        (Some(limit), None) => {
            let limit = Limit::try_from(limit).map_err(|error| said(error.to_string()))?;
            require_real_models(&backend, limit.model.as_deref().into_iter())?;
            let warning = warning_of_unserved(&backend, &caller, limit.model.as_deref().into_iter());
            changing(&backend, move || directory.set_limit(&account, limit)).await?;
            if let Some(warning) = warning {
                return Ok(Json(json!({"changed": true, "warning": warning})).into_response());
            }
        }
        (None, Some(RemovedLimit { limit, model, dry_run })) => {
            let name: LimitName = limit.parse().map_err(said)?;
            let enforcement = if dry_run { Enforcement::DryRun } else { Enforcement::Refuse };
            changing(&backend, move || directory.remove_limit(&account, name, model.as_deref(), enforcement)).await?;
        }
        _ => return Err(said("Say either `set` or `remove`.".to_owned())),
    }
    Ok(changed())
}

pub(super) async fn set_weight<D: AdminBackend>(
    State(backend): State<D>,
    request: Request,
) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let WeightBody { account, weight } = read(request, &backend).await?;
    require_below(&caller, &account)?;
    changing(&backend, move || administration.directory.set_weight(&account, weight)).await?;
    Ok(changed())
}

/// Accounts and limits as the body has them, all or none; what it does not name stays. Answers what changes, one text each.
pub(super) async fn apply<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let ApplyBody { accounts, dry_run } = read(request, &backend).await?;
    accounts.iter().try_for_each(|account| require_below(&caller, &account.path))?;
    require_real_models(&backend, accounts.iter().flat_map(|account| limited(&account.limits)))?;
    let wanted: Vec<_> = accounts.into_iter().map(WantedAccount::from).collect();
    let making = if dry_run { Making::Rehearsal } else { Making::Real };
    let changes = changing(&backend, move || administration.directory.apply(&wanted, making)).await?;
    let changes: Vec<String> = changes.iter().map(|change| change.shown(backend.calendar())).collect();
    Ok(Json(json!({"object": "list", "data": changes, "made": !dry_run})).into_response())
}

/// The models that limits are for.
fn limited(limits: &Quota) -> impl Iterator<Item = &str> {
    limits.limits().iter().filter_map(|limit| limit.model.as_deref())
}

fn changed() -> Response {
    Json(json!({"changed": true})).into_response()
}

impl From<WantedBody> for WantedAccount {
    fn from(WantedBody { path, weight, limits }: WantedBody) -> Self {
        Self { path, weight, limits }
    }
}
