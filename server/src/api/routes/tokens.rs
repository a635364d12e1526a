//! `/tokenize`, `/detokenize` and `/tokenizer_info`: exactly the tokens that a generation would see.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::pagination::{only, unescaped};
use super::{authenticate, enter, list_ignored, require};
use crate::api::alias;
use crate::api::body::read_json;
use crate::api::causes::fill_rate_limit_headers;
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::fields::{Field, Fields, Reader, honoured, invalid, neutral, required, required_either, wrong_type};
use crate::api::generate::RequestContext;
use crate::api::lease::Lease;
use crate::api::prepare::{encode, find_model};
use crate::api::reserve::reserve;
use crate::api::state::{AppState, RouteSwitch};
use crate::api::wire::chat::read_chat_prompt;
use crate::api::wire::request::{CompletionPrompt, Prompt, RequestBounds};
use crate::api::wire::sampling::token_ids;
use crate::gateway::{Ask, Reservation, Scope};
use crate::text::SkipSpecialTokens;

pub(crate) const TOKENIZE_FIELDS: &[Field] = &[
    honoured("model"),
    honoured("prompt"),
    honoured("messages"),
    honoured("tools"),
    honoured("tool_choice"),
    honoured("add_special_tokens"),
    honoured("add_generation_prompt"),
    honoured("continue_final_message"),
    honoured("chat_template_kwargs"),
    honoured("reasoning_effort"),
    neutral("return_token_strs", "[false]"),
];
pub(crate) const DETOKENIZE_FIELDS: &[Field] = &[honoured("model"), honoured("tokens")];

/// What is to be tokenized, and by whose tokenizer.
#[derive(Debug)]
pub(crate) struct TokenizeRequest {
    model: Option<String>,
    prompt: Prompt,
}

#[derive(Debug)]
pub(crate) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub(crate) async fn tokenize(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let context = enter(&state, request.headers())?;
    let body = alias::settle(&state, &context.caller, read_json(request, &state).await?);
    let mut reader = state.reader();
    let asked = read_tokenize(body, &mut reader, &state.config().bounds)?;
    let model = find(&state, &context, asked.model).await?;
    let answer = tokens_of(&state, &context, &model, asked.prompt).await;
    Ok(respond(&state, &context, answer, reader))
}

async fn tokens_of(
    state: &AppState,
    context: &RequestContext,
    model: &Lease,
    prompt: Prompt,
) -> Result<Value, ApiError> {
    let _reservation = reserve_request(state, context)?;
    let encoded = encode(state, model, prompt).await?;
    let tokens = encoded.into_iter().next().map(|prompt| prompt.tokens).unwrap_or_default();
    Ok(json!({"count": tokens.len(), "max_model_len": model.max_model_len, "tokens": tokens}))
}

pub(crate) async fn detokenize(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let context = enter(&state, request.headers())?;
    let body = alias::settle(&state, &context.caller, read_json(request, &state).await?);
    let mut reader = state.reader();
    let DetokenizeRequest { model, tokens } = read_detokenize(body, &mut reader)?;
    let model = find(&state, &context, model).await?;
    if let Some(id) = tokens.iter().find(|id| **id as usize >= model.input_vocab_size) {
        return Err(invalid(
            "tokens",
            format!("token {id} is outside the model's vocabulary of {}", model.input_vocab_size),
        ));
    }
    let answer = text_of(&state, &context, &model, tokens).await;
    Ok(respond(&state, &context, answer, reader))
}

async fn text_of(
    state: &AppState,
    context: &RequestContext,
    model: &Lease,
    tokens: Vec<u32>,
) -> Result<Value, ApiError> {
    let _reservation = reserve_request(state, context)?;
    let text = Arc::clone(&model.text);
    let prompt = state.text_work().run(move || Ok(text.tokenizer.decode(&tokens, SkipSpecialTokens::No))).await?;
    Ok(json!({"prompt": prompt}))
}

/// What a client needs to count tokens as this server does: the special tokens and the chat template.
pub(crate) async fn tokenizer_info(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let caller = authenticate(&state, request.headers())?;
    if state.config().tokenizer_info == RouteSwitch::Off {
        return Err(ApiError::new(ErrorKind::RouteNotFound, "`/tokenizer_info` is switched off on this server."));
    }
    let query = request.uri().query().unwrap_or_default();
    only(query, &["model"])?;
    let named = query.split('&').find_map(|pair| pair.strip_prefix("model="));
    let named = named.map(|name| alias::model_of(&state, &caller, unescaped(name)));
    let name = required(named.or_else(|| state.only_model(&caller)), "model")?;
    let model = find_model(&state, &caller, &name).await?;
    let mut info = model.text.special_tokens.clone();
    let template = model.text.template.as_ref().and_then(|template| template.source());
    info.insert("chat_template".to_owned(), json!(template));
    info.insert("model_max_length".to_owned(), json!(model.max_model_len));
    info.insert("vocab_size".to_owned(), json!(model.input_vocab_size));
    Ok(Json(info).into_response())
}

/// Tokenizer clients may leave the model out where only one is served.
async fn find(state: &AppState, context: &RequestContext, named: Option<String>) -> Result<Lease, ApiError> {
    let name = required(named.or_else(|| state.only_model(&context.caller)), "model")?;
    find_model(state, &context.caller, &name).await
}

pub(crate) fn read_tokenize(
    body: Value,
    reader: &mut Reader,
    bounds: &RequestBounds,
) -> Result<TokenizeRequest, ApiError> {
    let mut fields = reader.open(body, "", &[TOKENIZE_FIELDS])?;
    let model = fields.string("model")?;
    let prompt = read_prompt(&mut fields, reader, bounds)?;
    reader.finish(fields)?;
    Ok(TokenizeRequest { model, prompt })
}

pub(crate) fn read_detokenize(body: Value, reader: &mut Reader) -> Result<DetokenizeRequest, ApiError> {
    let mut fields = reader.open(body, "", &[DETOKENIZE_FIELDS])?;
    let model = fields.string("model")?;
    let tokens = token_ids("tokens", &required(fields.array("tokens")?, "tokens")?)?;
    reader.finish(fields)?;
    Ok(DetokenizeRequest { model, tokens })
}

fn read_prompt(fields: &mut Fields, reader: &mut Reader, bounds: &RequestBounds) -> Result<Prompt, ApiError> {
    if fields.has("messages") && fields.has("prompt") {
        return Err(invalid("messages", "cannot be combined with `prompt`"));
    }
    let add_special_tokens = fields.boolean("add_special_tokens")?;
    if fields.has("messages") {
        if add_special_tokens == Some(true) {
            return Err(invalid("add_special_tokens", "with `messages`, the chat template writes the special tokens"));
        }
        return Ok(Prompt::Chat(read_chat_prompt(fields, reader, bounds)?));
    }
    match required_either(fields.value("prompt"), ["prompt", "messages"])? {
        Value::String(text) => {
            let add_special_tokens = add_special_tokens.unwrap_or(true);
            Ok(Prompt::Completions { prompts: vec![CompletionPrompt::Text(text)], add_special_tokens })
        }
        other => Err(wrong_type("prompt", "a string", &other)),
    }
}

/// A request of the account's, in which no model runs.
fn reserve_request(state: &AppState, context: &RequestContext) -> Result<Reservation, ApiError> {
    require(&context.caller, Scope::Inference)?;
    reserve(state, &context.caller, &Ask::without_model())
}

/// A refusal says what is left as an answer does.
fn respond(state: &AppState, context: &RequestContext, answer: Result<Value, ApiError>, reader: Reader) -> Response {
    let mut response = answer.map_or_else(IntoResponse::into_response, |answer| Json(answer).into_response());
    fill_rate_limit_headers(response.headers_mut(), &state.ledger().headroom(&context.caller, None));
    list_ignored(&mut response, &reader.into_ignored());
    response
}
