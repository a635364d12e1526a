//! A running request: its events, the reservation that pays for them, and its share of its replica's load.
//!
//! Whoever holds it may go away at any moment: dropping it aborts the request in the engine, takes the engine's own
//! count of what was used, which from then on does not change, and settles exactly that. So the ledger's sum is the
//! engine's, whatever the clients did.

use std::sync::Arc;

use passerelle_engine::{Event, EventStream, FinishReason, Request, Usage};

use super::journal::EntryEnd;
use super::ledger::Reservation;
use super::replica::{InFlight, Replica, SubmitError};

#[derive(Debug)]
#[must_use = "dropping a generation aborts and settles it"]
pub struct Generation {
    // Dropped in this order: the engine stops before the ledger and the router count the room as free.
    events: EventStream,
    reservation: Reservation,
    _in_flight: InFlight,
    /// Came from the engine, and waits until it may be sent.
    held_back: Option<Event>,
    delivered_tokens: u32,
    bill: Bill,
}

/// A replica did not take the request. Another one may be tried under the same reservation; without one, withdraw it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotStarted {
    pub error: SubmitError,
    pub reservation: Reservation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bill {
    /// As the engine counts.
    Generated,
    /// Up to the last token that was delivered.
    Delivered,
}

impl Generation {
    /// Hands the request to a replica.
    pub fn start(replica: &Arc<Replica>, request: Request, reservation: Reservation) -> Result<Self, Box<NotStarted>> {
        match replica.submit(request) {
            Ok((events, in_flight)) => {
                let bill = Bill::Generated;
                Ok(Self { events, reservation, _in_flight: in_flight, held_back: None, delivered_tokens: 0, bill })
            }
            Err(error) => Err(Box::new(NotStarted { error, reservation })),
        }
    }

    /// The next event; `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        if self.held_back.is_none() {
            self.held_back = self.events.next().await;
        }
        match &self.held_back {
            Some(Event::Token(_)) => {
                self.reservation.covers(self.delivered_tokens + 1).await;
                self.delivered_tokens += 1;
                self.reservation.mark(Usage { generated_tokens: self.delivered_tokens, ..self.events.usage() });
            }
            Some(Event::Finished { reason, .. }) => self.reservation.end(end_of(*reason)),
            Some(Event::Failed { .. }) => self.reservation.end(EntryEnd::Failed),
            Some(Event::PromptLogprobs(_)) | None => {}
        }
        self.held_back.take()
    }

    /// What the engine has used for this request so far.
    pub fn used(&self) -> Usage {
        self.events.usage()
    }

    /// Ends the request at the last delivered token, which completed a stop string, and settles. What the engine ran
    /// beyond it is waste and is not billed.
    pub fn end_here(mut self) -> Usage {
        self.bill = Bill::Delivered;
        self.reservation.end(EntryEnd::Stop);
        self.close()
    }

    /// Ends the request wherever it is, and settles what the engine counted.
    pub fn abort(self) -> Usage {
        self.close()
    }

    /// Stops the engine; afterwards the usage does not change.
    fn close(&self) -> Usage {
        let counted = self.events.abort();
        match self.bill {
            Bill::Generated => counted,
            Bill::Delivered => {
                Usage { generated_tokens: counted.generated_tokens.min(self.delivered_tokens), ..counted }
            }
        }
    }
}

fn end_of(reason: FinishReason) -> EntryEnd {
    match reason {
        FinishReason::Stop => EntryEnd::Stop,
        FinishReason::Length => EntryEnd::Length,
        FinishReason::Aborted => EntryEnd::Aborted,
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.reservation.record(self.close());
    }
}

#[cfg(test)]
mod tests;
