//! A request that runs on an upstream: what it says, the reservation that pays for it, and its share of the upstream's
//! load. The counterpart of [`super::generation`], where nobody but the upstream counts tokens as they are made: whoever
//! reads the answer records what it used so far, and dropping the relay settles exactly that.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use passerelle_engine::Usage;

use super::journal::{EntryEnd, JournalUnavailable, Told};
use super::ledger::Reservation;
use super::replica::{InFlight, Replica, UpstreamSide};
use super::upstream::{Call, Events, Failure};

#[must_use = "dropping a relay aborts and settles it"]
pub struct Relay {
    // Dropped in this order: the connection closes before the ledger and the router count the room as free.
    events: Events,
    reservation: Reservation,
    in_flight: InFlight,
}

/// What a call asks of an upstream, in tokens.
#[derive(Debug, Clone, Copy)]
pub struct CallSize {
    /// Input that was counted; zero where nobody here can. What a client pays that left before the first word.
    pub counted_prompt_tokens: u32,
    /// Input and output at most.
    pub reserved_tokens: u64,
}

/// An upstream did not begin to answer. Another replica may be tried under the same reservation.
#[derive(Debug)]
pub struct NotRelayed {
    /// `None`: it is resting, and was not asked.
    pub failure: Option<Failure>,
    pub reservation: Reservation,
}

impl Relay {
    /// Sends the call and waits for the first event, which is returned beside the relay as `read` understands it. Cancel
    /// safe: who stops waiting closes the connection and pays for the prompt.
    pub async fn start<T>(
        replica: &Arc<Replica>,
        upstream: &UpstreamSide,
        (call, size): (&Call, CallSize),
        mut reservation: Reservation,
        read: impl Fn(&str) -> Result<T, Failure>,
    ) -> Result<(Self, T), Box<NotRelayed>> {
        let Some(attempt) = upstream.enter() else { return Err(Box::new(NotRelayed { failure: None, reservation })) };
        let in_flight = replica.hold(size.reserved_tokens);
        reservation.record(Usage { prompt_tokens: size.counted_prompt_tokens, ..Usage::default() });
        let mut events = upstream.door().call(call);
        let first = match next_of(&mut events).await {
            Some(said) => said.and_then(|event| read(&event)),
            None => Err(Failure::Broke("it ended without an answer".to_owned())),
        };
        attempt.ended(first.as_ref().map(|_| ()));
        match first {
            Ok(first) => Ok((Self { events, reservation, in_flight }, first)),
            Err(failure) => {
                reservation.record(Usage::default());
                Err(Box::new(NotRelayed { failure: Some(failure), reservation }))
            }
        }
    }

    /// The data of the next event; `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<String, Failure>> {
        let said = next_of(&mut self.events).await;
        if let Some(Err(failure)) = &said {
            self.blame(failure);
        }
        said
    }

    /// It said something that is no part of an answer.
    pub fn blame(&self, failure: &Failure) {
        if let Some(upstream) = self.in_flight.replica().as_upstream() {
            upstream.failed(failure);
        }
    }

    /// What was used so far, and may be sent once [`Relay::covers`] it; replaces what was recorded before.
    pub fn record(&mut self, used: Usage) {
        self.reservation.record(used);
    }

    /// Returns once what was recorded may be sent, because enough is written down. Cancel safe.
    ///
    /// Marked first: one event may hold more tokens than lie between two marks. So a mark is ahead of what was sent by at
    /// most one event.
    pub async fn covers(&mut self) -> Result<(), JournalUnavailable> {
        let used = self.reservation.used();
        self.reservation.mark(used);
        self.reservation.covers(used.generated_tokens).await
    }

    /// How it ended; a relay that is not told has been aborted.
    pub fn end(&mut self, end: EntryEnd) {
        self.reservation.end(end);
    }

    /// What the gateway that ran it says of it.
    pub fn told(&mut self, told: Told) {
        self.reservation.told(told);
    }

    /// Closes the connection and settles what was recorded.
    pub fn close(self) -> Usage {
        self.reservation.used()
    }
}

async fn next_of(events: &mut Events) -> Option<Result<String, Failure>> {
    poll_fn(|context| events.as_mut().poll_next(context)).await
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
