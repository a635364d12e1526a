//! `/v1/chat/completions`, `/v1/completions` and `/v1/responses`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::time::timeout;

use super::{AboutModel, enter, list_ignored};
use crate::api::alias;
use crate::api::body::read_json;
use crate::api::causes::fill_rate_limit_headers;
use crate::api::deliver::{Delivery, NotAdmitted, stream_once_admitted};
use crate::api::errors::ApiError;
use crate::api::generate::{RequestContext, ServedAs, admit};
use crate::api::ids::random_id;
use crate::api::prompt_scores::compare;
use crate::api::shadow;
use crate::api::state::AppState;
use crate::api::wire::answer::{Answer, AnswerHead, AnswerKind, AnswerWriter};
use crate::api::wire::chat::read_chat;
use crate::api::wire::completions::read_completions;
use crate::api::wire::forward::Outgoing;
use crate::api::wire::request::ReadRequest;
use crate::api::wire::response_answer::ResponseAnswer;
use crate::api::wire::responses::{ReadResponse, read_response};

/// Which route a body came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerRoute {
    Chat,
    Completions,
    Responses,
}

impl AnswerRoute {
    fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completions => "cmpl-",
            Self::Responses => "resp_",
        }
    }

    /// How upstreams know the route. Responses are not passed on: few servers have them.
    fn passed_on_as(self) -> Option<AnswerKind> {
        match self {
            Self::Chat => Some(AnswerKind::Chat),
            Self::Completions => Some(AnswerKind::Completion),
            Self::Responses => None,
        }
    }
}

pub(crate) async fn chat(State(state): State<AppState>, request: Request) -> Response {
    answer(state, request, AnswerRoute::Chat).await.unwrap_or_else(IntoResponse::into_response)
}

pub(crate) async fn completions(State(state): State<AppState>, request: Request) -> Response {
    answer(state, request, AnswerRoute::Completions).await.unwrap_or_else(IntoResponse::into_response)
}

pub(crate) async fn responses(State(state): State<AppState>, request: Request) -> Response {
    answer(state, request, AnswerRoute::Responses).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(state: AppState, request: Request, route: AnswerRoute) -> Result<Response, ApiError> {
    let context = enter(&state, request.headers())?;
    let body = read_json(request, &state).await?;
    answer_body(&state, context, body, route).await
}

/// Everything after the body is there.
pub(crate) async fn answer_body(
    state: &AppState,
    context: RequestContext,
    body: Value,
    route: AnswerRoute,
) -> Result<Response, ApiError> {
    let caller = Arc::clone(&context.caller);
    let context = RequestContext { shadow: shadow::drawn(state, &body), ..context };
    let body = alias::settle(state, &caller, body);
    let written = route.passed_on_as().filter(|_| goes_out(state, &body)).map(|kind| (kind, body.clone()));
    let (read, form) = read(state, body, route)?;
    let outgoing = written.map(|(kind, body)| Outgoing::new(kind, body, &read.ignored));
    let about = AboutModel(read.generate.model.clone());
    let ignored = read.ignored.clone();
    let generated = generate(state, context, read, outgoing, (form, route.id_prefix())).await;
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

/// Makes the answer once its head is known.
type Form = Box<dyn FnOnce(AnswerHead) -> Box<dyn AnswerWriter> + Send>;

fn read(state: &AppState, body: Value, route: AnswerRoute) -> Result<(ReadRequest, Form), ApiError> {
    let bounds = &state.config().bounds;
    let of_choices = |kind: AnswerKind, read: ReadRequest| {
        let (output, num_choices) = (read.generate.output.clone(), read.generate.choices.shown.get() as usize);
        let form: Form = Box::new(move |head| Box::new(Answer::new(kind, head, output, num_choices)));
        (read, form)
    };
    Ok(match route {
        AnswerRoute::Chat => of_choices(AnswerKind::Chat, read_chat(body, state.reader(), bounds)?),
        AnswerRoute::Completions => of_choices(AnswerKind::Completion, read_completions(body, state.reader(), bounds)?),
        AnswerRoute::Responses => {
            let ReadResponse { request, repeated, included } = read_response(body, state.reader(), bounds)?;
            (request, Box::new(move |head| Box::new(ResponseAnswer::new(head, repeated, included))))
        }
    })
}

async fn generate(
    state: &AppState,
    context: RequestContext,
    mut read: ReadRequest,
    outgoing: Option<Outgoing>,
    (form, id_prefix): (Form, &str),
) -> Result<Response, ApiError> {
    let is_streamed = read.generate.output.stream.is_some();
    let unserved = unserved_head(state, &read.generate.model, id_prefix)?;
    if let Some(against) = read.generate.output.prompt_scores_against.take() {
        return compare(state, context, read, &against, unserved).await;
    }
    let mut admission = Box::pin(deliver(state.clone(), context, read, outgoing, (form, unserved)));
    if !is_streamed {
        return admission.await.map_err(|refused| refused.error)?.whole().await;
    }
    match timeout(state.config().sse.keep_alive, &mut admission).await {
        Ok(admitted) => Ok(admitted.map_err(|refused| refused.error)?.stream()),
        Err(_) => Ok(stream_once_admitted(state, admission)),
    }
}

async fn deliver(
    state: AppState,
    context: RequestContext,
    read: ReadRequest,
    outgoing: Option<Outgoing>,
    (form, unserved): (Form, AnswerHead),
) -> Result<Delivery, NotAdmitted> {
    match admit(&state, context, read, outgoing).await {
        Ok(admitted) => {
            let ServedAs { model, fingerprint, tier, billing } = admitted.served_as.clone();
            let answer = form(AnswerHead { model, fingerprint, tier, billing, ..unserved });
            Ok(Delivery::new(state, admitted, answer))
        }
        Err(error) => Err(NotAdmitted { error, answer: Box::new(move || form(unserved)) }),
    }
}

/// Of an answer of which nobody knows yet who gives it.
fn unserved_head(state: &AppState, model: &str, prefix: &str) -> Result<AnswerHead, ApiError> {
    let id = random_id(prefix).ok_or_else(ApiError::no_randomness)?;
    let created = state.clock().wall().as_secs();
    Ok(AnswerHead { id, created, model: model.to_owned(), fingerprint: None, tier: None, billing: None })
}
