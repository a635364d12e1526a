//! Whether a request of a key would be admitted now, within its grants or beyond one, and what would refuse it.

mod bars;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use bars::Bar;

use super::{administrator, blocking, read, require_real_models};
use crate::api::admin_backend::{AdminBackend, AdminCaller};
use crate::api::errors::{ApiError, ErrorKind};
use crate::gateway::account::ServiceClass;
use crate::gateway::directory::KeyStatus;
use crate::gateway::ledger::LimitState;
use crate::gateway::quota::Unit;
use crate::gateway::{Account, Ask, Caller, DirectoryError, Ledger, Limit, Refusal, Reserve, Retry, Scope};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainBody {
    /// By id or name.
    key: String,
    prompt_tokens: u32,
    #[serde(default)]
    output_tokens: u32,
    #[serde(default)]
    model: String,
}

/// By everything that the server knows: rates, what runs, who waits. Where none runs, by what the ledger holds; what only a
/// server would know is named.
pub(super) async fn explain<D: AdminBackend>(State(backend): State<D>, request: Request) -> Result<Response, ApiError> {
    let AdminCaller { caller, administration } = administrator(&backend, request.headers())?;
    let ExplainBody { key, prompt_tokens, output_tokens, model } = read(request, &backend).await?;
    require_real_models(&backend, [model.as_str()].into_iter())?;
    let (books, directory) = (backend.clone(), administration.directory);
    let looked = blocking(move || {
        let info = directory.find_key(&key)?;
        if !caller.governs(&info.account) {
            // Not told from one that does not exist.
            return Err(DirectoryError::UnknownKey(key));
        }
        let standing = books.standing(&info)?;
        Ok((info, directory.now(), standing))
    });
    let (info, now, (ledger, asked)) = looked.await?;
    if info.status(now) != KeyStatus::Active {
        return Err(ApiError::new(ErrorKind::Conflict, format!("The key `{}` is not accepted any more.", info.name)));
    }
    // An upstream cannot be told to go on, so that all of the answer is reserved there.
    let runs_elsewhere = backend.server().is_some_and(|state| state.serving().router.has_upstream(&model));
    let reserve = if runs_elsewhere { Reserve::Whole } else { Reserve::InParts };
    // A key that is for batches alone asks in one.
    let class = if asked.may(Scope::Inference) { asked.classes.grant(None) } else { ServiceClass::Batch };
    let ask = Ask { reserve, class, ..Ask::new(&model, prompt_tokens, output_tokens) };
    let closed = ledger.available_to(&asked).err().map(|closed| closed.to_string());
    let (overrun, refusal) = match ledger.would_overrun(&asked, &ask) {
        Ok(grants) => (grants, None),
        Err(refusal) => (Vec::new(), Some(refusal)),
    };
    let bars = Bar::all(&backend, &asked, &model, &ask);
    let mut barred: Vec<Value> = bars.iter().filter_map(Bar::refusal).collect();
    if barred.is_empty() && !model.is_empty() && backend.server().is_some() {
        let unpriced = ledger.can_price(&asked, &ask).err();
        barred.extend(unpriced.map(|why| json!({"by": "price", "message": format!("{why}")})));
    }
    let knows = if backend.server().is_some() { Knows::Everything } else { Knows::TheLedger };
    let limits_unknown = not_looked_at(&ledger, &asked.account, &ask, knows);
    let unknown = limits_unknown.into_iter().chain(bars.iter().filter_map(Bar::not_looked_at));
    let answer = json!({
        "object": "explanation",
        "account": info.account,
        "fits": refusal.is_none() && closed.is_none() && barred.is_empty(),
        "barred": barred,
        "closed": closed,
        "overrun": overrun.iter().map(overrun_json).collect::<Vec<_>>(),
        "refusal": refusal.map(|refusal| refusal_json(&refusal, &ledger, smaller(&ledger, &asked, &ask))),
        "not_looked_at": unknown.collect::<Vec<_>>(),
        "on_trial": on_trial(&ledger, &asked, knows),
    });
    Ok(Json(answer).into_response())
}

/// The longest answer with which the limits could ever have room for the prompt, if that is what is asked too much of them.
fn smaller(ledger: &Ledger, caller: &Caller, ask: &Ask) -> Option<u32> {
    let largest = ledger.largest_output(caller, ask.model.as_deref().unwrap_or_default(), ask.prompt_tokens)?;
    Some(largest).filter(|largest| (1..ask.max_output_tokens).contains(largest))
}

/// The limits on trial, and what they would have refused since the server started. Where none runs, nobody has counted.
fn on_trial(ledger: &Ledger, caller: &Arc<Caller>, knows: Knows) -> Vec<Value> {
    if knows == Knows::TheLedger {
        return Vec::new();
    }
    let states = ledger.limits_of(caller);
    let on_trial = states.iter().filter(|state| !state.limit.is_enforced());
    on_trial
        .map(|LimitState { limit, scope, would_have_refused, .. }| {
            json!({
                "limit": limit.name().as_str(), "scope": scope, "model": limit.model.as_deref(),
                "would_have_refused": would_have_refused,
            })
        })
        .collect()
}

/// A grant that the request would run beyond, in the class `batch`, and what is left there.
fn overrun_json(LimitState { limit, scope, overrun_remaining, .. }: &LimitState) -> Value {
    json!({
        "limit": limit.name().as_str(), "scope": scope, "model": limit.model.as_deref(),
        "remaining": overrun_remaining.map(|left| limit.name().number(left)),
    })
}

fn refusal_json(refusal: &Refusal, ledger: &Ledger, smaller: Option<u32>) -> Value {
    let (wait, retry) = match refusal.retry {
        Retry::After(wait) => (Some(wait), "after"),
        Retry::Spent => (None, "spent"),
        Retry::Never => (None, "never"),
    };
    let passes_at = wait.map(|wait| ledger.today().after(wait));
    json!({
        "message": refusal.to_string(),
        "limit": refusal.limit.as_str(),
        "scope": refusal.scope,
        "model": refusal.model.as_deref(),
        "retry": retry,
        "wait_seconds": wait.map(|wait| wait.as_secs_f64()),
        "passes_at": passes_at,
        "largest_output_tokens": smaller.filter(|_| refusal.retry == Retry::Never),
    })
}

/// Who looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Knows {
    Everything,
    TheLedger,
}

/// Limits that might refuse the request too: whose state only a server which runs knows, and of GPU time where no model was
/// named, or no server runs that would know its price.
fn not_looked_at(ledger: &Ledger, account: &Account, ask: &Ask, knows: Knows) -> Vec<Value> {
    let has_price = ask.model.as_deref().is_some_and(|model| ledger.tariff().price(model).is_some());
    let is_unnamed = ask.model.as_deref().is_none_or(str::is_empty);
    let why = |limit: &Limit| {
        let needs_server = knows == Knows::TheLedger && (limit.name().is_rate() || limit.name().is_held());
        let needs_price = limit.counts(Unit::GpuMicros) && !has_price && (is_unnamed || knows == Knows::TheLedger);
        needs_server.then_some("needs_server").or(needs_price.then_some("needs_price"))
    };
    let of_model = account.limits().filter(|(_, limit)| limit.covers(ask.model.as_deref()));
    let unknown = of_model.filter_map(|(node, limit)| Some((node, limit, why(limit)?)));
    unknown.map(|(node, limit, why)| json!({"limit": limit.name().as_str(), "scope": node.path, "why": why})).collect()
}
