//! `/admin/v1`, and what changes something under `/v1/me`: accounts, limits and keys, for keys with the scope `admin`, each
//! within its own part of the tree, also where nobody needs a key otherwise; and for the operator of this machine
//! ([`crate::api::admin_backend`]).

mod accounts;
mod audited;
mod copies;
mod explain;
mod keys;
mod models;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use serde::de::DeserializeOwned;
use serde_json::json;

pub(crate) use accounts::change_limit;

use super::me::{USAGE_QUERY, in_query, sums};
use super::pagination::{no_query, only, unescaped};
use super::require;
use crate::api::admin_backend::{AdminBackend, AdminCaller};
use crate::api::body::read_bytes;
use crate::api::errors::{ApiError, ErrorKind, echoed};
use crate::api::fields::{invalid, required};
use crate::api::reload::reload;
use crate::api::state::AppState;
use crate::api::wire::parse_json;
use crate::gateway::account::PathError;
use crate::gateway::directory::AuditEntry;
use crate::gateway::{AccountPath, Caller, DirectoryError, Scope};

/// A path, and what answers there.
type DeskRoute<D> = (&'static str, fn() -> MethodRouter<D>);

/// Everything that can be administered, at whichever backend.
pub(crate) const fn routes<D: AdminBackend>() -> [DeskRoute<D>; 17] {
    [
        ("/admin/v1/accounts", || get(accounts::list::<D>).post(accounts::create::<D>)),
        ("/admin/v1/accounts/{*path}", || delete(accounts::remove::<D>)),
        ("/admin/v1/apply", || post(accounts::apply::<D>)),
        ("/admin/v1/limits", || post(accounts::change_limit::<D>)),
        ("/admin/v1/weights", || post(accounts::set_weight::<D>)),
        ("/admin/v1/keys", || get(keys::list::<D>).post(keys::create::<D>)),
        ("/admin/v1/keys/{id}", || delete(keys::revoke::<D>)),
        ("/admin/v1/keys/{id}/rotate", || post(keys::rotate::<D>)),
        ("/admin/v1/models", || get(models::list::<D>)),
        ("/admin/v1/models/{act}", || post(models::act::<D>)),
        ("/admin/v1/usage", || get(usage::<D>)),
        ("/admin/v1/usage/hours", || get(hours::<D>)),
        ("/admin/v1/usage/export", || get(copies::export::<D>)),
        ("/admin/v1/backup", || get(copies::backup::<D>)),
        ("/admin/v1/explain", || post(explain::explain::<D>)),
        ("/admin/v1/audit", || get(audit::<D>)),
        ("/admin/v1/reload", || post(read_again::<D>)),
    ]
}

/// What an owner may do with the keys at and below their own account.
pub(crate) const fn own_routes<D: AdminBackend>() -> [DeskRoute<D>; 3] {
    [
        ("/v1/me/keys", || get(keys::list::<D>).post(keys::create::<D>)),
        ("/v1/me/keys/{id}", || delete(keys::revoke::<D>)),
        ("/v1/me/keys/{id}/rotate", || post(keys::rotate::<D>)),
    ]
}

/// Of everything that the caller governs, or of the `account` that the query names.
async fn usage<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let query = request.uri().query().unwrap_or_default();
    only(query, &[&USAGE_QUERY[..], &["account"]].concat())?;
    let named = in_query(query, "account").map(|account| unescaped(account).parse::<AccountPath>()).transpose();
    let named = named.map_err(|error: PathError| ApiError::new(ErrorKind::InvalidValue, format!("{error}.")))?;
    let is_named = named.is_some();
    let account = named.unwrap_or_else(|| caller.account.path.clone());
    require_governed(&caller, &account)?;
    let sums = sums(&administration, &account, query).await?;
    if is_named && sums["data"] == json!([]) {
        // A name that was mistyped has used nothing either. What an account that was removed has used is still told.
        blocking(move || administration.directory.require_account(&account)).await?;
    }
    Ok(Json(sums).into_response())
}

/// Where the time of each partition went since the server started, for whoever governs the root.
async fn hours<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, .. } = administrator(&backend, request.headers())?;
    require_governed(&caller, &AccountPath::root())?;
    no_query(&request)?;
    let nothing = || ApiError::new(ErrorKind::NoServer, "No server runs whose time could be told.");
    Ok(list(backend.server().ok_or_else(nothing)?.metrics().hours().rows()))
}

/// Every administrative act, and whether none was changed or taken out; for whoever governs the root.
async fn audit<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    require_governed(&caller, &AccountPath::root())?;
    no_query(&request)?;
    let log = blocking(move || administration.directory.audit_log()).await?;
    let is_unbroken = AuditEntry::are_chained(&log);
    Ok(Json(json!({"object": "list", "data": log, "unbroken": is_unbroken})).into_response())
}

/// Reads the server's configuration again, for whoever governs the root.
async fn read_again<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    require_governed(&caller, &AccountPath::root())?;
    let reloader = backend.server().and_then(AppState::reloader);
    Ok(Json(reload(reloader, administration.directory.actor()).await?).into_response())
}

/// Off the async threads: each change waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DirectoryError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    let failed = |_| ApiError::new(ErrorKind::Internal, "The server failed on this request.");
    Ok(done.map_err(failed)??)
}

/// The same for what changes the directory: the server knows of it before it answers, also where nobody waits for the answer.
async fn changing<T: Send + 'static>(
    backend: &impl AdminBackend,
    change: impl FnOnce() -> Result<T, DirectoryError> + Send + 'static,
) -> Result<T, ApiError> {
    let server = backend.server().cloned();
    let change_and_look = move || {
        let changed = change()?;
        server.iter().for_each(|state| state.authenticator().look());
        Ok(changed)
    };
    blocking(change_and_look).await
}

fn administrator(backend: &impl AdminBackend, headers: &HeaderMap) -> Result<AdminCaller, ApiError> {
    let visit = backend.identify(headers)?;
    require(&visit.caller, Scope::Admin)?;
    Ok(visit)
}

fn require_governed(caller: &Caller, path: &AccountPath) -> Result<(), ApiError> {
    if caller.governs(path) {
        return Ok(());
    }
    let message = format!("This key governs `{}` and what is below it, not `{path}`.", caller.account.path);
    Err(ApiError::new(ErrorKind::InsufficientScope, message))
}

/// Whoever governs a part of the tree changes what is below their own account, which itself is changed from above.
fn require_below(caller: &Arc<Caller>, path: &AccountPath) -> Result<(), ApiError> {
    require_governed(caller, path)?;
    if *path != caller.account.path || path.is_root() {
        return Ok(());
    }
    let message = format!("The limits of `{path}` are set from above it.");
    Err(ApiError::new(ErrorKind::InsufficientScope, message))
}

/// A limit or a list of models that names an alias would never apply.
fn require_real_models<'a>(
    backend: &impl AdminBackend,
    mut models: impl Iterator<Item = &'a str>,
) -> Result<(), ApiError> {
    let Some(alias) = models.find(|model| backend.is_alias(model)) else { return Ok(()) };
    let message = format!("`{}` stands for other models; name those.", echoed(alias));
    Err(ApiError::new(ErrorKind::InvalidValue, message).param("model"))
}

/// A limit or a key may be made before its model is served; mistyped, it would never apply. Only a server knows what there
/// is, and tells nobody of a model that belongs to others.
fn warning_of_unserved<'a>(
    backend: &impl AdminBackend,
    caller: &Caller,
    mut models: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let state = backend.server()?;
    let model = models.find(|model| !state.tells_of(caller, model))?;
    Some(format!("no model `{}` is served yet; is its name right?", echoed(model)))
}

async fn read<T: DeserializeOwned>(request: Request, backend: &impl AdminBackend) -> Result<T, ApiError> {
    let bytes = read_bytes(request, backend.body_bounds()).await?;
    let body = parse_json(&bytes)?;
    serde_json::from_value(body).map_err(|error| unread(&error.to_string()))
}

/// What serde says of a body, in the words that the other routes have for it.
fn unread(said: &str) -> ApiError {
    let quoted = |begin: &str| said.strip_prefix(begin)?.split('`').next();
    if let Some(field) = quoted("missing field `") {
        return required::<()>(None, field).err().unwrap_or_else(|| invalid(field, said));
    }
    if let Some(field) = quoted("unknown field `") {
        let known = said
            .split_once(", expected ")
            .map_or_else(String::new, |(_, known)| format!(" Known here: {}.", known.trim_start_matches("one of ")));
        let message = format!("Unknown parameter: `{}`.{known}", echoed(field));
        return ApiError::new(ErrorKind::UnknownParameter, message).param(field);
    }
    // Types of this program mean nothing to whoever wrote the body.
    let of_json = [("a map", "an object"), ("a sequence", "an array"), ("unit variant", "a string"), ("unit", "null")];
    let words: Vec<&str> = said.split(' ').collect();
    let named = words.windows(2).find(|pair| matches!(pair[0], "struct" | "enum")).map(|pair| pair.join(" "));
    let said = named.map_or_else(|| said.to_owned(), |named| said.replace(&named, "an object"));
    let said = of_json.iter().fold(said, |said, (from, to)| said.replace(from, to));
    ApiError::new(ErrorKind::InvalidValue, format!("The body: {said}."))
}

fn list(data: impl serde::Serialize) -> Response {
    Json(json!({"object": "list", "data": data})).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only read")]
        count: u32,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[expect(dead_code, reason = "only read")]
        account: String,
        #[expect(dead_code, reason = "only read")]
        inner: Option<Inner>,
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said_without_the_names_of_this_program() {
        let cases = [
            (json!({}), ErrorKind::MissingParameter, "`account`"),
            (json!({"account": "a", "colour": 1}), ErrorKind::UnknownParameter, "Known here: `account`"),
            (json!([]), ErrorKind::MissingParameter, ""),
            (json!("x"), ErrorKind::InvalidValue, "expected an object"),
            (json!({"account": 7}), ErrorKind::InvalidValue, "expected a string"),
            (json!({"account": "a", "inner": 7}), ErrorKind::InvalidValue, "expected an object"),
        ];
        for (body, kind, said) in cases {
            let error =
                serde_json::from_value::<Body>(body.clone()).map(drop).map_err(|error| unread(&error.to_string()));
            let Err(error) = error else { panic!("{body} is read") };
            assert!(error.message().contains(said), "{body}: {}", error.message());
            assert!(!error.message().contains("struct") && !error.message().contains("Inner"), "{}", error.message());
            if !body.is_array() {
                assert_eq!(error.kind(), kind, "{body}: {}", error.message());
            }
        }
    }
}
