//! The handlers, one file a subject. Each reads, calls and maps; none holds state of its own.

pub(crate) mod admin;
pub(crate) mod answers;
pub(crate) mod batches;
pub(crate) mod compare_models;
pub(crate) mod encoders;
pub(crate) mod files;
pub(crate) mod kept;
pub(crate) mod me;
pub(crate) mod models;
mod pagination;
pub(crate) mod probes;
pub(crate) mod tokens;
pub(crate) mod web_pages;

use std::sync::Arc;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use axum::response::Response;

use super::errors::{ApiError, ErrorKind, ErrorLabel};
use super::fields::invalid;
use super::generate::RequestContext;
use super::state::AppState;
use crate::gateway::{AccountPath, AuthError, Caller, PeerReservation, Scope};

const IGNORED_FIELDS: HeaderName = HeaderName::from_static("x-passerelle-ignored-fields");
const RESERVATION: HeaderName = HeaderName::from_static("x-passerelle-reservation");
const ACCOUNT: HeaderName = HeaderName::from_static("x-passerelle-account");
const MAX_IGNORED_HEADER_BYTES: usize = 1024;

/// Who asks. Called before the body is read, so that strangers cannot make the server hold one.
pub(crate) fn authenticate(state: &AppState, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
    counted(state, state.authenticator().authenticate(bearer(headers), state.ledger().today()))
}

/// Who asks, with a key, also where none is needed.
pub(crate) fn authenticate_key(state: &AppState, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
    counted(state, state.authenticator().authenticate_key(bearer(headers), state.ledger().today()))
}

fn counted(state: &AppState, authenticated: Result<Arc<Caller>, AuthError>) -> Result<Arc<Caller>, ApiError> {
    authenticated.map_err(|error| {
        state.metrics().auth_failed(error);
        error.into()
    })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer_of)
}

/// Who asks, with a place in the server. Called before the body is read, so that what is held and parsed is bounded.
fn enter(state: &AppState, headers: &HeaderMap) -> Result<RequestContext, ApiError> {
    let arrived = state.clock().now();
    let caller = authenticate(state, headers)?;
    let origin = origin(&caller, headers)?;
    Ok(RequestContext { caller, place: state.take_place()?, arrived, scope: Scope::Inference, origin, shadow: None })
}

/// The other gateway's reservation, which only a key that is meant for gateways may name: who named the same one for
/// everything would pay once.
fn origin(caller: &Caller, headers: &HeaderMap) -> Result<Option<PeerReservation>, ApiError> {
    let Some(id) = headers.get(RESERVATION).filter(|_| caller.may(Scope::Gateway)) else { return Ok(None) };
    let for_account = account_over_there(headers)?;
    let named = id.to_str().ok().and_then(|id| PeerReservation::new(caller.account.path.clone(), id, for_account));
    let odd = || invalid("x-passerelle-reservation", "is 1 to 128 visible characters");
    named.map(Some).ok_or_else(odd)
}

/// For whom the other gateway asks, if it says so.
fn account_over_there(headers: &HeaderMap) -> Result<Option<AccountPath>, ApiError> {
    let Some(account) = headers.get(ACCOUNT) else { return Ok(None) };
    let path = account.to_str().ok().and_then(|path| path.parse().ok());
    path.map(Some).ok_or_else(|| invalid("x-passerelle-account", "is the path of an account"))
}

/// What a key may not do is said, with what it would need.
pub(crate) fn require(caller: &Caller, scope: Scope) -> Result<(), ApiError> {
    if caller.may(scope) {
        return Ok(());
    }
    let message = format!("This key does not have the scope `{scope}` that this route needs.");
    Err(ApiError::new(ErrorKind::InsufficientScope, message))
}

/// The name in a path. One that is not UTF-8 names nothing.
fn name_in_path(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    path.map(|Path(name)| name).map_err(|_| ApiError::new(ErrorKind::NotFound, "There is nothing of this name."))
}

fn bearer_of(header: &str) -> Option<&str> {
    let (scheme, key) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim()).filter(|key| !key.is_empty())
}

/// Lists the fields that were accepted without being read, as far as a header holds them.
fn list_ignored(response: &mut Response, ignored: &[String]) {
    if ignored.is_empty() {
        return;
    }
    let mut list = ignored.join(",");
    list.retain(|c| c.is_ascii_graphic());
    list.truncate(MAX_IGNORED_HEADER_BYTES);
    if let Ok(value) = HeaderValue::try_from(list) {
        response.headers_mut().insert(IGNORED_FIELDS, value);
    }
}

/// Left in a response's extensions for the metrics: the model as the client wrote it.
#[derive(Debug, Clone)]
pub(crate) struct AboutModel(pub(crate) String);

/// The model that a response is counted under. Where the caller was told that there is none, it is counted as one that there is
/// not: another's model must not be told by a metric from one that nobody has.
pub(crate) fn counted_model(response: &Response) -> Option<&str> {
    const NOBODYS: &str = "";
    let AboutModel(model) = response.extensions().get()?;
    let label = response.extensions().get::<ErrorLabel>();
    let is_denied = label.is_some_and(|label| label.is(ErrorKind::ModelNotFound));
    Some(if is_denied { NOBODYS } else { model })
}

#[cfg(test)]
mod tests {
    use super::bearer_of;

    #[test]
    fn a_bearer_key_is_what_follows_the_scheme() {
        assert_eq!(bearer_of("Bearer sk-1"), Some("sk-1"));
        assert_eq!(bearer_of("bearer  sk-1"), Some("sk-1"));
        for odd in ["sk-1", "Basic sk-1", "Bearer ", "Bearer"] {
            assert_eq!(bearer_of(odd), None, "{odd}");
        }
    }
}
