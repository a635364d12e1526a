//! `/v1/batches`: many requests from one file, run when there is room.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::kept::{Kept, KeptItem, on_disk};
use super::pagination::{ListPage, pairs};
use super::{enter, list_ignored, require};
use crate::api::body::read_json;
use crate::api::causes::fill_rate_limit_headers;
use crate::api::errors::ApiError;
use crate::api::fields::{Field, Fields, Reader, honoured, invalid, neutral, required};
use crate::api::reserve::reserve;
use crate::api::state::AppState;
use crate::api::wire::sampling::read_metadata;
use crate::batches::{Batch, BatchId, BatchStatus, BatchStore, Counts, Endpoint};
use crate::gateway::{Ask, Caller, Scope};

pub(crate) const BATCH_FIELDS: &[Field] = &[
    honoured("input_file_id"),
    honoured("endpoint"),
    honoured("completion_window"),
    honoured("metadata"),
    neutral("output_expires_after", "[]"),
];
/// OpenAI's only window.
const WINDOW: &str = "24h";
const WINDOW_SECONDS: u64 = 24 * 3600;
const DEFAULT_PAGE: usize = 20;
pub(crate) const MAX_PAGE: usize = 100;

pub(crate) async fn create(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let visit = enter(&state, request.headers())?;
    require(&visit.caller, Scope::Batch)?;
    let store = Arc::clone(state.batches()?);
    let body = read_json(request, &state).await?;
    let mut reader = state.reader();
    let asked = read_batch(body, &mut reader)?;
    let made = made(&state, &visit.caller, store, asked).await;
    let mut response = made.map(|batch| Json(batch_json(&batch))).into_response();
    list_ignored(&mut response, &reader.into_ignored());
    fill_rate_limit_headers(response.headers_mut(), &state.ledger().headroom(&visit.caller, None));
    Ok(response)
}

async fn made(
    state: &AppState,
    caller: &Arc<Caller>,
    store: Arc<BatchStore>,
    asked: AskedBatch,
) -> Result<Batch, ApiError> {
    let _reservation = reserve(state, caller, &Ask::without_model())?;
    let owner = caller.account.path.as_str().to_owned();
    let input =
        store.file(&owner, &asked.input_file_id).map_err(|error| ApiError::from(error).param("input_file_id"))?;
    let id = BatchId::random().ok_or_else(ApiError::no_randomness)?;
    let now = state.clock().wall().as_secs();
    let mut batch = Batch {
        id,
        owner,
        via: caller.via.label().to_owned(),
        endpoint: asked.endpoint,
        input_file_id: input.id,
        metadata: asked.metadata,
        status: BatchStatus::Validating,
        errors: Vec::new(),
        counts: Counts::default(),
        output_file_id: None,
        error_file_id: None,
        created_at: now,
        serial: 0,
        expires_at: now.saturating_add(WINDOW_SECONDS),
        reached_at: BTreeMap::new(),
        ending: None,
    };
    batch.reach(BatchStatus::Validating, now);
    let batch = on_disk(state, move || store.add_batch(batch)).await?;
    state.batches_changed();
    Ok(batch)
}

pub(crate) async fn list(Kept { store, owner }: Kept, uri: Uri) -> Result<Response, ApiError> {
    let mut page = ListPage::new(DEFAULT_PAGE, MAX_PAGE);
    pairs(uri.query().unwrap_or_default()).try_for_each(|pair| page.take(pair))?;
    let batches = store.batches(&owner);
    Ok(Json(page.of(&batches, |batch| batch.id.as_str(), batch_json)?).into_response())
}

pub(crate) async fn retrieve(KeptItem { store, owner, id }: KeptItem) -> Result<Response, ApiError> {
    Ok(Json(batch_json(&store.batch(&owner, &id)?)).into_response())
}

pub(crate) async fn cancel(
    State(state): State<AppState>,
    KeptItem { store, owner, id }: KeptItem,
) -> Result<Response, ApiError> {
    let now = state.clock().wall().as_secs();
    let batch = on_disk(&state, move || store.cancel(&owner, &id, now)).await?;
    state.batches_changed();
    Ok(Json(batch_json(&batch)).into_response())
}

#[derive(Debug)]
pub(crate) struct AskedBatch {
    input_file_id: String,
    endpoint: Endpoint,
    metadata: BTreeMap<String, String>,
}

pub(crate) fn read_batch(body: Value, reader: &mut Reader) -> Result<AskedBatch, ApiError> {
    let mut fields = reader.open(body, "", &[BATCH_FIELDS])?;
    let input_file_id = required(fields.string("input_file_id")?, "input_file_id")?;
    let endpoint = read_endpoint(&mut fields)?;
    if required(fields.string("completion_window")?, "completion_window")? != WINDOW {
        return Err(invalid("completion_window", format!("must be `{WINDOW}`")));
    }
    let metadata = read_metadata(&mut fields)?;
    reader.finish(fields)?;
    Ok(AskedBatch { input_file_id, endpoint, metadata })
}

fn read_endpoint(fields: &mut Fields) -> Result<Endpoint, ApiError> {
    let written = required(fields.string("endpoint")?, "endpoint")?;
    Endpoint::ALL.into_iter().find(|endpoint| endpoint.as_str() == written).ok_or_else(|| {
        let known = Endpoint::ALL.map(|endpoint| format!("`{}`", endpoint.as_str()));
        invalid("endpoint", format!("must be one of {}", known.join(", ")))
    })
}

fn batch_json(batch: &Batch) -> Value {
    let errors = |line: &crate::batches::LineError| json!({"code": "invalid_line", "line": line.line, "message": line.message, "param": null});
    let errors: Vec<Value> = batch.errors.iter().map(errors).collect();
    let at = |status: BatchStatus| batch.reached_at.get(&status);
    json!({
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": (!errors.is_empty()).then(|| json!({"object": "list", "data": errors})),
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": batch.status.as_str(),
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": at(BatchStatus::InProgress),
        "expires_at": batch.expires_at,
        "finalizing_at": at(BatchStatus::Finalizing),
        "completed_at": at(BatchStatus::Completed),
        "failed_at": at(BatchStatus::Failed),
        "expired_at": at(BatchStatus::Expired),
        "cancelling_at": at(BatchStatus::Cancelling),
        "cancelled_at": at(BatchStatus::Cancelled),
        "request_counts": batch.counts,
        "metadata": batch.metadata,
    })
}
