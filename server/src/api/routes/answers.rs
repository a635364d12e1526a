//! `/v1/chat/completions` and `/v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::{AboutModel, enter, list_ignored};
use crate::api::body::read_json;
use crate::api::causes::fill_rate_limit_headers;
use crate::api::deliver::Delivery;
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::generate::{Admitted, Visit, admit};
use crate::api::ids::random_id;
use crate::api::state::AppState;
use crate::api::wire::answer::{Answer, AnswerKind};
use crate::api::wire::chat::read_chat;
use crate::api::wire::completions::read_completions;
use crate::api::wire::forward::Outgoing;
use crate::api::wire::request::{Output, ReadRequest};

pub(crate) async fn chat(State(state): State<AppState>, request: Request) -> Response {
    answer(state, request, AnswerKind::Chat).await.unwrap_or_else(IntoResponse::into_response)
}

pub(crate) async fn completions(State(state): State<AppState>, request: Request) -> Response {
    answer(state, request, AnswerKind::Completion).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(state: AppState, request: Request, kind: AnswerKind) -> Result<Response, ApiError> {
    let visit = enter(&state, request.headers())?;
    let caller = Arc::clone(&visit.caller);
    let body = read_json(request, &state).await?;
    let bounds = &state.config().bounds;
    let written = goes_out(&state, &body).then(|| body.clone());
    let read = match kind {
        AnswerKind::Chat => read_chat(body, state.reader(), bounds),
        AnswerKind::Completion => read_completions(body, state.reader(), bounds),
    }?;
    let outgoing = written.map(|body| Outgoing::new(kind, &body, &read.ignored));
    let about = AboutModel(read.generate.model.clone());
    let ignored = read.ignored.clone();
    let generated = generate(&state, visit, (read, outgoing), kind).await;
    let mut response = generated.unwrap_or_else(IntoResponse::into_response);
    fill_rate_limit_headers(response.headers_mut(), &state.ledger().headroom(&caller, Some(&about.0)));
    list_ignored(&mut response, &ignored);
    response.extensions_mut().insert(about);
    Ok(response)
}

/// Whether an upstream may get the request, so that its body is kept as it was written.
fn goes_out(state: &AppState, body: &Value) -> bool {
    body["model"].as_str().is_some_and(|name| state.serving().router.has_upstream(name))
}

async fn generate(
    state: &AppState,
    visit: Visit,
    (read, outgoing): (ReadRequest, Option<Outgoing>),
    kind: AnswerKind,
) -> Result<Response, ApiError> {
    let ReadRequest { prompt, generate, .. } = read;
    let output = generate.output.clone();
    let admitted = admit(state, visit, (prompt, generate), outgoing).await?;
    let answer = answer_head(state, &admitted, kind, output)?;
    Delivery::new(state.clone(), admitted, answer).respond().await
}

fn answer_head(state: &AppState, admitted: &Admitted, kind: AnswerKind, output: Output) -> Result<Answer, ApiError> {
    let prefix = match kind {
        AnswerKind::Chat => "chatcmpl-",
        AnswerKind::Completion => "cmpl-",
    };
    let id = random_id(prefix).ok_or_else(|| ApiError::new(ErrorKind::Internal, "The system gave no randomness."))?;
    Ok(Answer {
        kind,
        id,
        created: state.clock().wall().as_secs(),
        model: admitted.served_as.model.clone(),
        fingerprint: admitted.served_as.fingerprint.clone(),
        output,
    })
}
