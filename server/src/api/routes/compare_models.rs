//! `/v1/compare`: one prompt to several models, side by side.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::{AboutModel, enter, list_ignored};
use crate::api::alias;
use crate::api::body::read_json;
use crate::api::causes::fill_rate_limit_headers;
use crate::api::deliver::Delivery;
use crate::api::errors::ApiError;
use crate::api::generate::RequestContext;
use crate::api::ids::random_id;
use crate::api::side_by_side::admit;
use crate::api::state::AppState;
use crate::api::wire::compare::{ReadCompare, read_compare};

pub(crate) async fn compare(State(state): State<AppState>, request: Request) -> Response {
    answer(&state, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(state: &AppState, request: Request) -> Result<Response, ApiError> {
    let context = enter(state, request.headers())?;
    let caller = Arc::clone(&context.caller);
    let body = alias::settle(state, &caller, read_json(request, state).await?);
    let read = read_compare(body, state.reader(), &state.config().bounds)?;
    // What the log and the metrics name is the model that the others are compared with.
    let (about, ignored) = (AboutModel(read.models[0].clone()), read.ignored.clone());
    let mut response = deliver(state, context, read).await.unwrap_or_else(IntoResponse::into_response);
    fill_rate_limit_headers(response.headers_mut(), &state.ledger().headroom(&caller, Some(&about.0)));
    list_ignored(&mut response, &ignored);
    response.extensions_mut().insert(about);
    Ok(response)
}

async fn deliver(state: &AppState, context: RequestContext, read: ReadCompare) -> Result<Response, ApiError> {
    let id = random_id("compare-").ok_or_else(ApiError::no_randomness)?;
    let is_streamed = read.generate.output.stream.is_some();
    let (admitted, answer) = admit(state, context, read, id).await?;
    let delivery = Delivery::new(state.clone(), admitted, Box::new(answer));
    if is_streamed { Ok(delivery.stream()) } else { delivery.whole().await }
}
