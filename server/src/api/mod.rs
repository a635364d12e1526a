//! HTTP: the only room that chooses status codes.
//!
//! [`router`] answers requests in process or behind [`serve()`]. A request passes, from the outside in: the trace (id,
//! log line, metrics), the panic catcher, the checks of web origins and of an open listener, its handler in [`routes`].
//! What is generated goes through [`generate`], [`launch`], [`running`] and [`deliver`], for chat and completions alike;
//! what another server generates, through [`remote`], [`launch`], [`relayed`] and [`deliver`]; what is read by an encoder
//! goes through [`encode`], and what two models are compared on through [`prompt_scores`]. What was answered may be followed
//! by [`shadow`].

// The listening side, and what surrounds every route.
mod body;
mod compress;
mod cross_origin;
mod download;
mod middleware;
mod routes;
mod serve;
mod sse;

// What answers are made of where something is wrong.
mod causes;
mod errors;
mod reached_limit;
mod spread;

// What requests ask for.
mod alias;
mod fields;
mod form;
mod grammar_work;
mod prepare;
mod text_work;
mod wire;

// An answer, from its reservation to its last piece.
mod choice;
mod deliver;
mod delta;
mod generate;
mod launch;
mod lease;
mod meter;
mod ranking;
mod reserve;
mod running;

// An answer that another server generates.
mod relayed;
mod remote;

// Vectors, comparisons, and what runs without a client.
mod batch_runner;
mod compare_checks;
mod encode;
mod prompt_scores;
mod shadow;
mod side_by_side;

// What they all share, and what is said of it.
mod admin_backend;
mod ids;
mod openapi;
mod reload;
mod state;

pub use admin_backend::{OperatorBackend, ShelvedBooks};
pub use batch_runner::run_batches;
pub use cross_origin::{AllowedOrigins, InvalidOrigin};
pub use encode::ServedEncoder;
pub use errors::{ApiError, ErrorKind};
pub use fields::UnknownFields;
pub use grammar_work::CompileBounds;
pub use reload::{ReloadOrder, ReloadOutcome, Reloaded, Reloader};
pub use remote::RemoteModel;
pub use serve::{Drained, Listener, ServeConfig, Tls, TlsError, UnixSocket, serve};
pub use shadow::ShadowBounds;
pub use sse::SseConfig;
pub use state::{ApiConfig, AppParts, AppState, BrowserGuard, Readiness, RouteSwitch, ServedModel, Serving};
pub use wire::request::RequestBounds;
pub use wire::sampling::GenerationDefaults;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use tower_http::catch_panic::CatchPanicLayer;

use errors::echoed;
use routes::{admin, answers, batches, compare_models, encoders, files, me, models, probes, tokens, web_pages};

/// A path, as metrics name it, and what answers there.
type Route = (&'static str, fn() -> MethodRouter<AppState>);

const ROUTES: [Route; 32] = [
    ("/", || get(web_pages::home)),
    ("/docs", || get(web_pages::docs)),
    ("/compare", || get(web_pages::compare)),
    ("/openapi.json", || get(web_pages::openapi)),
    ("/health", || get(probes::health)),
    ("/ready", || get(probes::ready)),
    ("/metrics", || get(probes::metrics)),
    ("/v1/models", || get(models::list)),
    ("/v1/models/{*name}", || get(models::retrieve)),
    ("/v1/chat/completions", || post(answers::chat)),
    ("/v1/completions", || post(answers::completions)),
    ("/v1/responses", || post(answers::responses)),
    // Files are bounded by what may be kept of them, which the handler knows.
    ("/v1/files", || get(files::list).post(files::upload).layer(DefaultBodyLimit::disable())),
    ("/v1/files/{id}", || get(files::retrieve).delete(files::delete)),
    ("/v1/files/{id}/content", || get(files::content)),
    ("/v1/batches", || get(batches::list).post(batches::create)),
    ("/v1/batches/{id}", || get(batches::retrieve)),
    ("/v1/batches/{id}/cancel", || post(batches::cancel)),
    ("/v1/compare", || post(compare_models::compare)),
    ("/v1/embeddings", || post(encoders::embeddings)),
    ("/v1/rerank", || post(encoders::rerank)),
    ("/v2/rerank", || post(encoders::rerank)),
    ("/rerank", || post(encoders::rerank)),
    ("/v1/score", || post(encoders::score)),
    ("/score", || post(encoders::score)),
    ("/v1/classify", || post(encoders::classify)),
    ("/classify", || post(encoders::classify)),
    ("/tokenizer_info", || get(tokens::tokenizer_info)),
    ("/tokenize", || post(tokens::tokenize)),
    ("/detokenize", || post(tokens::detokenize)),
    ("/v1/me/limits", || get(me::limits).post(admin::change_limit::<AppState>)),
    ("/v1/me/usage", || get(me::usage)),
];

/// Every path that a server answers at.
fn all_routes() -> impl Iterator<Item = Route> {
    ROUTES.into_iter().chain(admin::own_routes()).chain(admin::routes())
}

/// The whole HTTP side as one service. Layers run in reverse order of this list.
pub fn router(state: AppState) -> Router {
    let router = all_routes()
        .fold(Router::new(), |router, (path, handler)| router.route(path, handler()))
        // A name may be empty, which no pattern of a path is.
        .route(models::MODEL_PREFIX, get(models::retrieve))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(state.clone(), compress::compress))
        .layer(from_fn_with_state(state.clone(), middleware::guard));
    let router = match state.config().allowed_origins.layer() {
        Some(cross_origin) => router.layer(cross_origin),
        None => router,
    };
    router
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(state.clone(), middleware::trace))
        .with_state(state)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let hint = if uri.path().starts_with("/v1") { "" } else { " Those of OpenAI begin with `/v1`." };
    let message = format!("Unknown request URL: {method} {}. `/docs` lists all.{hint}", echoed(uri.path()));
    ApiError::new(ErrorKind::RouteNotFound, message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not allowed on {}. `/docs` says which method is.", echoed(uri.path()));
    ApiError::new(ErrorKind::MethodNotAllowed, message)
}
