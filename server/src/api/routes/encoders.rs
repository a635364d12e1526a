//! `/v1/embeddings`, and `/rerank`, `/score` and `/classify` with and without `/v1`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use passerelle_models::{
    EmbeddingDescription, EncoderOutput, ScoreActivation, ScoresDescription, scale_to_unit_length,
};
use serde::Serialize;
use serde_json::Value;

use super::{AboutModel, enter, list_ignored};
use crate::api::alias;
use crate::api::body::read_json;
use crate::api::causes::{fill_rate_limit_headers, unfit_encoder};
use crate::api::encode::{Encoded, ServedEncoder, encode, find_encoder};
use crate::api::errors::ApiError;
use crate::api::fields::{Reader, invalid};
use crate::api::generate::RequestContext;
use crate::api::ids::random_id;
use crate::api::state::AppState;
use crate::api::wire::embeddings::{EmbeddingsAnswer, ReadEmbeddings, read_embeddings};
use crate::api::wire::scores::{
    Classification, ListAnswer, RankingShape, RawScores, ReadPairs, ReadRerank, RerankAnswer, Score, read_classify,
    read_rerank, read_score,
};
use crate::api::wire::texts::{TextItem, Texts};
use crate::gateway::Caller;

/// More are written off the async threads.
const MAX_INLINE_FLOATS: usize = 16 << 10;

pub(crate) async fn embeddings(State(state): State<AppState>, request: Request) -> Response {
    answer(&state, request, read_embeddings, give_vectors).await
}

/// The same, of a body that is there already.
pub(crate) async fn embed(state: &AppState, context: &RequestContext, body: Value) -> Result<Response, ApiError> {
    answer_body(state, context, body, read_embeddings, give_vectors).await
}

async fn give_vectors(state: &AppState, context: &RequestContext, read: ReadEmbeddings) -> Result<Response, ApiError> {
    let ReadEmbeddings { model, texts, format, dimensions, normalize, .. } = read;
    let (served, encoder) = find_encoder(state, &context.caller, &model).await?;
    let EncoderOutput::Embedding(embedding) = &encoder.output else {
        return Err(unfit_encoder(&model, "gives scores, not embeddings", "/v1/rerank or /v1/classify"));
    };
    let shape = VectorShape::new(embedding, dimensions.map(usize::from), normalize)?;
    let Encoded { mut vectors, usage } = encode(state, context, &served, texts).await?;
    let num_floats = vectors.iter().map(Vec::len).sum::<usize>();
    let write = move || {
        vectors.iter_mut().for_each(|vector| shape.apply(vector));
        json(EmbeddingsAnswer::new(model, vectors, format, usage))
    };
    if num_floats <= MAX_INLINE_FLOATS { write() } else { state.text_work().run(write).await }
}

pub(crate) async fn rerank(State(state): State<AppState>, request: Request) -> Response {
    answer(&state, request, read_rerank, async |state, context, read: ReadRerank| {
        let ReadRerank { pairs, top_n, shape } = read;
        let second = |item: &TextItem| match item {
            TextItem::Pair(_, document) | TextItem::Document(document) => document.clone(),
            TextItem::Text(_) | TextItem::Tokens(_) => String::new(),
        };
        let documents = shape.returns_documents().then(|| pairs.texts.items.iter().map(second).collect());
        let model = pairs.model.clone();
        let Scored { scores, encoded } = score_pairs(state, context, pairs).await?;
        let answer = RerankAnswer::new((new_id("rerank-")?, model), scores, documents, (top_n, encoded.usage));
        match shape {
            RankingShape::Jina { .. } => json(answer),
            RankingShape::Tei { .. } => json(answer.into_tei()),
        }
    })
    .await
}

pub(crate) async fn score(State(state): State<AppState>, request: Request) -> Response {
    answer(&state, request, read_score, async |state, context, read: ReadPairs| {
        let model = read.model.clone();
        let Scored { scores, encoded } = score_pairs(state, context, read).await?;
        let data = scores.into_iter().enumerate();
        let data = data.map(|(index, score)| Score { index, object: "score", score }).collect();
        json(list(state, "score-", model, data, &encoded)?)
    })
    .await
}

pub(crate) async fn classify(State(state): State<AppState>, request: Request) -> Response {
    answer(&state, request, read_classify, async |state, context, read: ReadPairs| {
        let (served, encoder) = find_encoder(state, &context.caller, &read.model).await?;
        let EncoderOutput::Scores(scores) = &encoder.output else {
            return Err(unfit_encoder(&read.model, "has no labels", "/v1/embeddings"));
        };
        let encoded = encode(state, context, &served, read.texts).await?;
        let data = encoded.vectors.iter().enumerate();
        let data = data.map(|(index, logits)| classification(scores, (index, logits), read.raw)).collect();
        json(list(state, "classify-", read.model, data, &encoded)?)
    })
    .await
}

/// What the routes share: the key, a place, the body, and the headers of the answer.
async fn answer<R: About>(
    state: &AppState,
    request: Request,
    read: fn(Value, Reader, usize) -> Result<R, ApiError>,
    respond: impl AsyncFnOnce(&AppState, &RequestContext, R) -> Result<Response, ApiError>,
) -> Response {
    let answered = async {
        let context = enter(state, request.headers())?;
        let body = read_json(request, state).await?;
        answer_body(state, &context, body, read, respond).await
    };
    answered.await.unwrap_or_else(IntoResponse::into_response)
}

/// Everything after the body is there.
async fn answer_body<R: About>(
    state: &AppState,
    context: &RequestContext,
    body: Value,
    read: fn(Value, Reader, usize) -> Result<R, ApiError>,
    respond: impl AsyncFnOnce(&AppState, &RequestContext, R) -> Result<Response, ApiError>,
) -> Result<Response, ApiError> {
    let body = alias::settle(state, &context.caller, with_only_model(state, &context.caller, body));
    let read = read(body, state.reader(), state.config().bounds.max_inputs)?;
    let (model, ignored) = read.about();
    let mut response = respond(state, context, read).await.unwrap_or_else(IntoResponse::into_response);
    fill_rate_limit_headers(response.headers_mut(), &state.ledger().headroom(&context.caller, Some(&model)));
    list_ignored(&mut response, &ignored);
    response.extensions_mut().insert(AboutModel(model));
    Ok(response)
}

/// TEI serves one model and its clients name none: nor need they here, where only one is served.
fn with_only_model(state: &AppState, caller: &Caller, mut body: Value) -> Value {
    let has = |name: &str| body.get(name).is_some_and(|value| !value.is_null());
    if has("texts")
        && !has("model")
        && let Some(model) = state.only_model(caller)
    {
        body["model"] = Value::String(model);
    }
    body
}

/// What every request says of itself: its model, and the fields that were accepted without being read.
trait About {
    fn about(&self) -> (String, Vec<String>);
}

impl About for ReadEmbeddings {
    fn about(&self) -> (String, Vec<String>) {
        (self.model.clone(), self.ignored.clone())
    }
}

impl About for ReadPairs {
    fn about(&self) -> (String, Vec<String>) {
        (self.model.clone(), self.ignored.clone())
    }
}

impl About for ReadRerank {
    fn about(&self) -> (String, Vec<String>) {
        self.pairs.about()
    }
}

/// How a vector is shown: of Matryoshka embeddings the first elements are embeddings too (Kusupati et al. 2022,
/// arXiv:2205.13147).
#[derive(Debug, Clone, Copy)]
struct VectorShape {
    dimensions: usize,
    normalize: bool,
}

impl VectorShape {
    fn new(is: &EmbeddingDescription, wanted: Option<usize>, normalize: Option<bool>) -> Result<Self, ApiError> {
        let dimensions = wanted.unwrap_or(is.dimensions);
        if dimensions > is.dimensions {
            return Err(invalid("dimensions", format!("the model's embeddings have {}", is.dimensions)));
        }
        if normalize == Some(false) && is.normalized {
            return Err(invalid("normalize", "this model's embeddings have length 1; leave the field out"));
        }
        Ok(Self { dimensions, normalize: normalize.unwrap_or(is.normalized) })
    }

    fn apply(self, vector: &mut Vec<f32>) {
        vector.truncate(self.dimensions);
        if self.normalize {
            scale_to_unit_length(vector);
        }
    }
}

struct Scored {
    /// One for each pair.
    scores: Vec<f32>,
    encoded: Encoded,
}

/// With a cross-encoder, what its one label says of each pair; with an embedding model, the cosine between the two.
async fn score_pairs(state: &AppState, context: &RequestContext, read: ReadPairs) -> Result<Scored, ApiError> {
    let ReadPairs { model, mut texts, raw, .. } = read;
    let (served, encoder) = find_encoder(state, &context.caller, &model).await?;
    let activation = pair_activation(&encoder, &model)?;
    if activation.is_none() {
        texts = apart(texts);
    }
    let encoded = encode(state, context, &served, texts).await?;
    let scores = match activation {
        Some(activation) => encoded.vectors.iter().map(|logits| activated(activation, logits, raw)[0]).collect(),
        None => encoded.vectors.chunks(2).map(cosine).collect(),
    };
    Ok(Scored { scores, encoded })
}

/// `None` for an embedding model.
fn pair_activation(encoder: &ServedEncoder, model: &str) -> Result<Option<ScoreActivation>, ApiError> {
    match &encoder.output {
        EncoderOutput::Embedding(_) => Ok(None),
        EncoderOutput::Scores(scores) if scores.labels.len() == 1 => Ok(Some(scores.activation)),
        EncoderOutput::Scores(_) => {
            Err(unfit_encoder(model, "has several labels and gives no single score", "/v1/classify"))
        }
    }
}

/// The two texts of each pair one after the other.
fn apart(texts: Texts) -> Texts {
    let items = texts.items.into_iter().flat_map(|item| match item {
        TextItem::Pair(first, second) => vec![TextItem::Text(first), TextItem::Document(second)],
        single => vec![single],
    });
    Texts { items: items.collect(), ..texts }
}

fn cosine(pair: &[Vec<f32>]) -> f32 {
    let [first, second] = pair else { return 0.0 };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(first, first) * dot(second, second)).sqrt();
    if lengths > 0.0 { (dot(first, second) / lengths) as f32 } else { 0.0 }
}

fn activated(activation: ScoreActivation, logits: &[f32], raw: RawScores) -> Vec<f32> {
    match raw {
        RawScores::Yes => logits.to_vec(),
        RawScores::No => activation.apply(logits),
    }
}

fn classification(is: &ScoresDescription, (index, logits): (usize, &Vec<f32>), raw: RawScores) -> Classification {
    let probs = activated(is.activation, logits, raw);
    let best = (0..probs.len()).max_by(|&a, &b| probs[a].total_cmp(&probs[b])).unwrap_or(0);
    Classification { index, label: is.labels[best].clone(), num_classes: probs.len(), probs }
}

fn list<T>(
    state: &AppState,
    prefix: &str,
    model: String,
    data: Vec<T>,
    encoded: &Encoded,
) -> Result<ListAnswer<T>, ApiError> {
    let created = state.clock().wall().as_secs();
    Ok(ListAnswer { id: new_id(prefix)?, object: "list", created, model, data, usage: encoded.usage.into() })
}

fn new_id(prefix: &str) -> Result<String, ApiError> {
    random_id(prefix).ok_or_else(ApiError::no_randomness)
}

fn json(answer: impl Serialize) -> Result<Response, ApiError> {
    Ok(Json(answer).into_response())
}
