//! What the choices of a request may generate for now: extended ahead of need while they grow, and waited for where a rate
//! has no room, or others hold the rest of a budget. Meanwhile the engine has parked them, without blocks and without a place.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use passerelle_engine::EventStream;
use tokio::time::{Sleep, sleep};

use crate::gateway::ledger::{Denied, Reservation};

/// Parts that are granted beyond what was delivered, before the next one is taken.
const MAX_UNDELIVERED_PARTS: u32 = 3;

#[derive(Debug)]
pub(super) struct Grants {
    max_tokens: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Each choice may become as long as it likes.
    Whole,
    /// Each choice has `tokens` for now, and gets `part` more at a time.
    InParts { tokens: u32, part: u32 },
    /// As before, until the ledger is asked again.
    Waiting { tokens: u32, part: u32, pause: Pin<Box<Sleep>> },
    /// Each choice has `tokens`, and will get no more.
    AtLast { tokens: u32 },
}

/// How far the choices that still grow have come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) num_growing: u32,
    /// Tokens of the furthest of them.
    pub(super) delivered: u32,
    /// The same, about: only their sum is known.
    pub(super) generated: u32,
}

impl Grants {
    /// `first`: what each choice may generate at once; `None`: all of `max_tokens`.
    pub(super) fn new(first: Option<u32>, max_tokens: u32) -> Self {
        let state = first.map_or(State::Whole, |tokens| State::InParts { tokens, part: tokens });
        Self { max_tokens, state }
    }

    /// Takes the next part when little of the last one is left to generate, unless much of what was generated is still to
    /// be delivered: a reader that is slow pays for little that it has not read.
    pub(super) fn extend(&mut self, events: &EventStream, reservation: &mut Reservation, progress: Progress) {
        let State::InParts { tokens, part } = self.state else { return };
        let undelivered = tokens.saturating_sub(progress.delivered);
        let ungenerated = tokens.saturating_sub(progress.generated);
        if ungenerated > part / 2 || undelivered > part.saturating_mul(MAX_UNDELIVERED_PARTS) {
            return;
        }
        match reservation.extend(progress.num_growing, part.min(self.max_tokens - tokens)) {
            Ok(more) => {
                events.grant(more);
                let tokens = tokens + more;
                self.state = if tokens < self.max_tokens { State::InParts { tokens, part } } else { State::Whole };
            }
            Err(Denied::Later(wait)) => {
                if ungenerated == 0 {
                    reservation.stands_still();
                }
                self.state = State::Waiting { tokens, part, pause: Box::pin(sleep(wait)) };
            }
            Err(Denied::Spent) => self.state = State::AtLast { tokens },
        }
    }

    /// Ready when the ledger is to be asked again. Cancel safe.
    pub(super) fn poll_pause(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let State::Waiting { tokens, part, pause } = &mut self.state else { return Poll::Pending };
        let waited = pause.as_mut().poll(context);
        if waited.is_ready() {
            self.state = State::InParts { tokens: *tokens, part: *part };
        }
        waited
    }

    /// What each choice has if it will get no more, although it might become longer.
    pub(super) fn at_last(&self) -> Option<u32> {
        match self.state {
            State::AtLast { tokens } => Some(tokens),
            State::Whole | State::InParts { .. } | State::Waiting { .. } => None,
        }
    }
}
