//! `/v1/files`: what batches are made from, and what they leave.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::kept::{Kept, KeptItem, on_disk};
use super::pagination::{ListPage, pairs};
use super::{enter, require};
use crate::api::causes::fill_rate_limit_headers;
use crate::api::download::of_file;
use crate::api::errors::{ApiError, ErrorKind, echoed};
use crate::api::fields::{self, honoured, invalid, neutral, required, unsupported};
use crate::api::reserve::reserve;
use crate::api::state::AppState;
use crate::batches::{BatchStore, Purpose, StoredFile, Upload};
use crate::gateway::{Ask, Caller, Scope};

/// The parts of the form.
pub(crate) const FILE_FIELDS: &[fields::Field] =
    &[honoured("purpose"), honoured("file"), neutral("expires_after", "[]")];
/// Of a form beside the file in it.
const MAX_FORM_BYTES: u64 = 16 << 10;
const MAX_NAME_CHARS: usize = 255;
pub(crate) const MAX_PAGE: usize = 10_000;
pub(crate) const ORDERS: &[&str] = &["asc", "desc"];

pub(crate) async fn upload(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let visit = enter(&state, request.headers())?;
    require(&visit.caller, Scope::Batch)?;
    let store = Arc::clone(state.batches()?);
    let uploaded = uploaded(&state, &visit.caller, store, request).await;
    let mut response = uploaded.map(Json).into_response();
    fill_rate_limit_headers(response.headers_mut(), &state.ledger().headroom(&visit.caller, None));
    Ok(response)
}

async fn uploaded(
    state: &AppState,
    caller: &Arc<Caller>,
    store: Arc<BatchStore>,
    request: Request,
) -> Result<Value, ApiError> {
    let _reservation = reserve(state, caller, &Ask::without_model())?;
    let owner = caller.account.path.as_str().to_owned();
    let form = bounded(request, store.bounds().max_file_bytes.saturating_add(MAX_FORM_BYTES));
    let form = Multipart::from_request(form, state).await;
    let mut form = form.map_err(|_| {
        ApiError::new(ErrorKind::UnsupportedMediaType, "Send the file as `Content-Type: multipart/form-data`.")
    })?;
    let (mut purpose, mut received) = (None, None);
    while let Some(field) = patiently(state, form.next_field()).await? {
        match field.name() {
            Some("purpose") => purpose = Some(read_text(state, field).await?),
            Some("file") if received.is_none() => {
                let filename = field.file_name().unwrap_or("upload.jsonl").chars().take(MAX_NAME_CHARS).collect();
                received = Some((filename, receive(state, &store, &owner, field).await?));
            }
            Some("file") => return Err(invalid("file", "was given twice")),
            name => return Err(unread(name.unwrap_or_default())),
        }
    }
    if required(purpose, "purpose")? != "batch" {
        return Err(invalid("purpose", "must be `batch`"));
    }
    let (filename, upload): (String, Upload) = required(received, "file")?;
    let created_at = state.clock().wall().as_secs();
    let file = on_disk(state, move || {
        let purpose = Purpose::Batch;
        store.keep(upload, |id, bytes| StoredFile { id, owner, filename, purpose, bytes, created_at, serial: 0 })
    });
    Ok(file_json(&file.await?))
}

/// A part that is known and not supported, or not known. Those of an object are written `object[field]`.
fn unread(part: &str) -> ApiError {
    let name = part.split('[').next().unwrap_or_default();
    if FILE_FIELDS.iter().any(|field| field.name == name) {
        return unsupported(name, "a file is kept until it is deleted");
    }
    ApiError::new(ErrorKind::UnknownParameter, format!("Unknown field of the form: `{}`.", echoed(part))).param(part)
}

/// Newest first, unless the query says otherwise.
pub(crate) async fn list(Kept { store, owner }: Kept, uri: Uri) -> Result<Response, ApiError> {
    let mut page = ListPage::new(MAX_PAGE, MAX_PAGE);
    let mut files = store.files(&owner);
    for (name, value) in pairs(uri.query().unwrap_or_default()) {
        match (name, value) {
            ("purpose", purpose) => files.retain(|file| file.purpose.as_str() == purpose),
            ("order", "desc") => {}
            ("order", "asc") => files.reverse(),
            ("order", _) => return Err(invalid("order", "must be `asc` or `desc`")),
            pair => page.take(pair)?,
        }
    }
    Ok(Json(page.of(&files, |file| file.id.as_str(), file_json)?).into_response())
}

pub(crate) async fn retrieve(KeptItem { store, owner, id }: KeptItem) -> Result<Response, ApiError> {
    Ok(Json(file_json(&store.file(&owner, &id)?)).into_response())
}

pub(crate) async fn content(
    State(state): State<AppState>,
    KeptItem { store, owner, id }: KeptItem,
) -> Result<Response, ApiError> {
    let file = store.file(&owner, &id)?;
    let bytes = file.bytes;
    let content = on_disk(&state, move || store.open_content(&file)).await?;
    Ok(of_file("application/jsonl", content, bytes))
}

pub(crate) async fn delete(
    State(state): State<AppState>,
    KeptItem { store, owner, id }: KeptItem,
) -> Result<Response, ApiError> {
    let id = on_disk(&state, move || store.delete_file(&owner, &id)).await?;
    // A batch may wait for the room.
    state.batches_changed();
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})).into_response())
}

/// A form longer than this breaks off.
fn bounded(request: Request, limit: u64) -> Request {
    let (parts, body) = request.into_parts();
    let mut seen = 0_u64;
    let counted = body.into_data_stream().map(move |chunk| {
        let chunk = chunk.map_err(io::Error::other)?;
        seen = seen.saturating_add(chunk.len() as u64);
        if seen > limit { Err(io::Error::other("the form is too large")) } else { Ok(chunk) }
    });
    Request::from_parts(parts, Body::from_stream(counted))
}

/// A part of the form, which must come within the time that a body has.
async fn patiently<T>(
    state: &AppState,
    reading: impl Future<Output = Result<T, MultipartError>>,
) -> Result<T, ApiError> {
    let waited = timeout(state.config().body_timeout, reading).await;
    let read = waited.map_err(|_| ApiError::new(ErrorKind::BodyTimeout, "The form did not arrive in time."))?;
    read.map_err(|_| ApiError::new(ErrorKind::InvalidJson, "The form is malformed, ended too early or is too large."))
}

async fn read_text(state: &AppState, mut field: Field<'_>) -> Result<String, ApiError> {
    const MAX_BYTES: usize = 64;
    let mut text = Vec::new();
    while let Some(chunk) = patiently(state, field.chunk()).await? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_BYTES {
            return Err(invalid("purpose", "is too long"));
        }
    }
    String::from_utf8(text).map_err(|_| invalid("purpose", "is not text"))
}

async fn receive(
    state: &AppState,
    store: &Arc<BatchStore>,
    owner: &str,
    mut field: Field<'_>,
) -> Result<Upload, ApiError> {
    let (store, owner) = (Arc::clone(store), owner.to_owned());
    let mut upload = on_disk(state, move || store.begin_upload(&owner)).await?;
    while let Some(chunk) = patiently(state, field.chunk()).await? {
        upload = append(state, upload, chunk).await?;
    }
    Ok(upload)
}

async fn append(state: &AppState, mut upload: Upload, chunk: Bytes) -> Result<Upload, ApiError> {
    on_disk(state, move || {
        upload.write(&chunk)?;
        Ok(upload)
    })
    .await
}

fn file_json(file: &StoredFile) -> Value {
    json!({
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose.as_str(),
        "status": "processed",
    })
}
