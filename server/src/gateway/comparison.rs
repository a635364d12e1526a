//! A text on its way through two models at once: the reservations that pay for it, one for each model, and its share of the
//! load of both replicas.
//!
//! As a [`super::Generation`], whoever holds it may go away at any moment: dropping it ends the comparison at its next
//! chunk, takes the lane's own count of what ran, and settles exactly that with both.

use std::sync::Arc;

use passerelle_engine::{
    ComparedPosition, ComparisonHandle, ComparisonReply, ComparisonRequest, RequestError, RequestId, ShareKey, Usage,
};
use passerelle_models::TokenId;

use super::journal::EntryEnd;
use super::ledger::Reservation;
use super::replica::{InFlight, Replica, ReplicaRefusal};

#[derive(Debug)]
#[must_use = "dropping a comparison ends and settles it"]
pub struct ComparedPrompt {
    // Dropped in this order: the lane stops before the ledger and the router count the room as free.
    reply: ComparisonReply,
    reservations: [Reservation; 2],
    _in_flight: [InFlight; 2],
    /// It failed, and not by what the text is: nobody pays for that.
    is_free: bool,
}

/// A text, and whose it is.
#[derive(Debug, Clone)]
pub struct ComparedText {
    pub id: RequestId,
    pub tokens: Vec<TokenId>,
    pub share_key: ShareKey,
}

/// The lane did not take it. Withdraw the reservations.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotCompared {
    pub error: ReplicaRefusal,
    pub reservations: [Reservation; 2],
}

impl ComparedPrompt {
    /// Hands the text to the lane. `replicas` and `reservations`: of the first model and of the second.
    pub fn start(
        lane: &ComparisonHandle,
        replicas: [&Arc<Replica>; 2],
        text: ComparedText,
        reservations: [Reservation; 2],
    ) -> Result<Self, Box<NotCompared>> {
        match submit(lane, replicas, text) {
            Ok((reply, in_flight)) => {
                let mut reservations = reservations.map(Reservation::here);
                reservations.iter_mut().for_each(|reservation| reservation.proof().by(reply.count()));
                Ok(Self { reply, reservations, _in_flight: in_flight, is_free: false })
            }
            Err(error) => Err(Box::new(NotCompared { error, reservations })),
        }
    }

    /// One entry per token, `None` for the first. Cancel safe, until it is ready.
    pub async fn wait(&mut self) -> Result<Vec<Option<ComparedPosition>>, RequestError> {
        let compared = self.reply.wait().await;
        self.is_free = compared.as_ref().is_err_and(RequestError::is_engine_fault);
        let end = if compared.is_ok() { EntryEnd::Answered } else { EntryEnd::Failed };
        self.reservations.iter_mut().for_each(|reservation| reservation.end(end));
        compared
    }

    /// It is a part of what the server failed at: nobody pays for it.
    pub fn make_free(&mut self) {
        self.is_free = true;
        self.reservations.iter_mut().for_each(|reservation| reservation.end(EntryEnd::Failed));
    }

    /// Ends it; returns what each of the two models is billed for, which from now on does not change.
    pub fn close(&self) -> Usage {
        let used = self.reply.close();
        if self.is_free { Usage::default() } else { used }
    }
}

/// Errors where the model of a replica cannot be compared with any other, with why.
pub fn check_lent(replica: &Arc<Replica>) -> Result<(), ReplicaRefusal> {
    replica.shared_model().map(drop).ok_or_else(|| replica.why_not_lent())
}

/// Tokens of the longest text that the models of two replicas can be compared on. Errors when there is none.
pub fn longest_text(lane: &ComparisonHandle, replicas: [&Arc<Replica>; 2]) -> Result<usize, ReplicaRefusal> {
    let lent = |replica: &Replica| replica.shared_model().ok_or_else(|| replica.why_not_lent());
    Ok(lane.longest_text(&lent(replicas[0])?, &lent(replicas[1])?)?)
}

impl Drop for ComparedPrompt {
    fn drop(&mut self) {
        let (used, counted) = (self.close(), self.reply.close());
        for reservation in &mut self.reservations {
            if self.is_free {
                reservation.proof().leave_out(counted);
            }
            reservation.record(used);
        }
    }
}

fn submit(
    lane: &ComparisonHandle,
    [first, second]: [&Arc<Replica>; 2],
    text: ComparedText,
) -> Result<(ComparisonReply, [InFlight; 2]), ReplicaRefusal> {
    let ComparedText { id, tokens, share_key } = text;
    let load = tokens.len() as u64;
    let ((first, first_in_flight), (second, second_in_flight)) = (first.lend(load)?, second.lend(load)?);
    let reply = lane.submit(ComparisonRequest { id, tokens, first, second, share_key })?;
    Ok((reply, [first_in_flight, second_in_flight]))
}
