//! Where administration happens: behind keys on a server, or with whoever owns the data directory, who needs none. Both
//! lead to the same handlers ([`super::routes::admin`]), so both do the same things.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tower_http::catch_panic::CatchPanicLayer;

use super::body::BodyBounds;
use super::errors::ApiError;
use super::routes::{admin, authenticate_key, me};
use super::state::{ApiConfig, AppState};
use super::{middleware, unknown_route, wrong_method};
use crate::gateway::{Administration, Caller};

/// What the handlers of administration need of whoever runs them.
pub(crate) trait Desk: Clone + Send + Sync + 'static {
    /// Who asks, and what they may ask about; what they change is written down in their name.
    fn visit(&self, headers: &HeaderMap) -> Result<DeskVisit, ApiError>;

    fn body_bounds(&self) -> BodyBounds;

    /// `None` where none runs.
    fn server(&self) -> Option<&AppState>;
}

/// One request's view of what is administered.
#[derive(Debug)]
pub(crate) struct DeskVisit {
    pub(crate) caller: Arc<Caller>,
    pub(crate) administration: Administration,
}

impl Desk for AppState {
    fn visit(&self, headers: &HeaderMap) -> Result<DeskVisit, ApiError> {
        let caller = authenticate_key(self, headers)?;
        let Administration { directory, usage } = self.administration().ok_or_else(me::nothing_kept)?;
        let directory = directory.acting_as(&format!("key {}", caller.via.label()));
        Ok(DeskVisit { caller, administration: Administration { directory, usage: Arc::clone(usage) } })
    }

    fn body_bounds(&self) -> BodyBounds {
        BodyBounds::of(self.config())
    }

    fn server(&self) -> Option<&AppState> {
        Some(self)
    }
}

/// Trusts whoever reaches it. Behind a socket that only the data directory's owner can open, or inside a command.
#[derive(Debug, Clone)]
pub struct OperatorDesk {
    administration: Administration,
    caller: Arc<Caller>,
    bounds: BodyBounds,
    server: Option<AppState>,
}

impl OperatorDesk {
    /// `config`: the bounds of bodies.
    pub fn new(administration: Administration, config: &ApiConfig) -> Self {
        Self { administration, caller: Arc::new(Caller::operator()), bounds: BodyBounds::of(config), server: None }
    }

    #[must_use]
    pub fn of_server(mut self, server: AppState) -> Self {
        self.server = Some(server);
        self
    }

    /// `/admin/v1`, and nothing else.
    pub fn router(self) -> Router {
        admin::routes::<Self>()
            .into_iter()
            .fold(Router::new(), |router, (path, handler)| router.route(path, handler()))
            .fallback(unknown_route)
            .method_not_allowed_fallback(wrong_method)
            .layer(CatchPanicLayer::custom(middleware::panicked))
            .layer(from_fn(log))
            .with_state(self)
    }
}

impl Desk for OperatorDesk {
    fn visit(&self, _: &HeaderMap) -> Result<DeskVisit, ApiError> {
        let directory = self.administration.directory.acting_as(self.caller.via.label());
        let administration = Administration { directory, usage: Arc::clone(&self.administration.usage) };
        Ok(DeskVisit { caller: Arc::clone(&self.caller), administration })
    }

    fn body_bounds(&self) -> BodyBounds {
        self.bounds
    }

    fn server(&self) -> Option<&AppState> {
        self.server.as_ref()
    }
}

async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::info!(%method, path, status = response.status().as_u16(), "administered from the command line");
    response
}
