//! A running request: its events, and the reservation that pays for them.
//!
//! Whoever holds it may go away at any moment. The engine then still runs until its next step, and says in its last
//! event what it really generated; a task of its own waits for that word and settles exactly that. So the ledger's sum
//! is the engine's, whatever the clients did.

use std::future::poll_fn;
use std::time::Duration;

use passerelle_engine::{Event, Request, Usage};

use super::ledger::Reservation;
use super::replica::{EventSource, Replica, SubmitError};

/// How long an abandoned request may keep its reservation open while its engine does not answer.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
#[must_use = "dropping a generation aborts it"]
pub struct Generation {
    /// `None` once over.
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    events: Box<dyn EventSource>,
    reservation: Reservation,
    prompt_tokens: u32,
}

impl Generation {
    /// Hands the request to a replica. A request that it does not take consumed nothing.
    pub fn start(replica: &Replica, request: Request, reservation: Reservation) -> Result<Self, NotStarted> {
        let prompt_tokens = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
        match replica.submit(request) {
            Ok(events) => Ok(Self { running: Some(Running { events, reservation, prompt_tokens }) }),
            Err(error) => Err(NotStarted { error, reservation }),
        }
    }

    /// The next event; `None` after the last one. An engine that vanishes ends the events without a last one.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        let running = self.running.as_mut()?;
        let event = running.next().await;
        if is_last(event.as_ref()) {
            self.running = None;
        }
        event
    }

    /// What the engine has reported so far; `None` once over.
    pub fn used(&self) -> Option<Usage> {
        self.running.as_ref().map(|running| running.reservation.used())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        running.events.abort();
        // Without a runtime (the process ends) what was reported so far is settled here.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(LAST_WORD_WITHIN, running.drain()));
        }
    }
}

/// A replica did not take the request. Another may be tried under the same reservation.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotStarted {
    pub error: SubmitError,
    pub reservation: Reservation,
}

impl Running {
    async fn next(&mut self) -> Option<Event> {
        let event = poll_fn(|context| self.events.poll_next(context)).await;
        match &event {
            Some(Event::Token(_)) => {
                let mut used = self.reservation.used();
                // The first token proves that the whole prompt was computed.
                used.prompt_tokens = self.prompt_tokens;
                used.generated_tokens += 1;
                self.reservation.record(used);
            }
            Some(Event::Finished { usage, .. } | Event::Failed { usage, .. }) => self.reservation.record(*usage),
            Some(Event::PromptLogprobs(_)) | None => {}
        }
        event
    }

    async fn drain(mut self) {
        while !is_last(self.next().await.as_ref()) {}
    }
}

fn is_last(event: Option<&Event>) -> bool {
    matches!(event, None | Some(Event::Finished { .. } | Event::Failed { .. }))
}

#[cfg(test)]
mod tests;
