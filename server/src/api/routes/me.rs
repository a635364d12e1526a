//! `/v1/me`: what a caller may know of their own account.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::admin::blocking;
use super::authenticate;
use super::pagination::{no_query, only};
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::fields::invalid;
use crate::api::state::AppState;
use crate::gateway::ledger::LimitState;
use crate::gateway::quota::{Unit, UnixSeconds, WrittenLimit};
use crate::gateway::{AccountPath, Administration, Caller};

/// Every limit from the caller's account to the root as it stands now, and what is left of GPU time in tokens.
pub(crate) async fn limits(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let caller = authenticate(&state, request.headers())?;
    no_query(&request)?;
    let states = state.ledger().limits_of(&caller);
    let data: Vec<Value> = states.iter().map(limit_json).collect();
    let gpu_time: Vec<Value> = gpu_time(&state, &caller, &states);
    let account = caller.account.path.as_str();
    let zone = state.ledger().calendar().zone();
    let answer = json!({"object": "list", "account": account, "time_zone": zone, "data": data, "gpu_time": gpu_time});
    Ok(Json(answer).into_response())
}

/// Sums by account and model, or by account and user, of the caller's account and everything below it, as they were settled.
pub(crate) async fn usage(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let caller = authenticate(&state, request.headers())?;
    let administration = state.administration().ok_or_else(nothing_kept)?;
    let query = request.uri().query().unwrap_or_default();
    only(query, &USAGE_QUERY)?;
    Ok(Json(sums(administration, &caller.account.path, query).await?).into_response())
}

/// What [`sums`] takes of a query.
pub(crate) const USAGE_QUERY: [&str; 3] = ["by", "since", "until"];

/// Of an account and everything below it, as the query wants them.
pub(crate) async fn sums(
    administration: &Administration,
    account: &AccountPath,
    query: &str,
) -> Result<Value, ApiError> {
    let (from, until) = (instant(query, "since")?, instant(query, "until")?);
    let window = (from.unwrap_or_default(), until.unwrap_or(UnixSeconds(i64::MAX as u64)));
    let usage = Arc::clone(&administration.usage);
    let named = account.clone();
    let data = match in_query(query, "by") {
        None | Some("model") => blocking(move || Ok(json!(usage.sums(&named, window)?))).await?,
        Some("user") => blocking(move || Ok(json!(usage.sums_by_user(&named, window)?))).await?,
        Some(_) => return Err(invalid("by", "must be `model` or `user`")),
    };
    Ok(json!({"object": "list", "account": account, "data": data}))
}

fn limit_json(state: &LimitState) -> Value {
    let mut limit = json!(WrittenLimit::from(state.limit.clone()));
    limit["scope"] = json!(state.scope);
    limit["remaining"] = json!(state.limit.name().number(state.remaining));
    if let Some(left) = state.overrun_remaining {
        limit["overrun_remaining"] = json!(state.limit.name().number(left));
    }
    limit["reset_seconds"] = json!(state.reset.as_secs_f64());
    if let Some(resets_at) = state.resets_at {
        limit["resets_at"] = json!(resets_at);
    }
    if limit.get("dry_run").is_some() {
        limit["would_have_refused"] = json!(state.would_have_refused);
    }
    limit
}

/// For each model that the caller sees and that GPU time is limited for: the seconds left, and how many tokens of either
/// kind they buy in a short context.
fn gpu_time(state: &AppState, caller: &Caller, states: &[LimitState]) -> Vec<Value> {
    let serving = state.serving();
    let seen = serving.router.models().filter(|entry| state.sees(caller, &entry.name));
    let line = |name: &str| {
        let binding = states.iter().filter(|state| state.limit.is_enforced());
        let of_model = binding.filter(|state| state.limit.counts(Unit::GpuMicros));
        let left = of_model.filter(|state| state.limit.covers(Some(name))).map(|state| state.remaining).min()?;
        let first = state.ledger().tariff().price(name)?.bands()[0];
        let tokens = |ns: u64| left.saturating_mul(1000) / ns.max(1);
        Some(json!({
            "model": name,
            "seconds_left": left as f64 / 1e6,
            "input_tokens": tokens(first.input_ns),
            "output_tokens": tokens(first.output_ns),
            "tariff": &*state.ledger().tariff().version,
        }))
    };
    seen.filter_map(|entry| line(&entry.name)).collect()
}

fn instant(query: &str, name: &str) -> Result<Option<UnixSeconds>, ApiError> {
    let Some(value) = in_query(query, name) else { return Ok(None) };
    match value.parse() {
        Ok(seconds) if seconds <= i64::MAX as u64 => Ok(Some(UnixSeconds(seconds))),
        _ => Err(invalid(name, "must be seconds since 1970")),
    }
}

/// A value as it is written.
pub(crate) fn in_query<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// For servers that keep no accounts.
pub(crate) fn nothing_kept() -> ApiError {
    ApiError::new(ErrorKind::RouteNotFound, "A server without keys keeps neither accounts nor usage.")
}
