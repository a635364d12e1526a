//! A running request: its events, the reservation that pays for them, and its share of its replica's load.
//!
//! Whoever holds it may go away at any moment: dropping it aborts the request in the engine, takes the engine's own
//! count of what was used, which from then on does not change, and settles exactly that. So the ledger's sum is the
//! engine's, whatever the clients did.
//!
//! A request may have several choices: answers to one prompt, which is computed and paid once. Each ends by itself.

mod grants;

use std::future::poll_fn;
use std::sync::Arc;

use passerelle_engine::{Event, EventStream, FinishReason, Request, SharedModel, TokenEvent, Usage};

use super::journal::EntryEnd;
use super::ledger::Reservation;
use super::replica::{InFlight, Replica, ReplicaRefusal};
use grants::{Grants, Progress};

#[derive(Debug)]
#[must_use = "dropping a generation aborts and settles it"]
pub struct Generation {
    // Dropped in this order: the engine stops before the ledger and the router count the room as free.
    events: EventStream,
    reservation: Reservation,
    in_flight: InFlight,
    grants: Grants,
    /// Came from the engine, and waits until it may be sent.
    held_back: Option<Event>,
    choices: Vec<ChoiceInFlight>,
    /// Generated beyond what ended a choice.
    wasted_tokens: u32,
    /// What the model read for this request outside its engine's steps.
    beside: Usage,
    /// It ended because what it used could not be written down.
    is_unwritten: bool,
    /// It failed, and not by what it asked for: nobody pays for that.
    is_free: bool,
}

/// A replica did not take the request. Another one may be tried under the same reservation; without one, withdraw it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotStarted {
    pub error: ReplicaRefusal,
    pub reservation: Reservation,
}

/// How far one choice has come.
#[derive(Debug, Clone, Copy, Default)]
struct ChoiceInFlight {
    delivered_tokens: u32,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Growing,
    /// Nothing more is granted and all that was is delivered: the engine was told to end it, unless it had ended by itself.
    Starved,
    Over,
    OutOfQuota,
}

impl Generation {
    /// Hands the request to a replica.
    pub fn start(
        replica: &Arc<Replica>,
        mut request: Request,
        reservation: Reservation,
    ) -> Result<Self, Box<NotStarted>> {
        request.granted_tokens = reservation.first_part();
        let grants = Grants::new(request.granted_tokens, request.sampling.max_tokens);
        let choices = vec![ChoiceInFlight::default(); request.num_choices.get() as usize];
        match replica.submit(request) {
            Ok((events, in_flight)) => {
                let mut reservation = reservation.here();
                reservation.proof().by(events.count());
                Ok(Self {
                    events,
                    reservation,
                    in_flight,
                    grants,
                    held_back: None,
                    choices,
                    wasted_tokens: 0,
                    beside: Usage::default(),
                    is_unwritten: false,
                    is_free: false,
                })
            }
            Err(error) => Err(Box::new(NotStarted { error, reservation })),
        }
    }

    /// The next event; `None` once every choice is over. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        if self.held_back.is_none() {
            self.held_back = self.next_of_an_open_choice().await;
        }
        match &self.held_back {
            Some(Event::Token(token)) => {
                let choice = token.choice;
                if self.reservation.covers(self.delivered_tokens() + 1).await.is_err() {
                    self.give_up();
                    return None;
                }
                self.choices[choice as usize].delivered_tokens += 1;
                let sent = Usage { generated_tokens: self.delivered_tokens(), ..self.events.usage() };
                self.reservation.mark(sent);
            }
            Some(Event::Finished { choice, reason, .. }) => self.note_end(*choice, *reason),
            Some(Event::Failed { error, .. }) => {
                self.is_free = error.is_engine_fault();
                self.choices.iter_mut().for_each(|choice| choice.stage = Stage::Over);
                self.reservation.end(EntryEnd::Failed);
            }
            Some(Event::PromptLogprobs(_)) | None => {}
        }
        self.held_back.take()
    }

    /// Whether a choice that the engine was told to end ended because no more was granted to it.
    pub fn is_out_of_quota(&self, choice: u32) -> bool {
        self.choices[choice as usize].stage == Stage::OutOfQuota
    }

    /// Whether it ended because the ledger could not be written for too long.
    pub fn is_unwritten(&self) -> bool {
        self.is_unwritten
    }

    /// What the engine has used for this request so far.
    pub fn used(&self) -> Usage {
        self.events.usage()
    }

    /// Ends a choice at its last delivered token, which completed a stop string. What the engine ran beyond it is waste
    /// and is not billed.
    pub fn end_here(&mut self, choice: u32) {
        let generated_tokens = self.events.abort_choice(choice);
        let ended = &mut self.choices[choice as usize];
        ended.stage = Stage::Over;
        self.wasted_tokens += generated_tokens - ended.delivered_tokens;
        self.reservation.end(EntryEnd::Stop);
    }

    /// What the replica runs, for others who run it in turn with it. `None` once its engine has ended.
    pub fn shared_model(&self) -> Option<SharedModel> {
        self.in_flight.replica().shared_model()
    }

    /// The model has read a prompt for this request, outside its engine: it is settled with the rest.
    pub fn ran_beside(&mut self, read: Usage) {
        self.beside.prompt_tokens = self.beside.prompt_tokens.saturating_add(read.prompt_tokens);
        self.beside.measured_ns = self.beside.measured_ns.saturating_add(read.measured_ns);
        self.reservation.proof().read_beside(read);
    }

    /// It is a part of what the server failed at: nobody pays for it.
    pub fn make_free(&mut self) {
        self.is_free = true;
        self.reservation.end(EntryEnd::Failed);
    }

    /// Ends the request wherever it is, and settles what was used.
    pub fn close(self) -> Usage {
        self.stop()
    }

    fn give_up(&mut self) {
        self.is_unwritten = true;
        self.choices.iter_mut().for_each(|choice| choice.stage = Stage::Over);
        self.make_free();
    }

    async fn next_of_an_open_choice(&mut self) -> Option<Event> {
        while self.choices.iter().any(ChoiceInFlight::is_open) {
            self.extend();
            self.end_starved();
            let (events, grants) = (&mut self.events, &mut self.grants);
            tokio::select! {
                biased;
                event = events.next() => match &event {
                    Some(Event::Token(TokenEvent { choice, .. }) | Event::Finished { choice, .. })
                        if !self.choices[*choice as usize].is_open() => {}
                    _ => return event,
                },
                () = poll_fn(|context| grants.poll_pause(context)) => {}
            }
        }
        None
    }

    /// It is over, and settles only with others: nobody waits for what it holds.
    pub fn rests(&mut self) {
        self.reservation.stands_still();
    }

    fn extend(&mut self) {
        let growing = || self.choices.iter().filter(|choice| choice.stage == Stage::Growing);
        let num_growing = growing().map(|_| 1).sum();
        let Some(delivered) = growing().map(|choice| choice.delivered_tokens).max() else { return };
        let generated = delivered.max(self.events.usage().generated_tokens / self.choices.len() as u32);
        let progress = Progress { num_growing, delivered, generated };
        self.grants.extend(&self.events, &mut self.reservation, progress);
    }

    fn end_starved(&mut self) {
        let Some(granted) = self.grants.at_last() else { return };
        for (choice, in_flight) in (0..).zip(&mut self.choices) {
            if in_flight.stage == Stage::Growing && in_flight.delivered_tokens >= granted {
                self.events.abort_choice(choice);
                in_flight.stage = Stage::Starved;
            }
        }
    }

    fn note_end(&mut self, choice: u32, reason: FinishReason) {
        let stage = &mut self.choices[choice as usize].stage;
        let (ended, end) = match (*stage, reason) {
            (Stage::Starved, FinishReason::Aborted) => (Stage::OutOfQuota, EntryEnd::Quota),
            _ => (Stage::Over, end_of(reason)),
        };
        *stage = ended;
        self.reservation.end(end);
    }

    fn delivered_tokens(&self) -> u32 {
        self.choices.iter().map(|choice| choice.delivered_tokens).sum()
    }

    /// Stops the engine; afterwards the usage does not change.
    fn stop(&self) -> Usage {
        let counted = self.events.abort();
        let measured_ns = counted.measured_ns.saturating_add(self.beside.measured_ns);
        if self.is_free {
            return Usage { measured_ns, ..Usage::default() };
        }
        Usage {
            prompt_tokens: counted.prompt_tokens.saturating_add(self.beside.prompt_tokens),
            generated_tokens: counted.generated_tokens - self.wasted_tokens,
            measured_ns,
            ..counted
        }
    }
}

impl ChoiceInFlight {
    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Growing | Stage::Starved)
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
        self.reservation.record(self.stop());
        let (counted, beside) = (self.events.usage(), self.beside);
        let proof = self.reservation.proof();
        if self.is_free {
            proof.leave_out(counted);
            proof.leave_out(beside);
        } else {
            proof.leave_out(Usage { generated_tokens: self.wasted_tokens, ..Usage::default() });
        }
    }
}

#[cfg(test)]
mod tests;
