//! What the routes of files and batches share: whose they are, which one a path names, and work on the disk.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::{authenticate, name_in_path, require};
use crate::api::errors::ApiError;
use crate::api::state::AppState;
use crate::batches::{BatchError, BatchStore};
use crate::gateway::Scope;

/// What is kept for the account of the caller, whose key may run batches.
pub(crate) struct Kept {
    pub(crate) store: Arc<BatchStore>,
    pub(crate) owner: String,
}

/// And the one that the path names, which may not be there.
pub(crate) struct KeptItem {
    pub(crate) store: Arc<BatchStore>,
    pub(crate) owner: String,
    pub(crate) id: String,
}

impl FromRequestParts<AppState> for Kept {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = authenticate(state, &parts.headers)?;
        require(&caller, Scope::Batch)?;
        Ok(Self { store: Arc::clone(state.batches()?), owner: caller.account.path.as_str().to_owned() })
    }
}

impl FromRequestParts<AppState> for KeptItem {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let Kept { store, owner } = Kept::from_request_parts(parts, state).await?;
        let id = name_in_path(Path::from_request_parts(parts, state).await)?;
        Ok(Self { store, owner, id })
    }
}

/// Work on the data directory, off the async threads.
pub(crate) async fn on_disk<T: Send + 'static>(
    state: &AppState,
    work: impl FnOnce() -> Result<T, BatchError> + Send + 'static,
) -> Result<T, ApiError> {
    state.text_work().run(move || Ok(work()?)).await
}
