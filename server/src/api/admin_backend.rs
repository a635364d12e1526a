//! Where administration happens: behind keys on a server, or with whoever owns the data directory, who needs none. Both
//! lead to the same handlers ([`super::routes::admin`]), so both do the same things.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::gateway::account::Tree;
use crate::gateway::directory::KeyInfo;
use crate::gateway::quota::Calendar;
use crate::gateway::{AccountPath, Administration, Caller, Directory, DirectoryError, Ledger, Quota};

/// What the handlers of administration need of whoever runs them.
pub(crate) trait AdminBackend: Clone + Send + Sync + 'static {
    /// Who asks, and what they may ask about; what they change is written down in their name.
    fn identify(&self, headers: &HeaderMap) -> Result<AdminCaller, ApiError>;

    fn body_bounds(&self) -> BodyBounds;

    /// `None` where no server runs.
    fn server(&self) -> Option<&AppState>;

    /// Whom a key stands for, and the ledger that knows what is left to them. Reads the directory.
    fn standing(&self, key: &KeyInfo) -> Result<(Ledger, Arc<Caller>), DirectoryError>;

    /// Whether the caller may know that a model of this name is served, if it is.
    fn shows(&self, caller: &Caller, model: &str) -> bool;

    /// Whether the name stands for other models.
    fn is_alias(&self, name: &str) -> bool;

    /// Whose days dates are written in.
    fn calendar(&self) -> &Calendar;
}

/// One request's view of what is administered.
#[derive(Debug)]
pub(crate) struct AdminCaller {
    pub(crate) caller: Arc<Caller>,
    pub(crate) administration: Administration,
}

impl AdminBackend for AppState {
    fn identify(&self, headers: &HeaderMap) -> Result<AdminCaller, ApiError> {
        let caller = authenticate_key(self, headers)?;
        let administration = self.administration().ok_or_else(me::nothing_kept)?;
        let administration = administration.acting_as(&format!("key {}", caller.via.label()));
        Ok(AdminCaller { caller, administration })
    }

    fn body_bounds(&self) -> BodyBounds {
        BodyBounds::of(self.config())
    }

    fn server(&self) -> Option<&AppState> {
        Some(self)
    }

    fn standing(&self, key: &KeyInfo) -> Result<(Ledger, Arc<Caller>), DirectoryError> {
        let known = self.caller(key.account.as_str(), key.id.as_str());
        let caller = match (known, self.administration()) {
            (None, Some(Administration { directory, .. })) => of_account(directory, key, &Quota::unlimited())?,
            (None, None) => Arc::new(Caller::operator()),
            (Some(caller), _) => caller,
        };
        Ok((self.ledger().clone(), caller))
    }

    fn shows(&self, caller: &Caller, model: &str) -> bool {
        self.sees(caller, model)
    }

    fn is_alias(&self, name: &str) -> bool {
        self.serving().alias(name).is_some()
    }

    fn calendar(&self) -> &Calendar {
        self.ledger().calendar()
    }
}

/// Trusts whoever reaches it. Behind a socket that only the data directory's owner can open, or inside a command.
#[derive(Debug, Clone)]
pub struct OperatorBackend {
    administration: Administration,
    caller: Arc<Caller>,
    bounds: BodyBounds,
    backing: Backing,
}

#[derive(Debug, Clone)]
enum Backing {
    Server(AppState),
    Ledger(Arc<ShelvedBooks>),
}

/// What is known of limits where no server runs: what was settled, and what a configuration says.
#[derive(Debug)]
pub struct ShelvedBooks {
    pub ledger: Ledger,
    /// What a top-level account does not limit itself.
    pub defaults: Quota,
    /// Names that stand for other models.
    pub aliases: BTreeSet<String>,
    /// The accounts that models belong to.
    pub owners: BTreeMap<String, AccountPath>,
}

impl OperatorBackend {
    /// `None` for a server that keeps no accounts.
    pub fn of_server(state: AppState) -> Option<Self> {
        let administration = state.administration()?.clone();
        let bounds = BodyBounds::of(state.config());
        Some(Self { administration, caller: Arc::new(Caller::operator()), bounds, backing: Backing::Server(state) })
    }

    /// `config`: the bounds of bodies.
    pub fn on_ledger(administration: Administration, config: &ApiConfig, books: ShelvedBooks) -> Self {
        let (bounds, backing) = (BodyBounds::of(config), Backing::Ledger(Arc::new(books)));
        Self { administration, caller: Arc::new(Caller::operator()), bounds, backing }
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

impl AdminBackend for OperatorBackend {
    fn identify(&self, _: &HeaderMap) -> Result<AdminCaller, ApiError> {
        let administration = self.administration.acting_as(self.caller.via.label());
        Ok(AdminCaller { caller: Arc::clone(&self.caller), administration })
    }

    fn body_bounds(&self) -> BodyBounds {
        self.bounds
    }

    fn server(&self) -> Option<&AppState> {
        match &self.backing {
            Backing::Server(state) => Some(state),
            Backing::Ledger(_) => None,
        }
    }

    fn standing(&self, key: &KeyInfo) -> Result<(Ledger, Arc<Caller>), DirectoryError> {
        match &self.backing {
            Backing::Server(state) => state.standing(key),
            Backing::Ledger(books) => {
                let caller = of_account(&self.administration.directory, key, &books.defaults)?;
                Ok((books.ledger.clone(), caller))
            }
        }
    }

    fn shows(&self, caller: &Caller, model: &str) -> bool {
        match &self.backing {
            Backing::Server(state) => state.sees(caller, model),
            Backing::Ledger(books) => caller.sees(model, books.owners.get(model)),
        }
    }

    fn is_alias(&self, name: &str) -> bool {
        match &self.backing {
            Backing::Server(state) => state.is_alias(name),
            Backing::Ledger(books) => books.aliases.contains(name),
        }
    }

    fn calendar(&self) -> &Calendar {
        match &self.backing {
            Backing::Server(state) => state.ledger().calendar(),
            Backing::Ledger(books) => books.ledger.calendar(),
        }
    }
}

/// Whom the key lets in.
fn of_account(directory: &Directory, key: &KeyInfo, defaults: &Quota) -> Result<Arc<Caller>, DirectoryError> {
    let mut tree = Tree::new(directory.snapshot()?.accounts, defaults);
    Ok(Arc::new(Caller::with_key(key, tree.account(&key.account))))
}

async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::info!(%method, path, status = response.status().as_u16(), "administered from the command line");
    response
}
