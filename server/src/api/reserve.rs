//! Room in the ledger for a request, or why there is none.

use std::sync::Arc;

use super::errors::ApiError;
use super::state::AppState;
use crate::gateway::ledger::NoTurn;
use crate::gateway::{Ask, AuthError, Caller, Refusal, Reservation, Retry, Scope};

/// What becomes of a prompt that would fit a moment later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It waits in line.
    InTurn,
    /// It is refused.
    AtOnce,
    /// It is refused, and its request holds room for others already.
    Further,
}

impl Patience {
    /// Only a single prompt waits: several would hold up each other with what they have already. A batch is tried again
    /// anyway.
    pub(crate) fn of(num_prompts: usize, scope: Scope) -> Self {
        if num_prompts == 1 && scope != Scope::Batch { Self::InTurn } else { Self::AtOnce }
    }

    /// Of the prompt after so many of its request.
    pub(crate) fn after(self, num_held: usize) -> Self {
        if num_held == 0 { self } else { Self::Further }
    }
}

/// Takes room at once or not at all.
pub(crate) fn reserve(state: &AppState, caller: &Arc<Caller>, ask: &Ask) -> Result<Reservation, ApiError> {
    require_open(state, caller, std::slice::from_ref(ask))?;
    state.ledger().reserve(caller, ask).map_err(|refusal| refused(state, refusal))
}

/// Takes the room of all of them at once or nothing.
pub(crate) fn reserve_together(
    state: &AppState,
    caller: &Arc<Caller>,
    asks: &[Ask],
) -> Result<Vec<Reservation>, ApiError> {
    require_open(state, caller, asks)?;
    state.ledger().reserve_together(caller, asks).map_err(|refusal| refused(state, refusal))
}

/// Takes room at once, or perhaps after a wait. Cancel safe: whoever stops waiting has taken nothing.
pub(crate) async fn reserve_with(
    patience: Patience,
    state: &AppState,
    caller: &Arc<Caller>,
    ask: &Ask,
) -> Result<Reservation, ApiError> {
    require_open(state, caller, std::slice::from_ref(ask))?;
    match patience {
        Patience::InTurn => (),
        Patience::AtOnce => return state.ledger().reserve(caller, ask).map_err(|refusal| refused(state, refusal)),
        Patience::Further => {
            return state.ledger().reserve_further(caller, ask).map_err(|refusal| refused(state, refusal));
        }
    }
    let today = || state.caller(caller.account.path.as_str(), caller.via.label());
    state.ledger().reserve_in_turn(caller, ask, today).await.map_err(|why| match why {
        NoTurn::Refused(refusal) => refused(state, refusal),
        NoTurn::Gone => AuthError::Revoked.into(),
    })
}

/// Whatever room there is: what is asked can be written down, dated and priced.
fn require_open(state: &AppState, caller: &Caller, asks: &[Ask]) -> Result<(), ApiError> {
    state.ledger().available_to(caller)?;
    asks.iter().try_for_each(|ask| Ok(state.ledger().can_price(caller, ask)?))
}

/// The refusal says when the ask would fit; its headers say when to come back, which is not one instant for all.
fn refused(state: &AppState, refusal: Refusal) -> ApiError {
    state.metrics().refused(refusal.limit);
    let retry = refusal.retry;
    let error = ApiError::from(refusal);
    match retry {
        Retry::After(wait) => error.retry_after(wait + state.spread().beyond(wait)),
        Retry::Spent | Retry::Never => error,
    }
}

/// For what was never started.
pub(crate) fn withdraw_all(reservations: impl IntoIterator<Item = Reservation>) {
    reservations.into_iter().for_each(Reservation::withdraw);
}
