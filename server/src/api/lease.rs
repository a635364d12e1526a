//! A model for as long as a request needs it. One that lies on the disk is loaded first, if the wait is worth it.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::causes::{model_failed, model_has_no_room, model_loading, model_not_found};
use super::errors::{ApiError, ErrorKind};
use super::state::{AppState, ServedModel};
use crate::gateway::shelf::{Asked, HeldUp, InUse, Waiting};

/// Kept until the last token: while there is one, the model stays in memory. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    model: Arc<ServedModel>,
    /// `None`: the model never leaves.
    _in_use: Option<Arc<InUse>>,
}

impl Lease {
    /// The text side of the model, for whoever may outlive the request: the model itself may leave meanwhile.
    pub(crate) fn text_side(&self) -> Arc<ServedModel> {
        Arc::clone(&self.model)
    }
}

impl Deref for Lease {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.model
    }
}

/// `None`: no model of this name runs here, or could.
pub(crate) async fn lease(state: &AppState, model: &str) -> Result<Option<Lease>, ApiError> {
    let Some(shelf) = state.shelf() else { return Ok(lasting(state, model)) };
    let patience = state.config().longest_load;
    let asked = state.clock().now();
    // Given up only for a later place, so that the model stays in its line.
    let mut place: Option<Waiting> = None;
    loop {
        match shelf.ask(model) {
            None if place.is_some() => return Err(model_not_found(model)),
            None => return Ok(lasting(state, model)),
            Some(Asked::Failed(_)) => return Err(model_failed(model)),
            Some(Asked::Ready(in_use)) => return in_memory(state, model, in_use).map(Some),
            Some(Asked::Coming(coming)) => {
                let left = patience.saturating_sub(state.clock().now().saturating_sub(asked));
                wait(place.insert(coming), model, left).await?;
            }
        }
    }
}

/// Held by a request that needs several models until it has them all.
#[derive(Debug)]
#[must_use = "others take their turn when this is dropped"]
pub(crate) struct Together {
    _turn: Option<OwnedSemaphorePermit>,
    _there: Vec<Lease>,
}

/// Whoever waits for one of several models holds those that it has: two such requests would wait for each other, so that one
/// waits at a time. Where all are in memory, nobody waits.
pub(crate) async fn together<'a>(
    state: &AppState,
    models: impl Iterator<Item = &'a str>,
) -> Result<Together, ApiError> {
    let there: Option<Vec<Lease>> = models.map(|model| lease_in_memory(state, model)).collect();
    if let Some(there) = there {
        return Ok(Together { _turn: None, _there: there });
    }
    match timeout(state.config().longest_load, state.turn_for_several_models()).await {
        // Never closed.
        Ok(turn) => Ok(Together { _turn: turn.ok(), _there: Vec::new() }),
        Err(_) => {
            let message = "Other requests that need several models at once wait for theirs; try again shortly.";
            Err(ApiError::new(ErrorKind::ModelLoading, message))
        }
    }
}

/// A model at once, if it is in memory already.
pub(crate) fn lease_in_memory(state: &AppState, model: &str) -> Option<Lease> {
    match state.shelf().filter(|shelf| shelf.row(model).is_some()) {
        None => lasting(state, model),
        Some(shelf) => in_memory(state, model, shelf.ask_in_memory(model)?).ok(),
    }
}

/// A model that was there from the start.
fn lasting(state: &AppState, model: &str) -> Option<Lease> {
    Some(Lease { model: state.model(model)?, _in_use: None })
}

/// It was served before it could be used, and is until nobody uses it.
fn in_memory(state: &AppState, model: &str, in_use: InUse) -> Result<Lease, ApiError> {
    let gone = || ApiError::new(ErrorKind::NoReplica, "No replica of this model is ready.");
    Ok(Lease { model: state.model(model).ok_or_else(gone)?, _in_use: Some(Arc::new(in_use)) })
}

/// For the next change, unless what is left of the patience is spent before, or will be. Nobody waits for pinned models.
async fn wait(place: &mut Waiting, model: &str, left: Duration) -> Result<(), ApiError> {
    if let Some(why @ HeldUp::ByPins) = place.held_up() {
        return Err(model_has_no_room(model, why, Duration::ZERO));
    }
    if left.is_zero() || place.expected() > left || timeout(left, place.changed()).await.is_err() {
        return Err(match place.held_up() {
            Some(why) => model_has_no_room(model, why, place.come_back()),
            None => model_loading(model, place.come_back()),
        });
    }
    Ok(())
}
