//! Texts on their way through an encoder: the reservation that pays for all of them, and their share of their replica's
//! load.
//!
//! As a [`super::Generation`], whoever holds it may go away at any moment: dropping it cancels what waits, takes the
//! lane's own count of what ran, and settles exactly that.

use std::collections::VecDeque;
use std::sync::Arc;

use passerelle_engine::{EncodeReply, EncodeRequest, RequestError, Usage};

use super::generation::NotStarted;
use super::journal::EntryEnd;
use super::ledger::Reservation;
use super::replica::{InFlight, Replica, ReplicaRefusal};

#[derive(Debug)]
#[must_use = "dropping an encoding cancels and settles it"]
pub struct Encoding {
    // Dropped in this order: the lane stops before the ledger and the router count the room as free.
    texts: VecDeque<TextInFlight>,
    reservation: Reservation,
    replica: Arc<Replica>,
    ended: Usage,
    /// A text failed, and not by what it is: nobody pays for a list without an answer.
    is_free: bool,
}

#[derive(Debug)]
struct TextInFlight {
    reply: EncodeReply,
    _in_flight: InFlight,
}

impl Encoding {
    /// Hands the first text to a replica, which reads the others too.
    pub fn start(
        replica: &Arc<Replica>,
        first: EncodeRequest,
        reservation: Reservation,
    ) -> Result<Self, Box<NotStarted>> {
        match replica.encode(first) {
            Ok((reply, in_flight)) => {
                let mut reservation = reservation.here();
                reservation.proof().by(reply.count());
                let texts = VecDeque::from([TextInFlight { reply, _in_flight: in_flight }]);
                Ok(Self { texts, reservation, replica: Arc::clone(replica), ended: Usage::default(), is_free: false })
            }
            Err(error) => Err(Box::new(NotStarted { error, reservation })),
        }
    }

    /// Hands over one more text. A full queue refuses it, and has room again once one of these has been answered.
    pub fn push(&mut self, text: EncodeRequest) -> Result<(), ReplicaRefusal> {
        let (reply, in_flight) = self.replica.encode(text)?;
        self.reservation.proof().by(reply.count());
        self.texts.push_back(TextInFlight { reply, _in_flight: in_flight });
        Ok(())
    }

    /// Texts that were not answered yet.
    pub fn num_in_flight(&self) -> usize {
        self.texts.len()
    }

    /// The answer to the oldest text, `None` when all were answered. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Vec<f32>, RequestError>> {
        let Some(oldest) = self.texts.front_mut() else {
            self.reservation.end(EntryEnd::Answered);
            return None;
        };
        let answer = oldest.reply.wait().await;
        self.ended = add(self.ended, oldest.reply.close());
        self.texts.pop_front();
        if let Err(error) = &answer {
            self.is_free |= error.is_engine_fault();
            self.reservation.end(EntryEnd::Failed);
        }
        Some(answer)
    }

    /// Cancels what waits; returns what is paid for, which from now on does not change.
    pub fn close(&mut self) -> Usage {
        for text in self.texts.drain(..) {
            self.ended = add(self.ended, text.reply.close());
        }
        if self.is_free { Usage::default() } else { self.ended }
    }

    /// The list has no answer, and not by what it is.
    pub fn make_free(&mut self) {
        self.is_free = true;
        self.reservation.end(EntryEnd::Failed);
    }
}

impl Drop for Encoding {
    fn drop(&mut self) {
        let paid = self.close();
        if self.is_free {
            self.reservation.proof().leave_out(self.ended);
        }
        self.reservation.record(paid);
    }
}

fn add(a: Usage, b: Usage) -> Usage {
    Usage { prompt_tokens: a.prompt_tokens.saturating_add(b.prompt_tokens), ..a }
}
