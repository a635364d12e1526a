//! The way out of the engine: one bounded queue of events per request.
//!
//! The queue holds the `max_tokens` of every choice and the few other events that a request can ever see, so it is never
//! full and the engine never waits for a reader. What was used is counted in a [`Meter`] that both ends share. Closing
//! the stream freezes it, so that the reader's bill and the engine's own totals agree to the token.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::counted::Counted;
use crate::doorbell::Doorbell;
use crate::event::{Event, FinishReason, RequestError, TokenEvent, Usage};
use crate::meter::Meter;
use crate::request::Request;

/// The events of one request. Dropping it before the last one aborts the request: its blocks are free at the next step.
#[derive(Debug)]
pub struct EventStream {
    meter: Arc<Meter>,
    events: mpsc::Receiver<Event>,
    doorbell: Doorbell,
    /// Choices whose last event was not returned yet.
    open_choices: u32,
}

/// Aborts a request from elsewhere. Outliving the request is harmless.
#[derive(Debug, Clone)]
pub struct AbortHandle {
    meter: Arc<Meter>,
    doorbell: Doorbell,
}

/// The engine's end, for the choices that one sequence stands for: all of them until their prompt is computed, then one.
#[derive(Debug)]
pub(crate) struct EventSender {
    meter: Arc<Meter>,
    events: mpsc::Sender<Event>,
    choices: Range<u32>,
}

/// What a request is known by here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChannelSpec {
    pub(crate) prompt_tokens: u32,
    /// Of each choice.
    pub(crate) max_tokens: u32,
    pub(crate) granted_tokens: u32,
    pub(crate) num_choices: u32,
}

pub(crate) fn event_channel(spec: ChannelSpec, doorbell: Doorbell) -> (EventSender, EventStream) {
    let choices = 0..spec.num_choices;
    let meter = Arc::new(Meter::new(spec.prompt_tokens, spec.granted_tokens, choices.end));
    let (sender, receiver) = mpsc::channel(spec.capacity());
    let stream = EventStream { meter: Arc::clone(&meter), events: receiver, doorbell, open_choices: choices.end };
    (EventSender { meter, events: sender, choices }, stream)
}

impl ChannelSpec {
    pub(crate) fn of(request: &Request) -> Self {
        Self {
            prompt_tokens: request.prompt.len() as u32,
            max_tokens: request.sampling.max_tokens,
            granted_tokens: request.granted_tokens.unwrap_or(u32::MAX),
            num_choices: request.num_choices.get(),
        }
    }

    /// Every token, one end of each choice, and `PromptLogprobs`.
    fn capacity(&self) -> usize {
        self.num_choices as usize * (self.max_tokens as usize + 1) + 1
    }
}

impl EventStream {
    /// The next event, or `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        if self.has_ended() {
            return None;
        }
        let event = self.events.recv().await;
        Some(self.note(event))
    }

    /// [`EventStream::next`] for threads outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        if self.has_ended() {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.note(event))
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        if self.has_ended() {
            return None;
        }
        match self.events.try_recv() {
            Ok(event) => Some(self.note(Some(event))),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(self.note(None)),
        }
    }

    /// Lets each choice generate `more` tokens beyond what was granted before, within its `max_tokens`.
    pub fn grant(&self, more: u32) {
        self.meter.grant(more);
        self.doorbell.ring();
    }

    /// Stops the request and returns what it has used, which from now on does not change. A last [`Event::Finished`] with
    /// [`FinishReason::Aborted`] follows for each open choice, for whoever still reads.
    pub fn abort(&self) -> Usage {
        let usage = self.meter.close();
        self.doorbell.ring();
        usage
    }

    /// Stops one choice; the others go on. Returns what the choice has generated, which from now on does not change.
    pub fn abort_choice(&self, choice: u32) -> u32 {
        let generated_tokens = self.meter.close_choice(choice);
        self.doorbell.ring();
        generated_tokens
    }

    /// What the request has used so far.
    pub fn usage(&self) -> Usage {
        self.meter.usage()
    }

    /// The engine's count, for whoever looks at it when this stream is gone.
    pub fn count(&self) -> Arc<dyn Counted> {
        self.meter.clone()
    }

    /// True once the last event was returned.
    pub fn has_ended(&self) -> bool {
        self.open_choices == 0
    }

    /// A handle that aborts this request from elsewhere.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { meter: Arc::clone(&self.meter), doorbell: self.doorbell.clone() }
    }

    /// A queue that closes without a last event lost its engine; the reader still gets one.
    fn note(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or_else(|| Event::Failed {
            error: RequestError::Step("the engine stopped before the request ended".into()),
            usage: self.meter.close(),
        });
        match event {
            Event::Finished { .. } => self.open_choices -= 1,
            Event::Failed { .. } => self.open_choices = 0,
            Event::PromptLogprobs(_) | Event::Token(_) => {}
        }
        event
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.abort();
        }
    }
}

impl AbortHandle {
    /// See [`EventStream::abort`].
    pub fn abort(&self) -> Usage {
        let usage = self.meter.close();
        self.doorbell.ring();
        usage
    }
}

impl EventSender {
    pub(crate) fn num_choices(&self) -> u32 {
        self.choices.end - self.choices.start
    }

    /// The one that this sender stands for, or the first of several.
    pub(crate) fn choice(&self) -> u32 {
        self.choices.start
    }

    /// Gives every choice but the first a sender of its own.
    pub(crate) fn take_further_choices(&mut self) -> Vec<Self> {
        let further = self.choices.start + 1..self.choices.end;
        self.choices.end = further.start;
        let sender =
            |choice| Self { meter: Arc::clone(&self.meter), events: self.events.clone(), choices: choice..choice + 1 };
        further.map(sender).collect()
    }

    /// The first step is about to run. False if the request was aborted.
    pub(crate) fn start(&self, cached_tokens: usize) -> bool {
        self.meter.start(cached_tokens as u32)
    }

    /// Counts and delivers one token. False, without counting, if its choice was aborted.
    pub(crate) fn token(&self, event: TokenEvent) -> bool {
        let counted = self.meter.count_token(event.choice);
        if counted {
            self.send(Event::Token(event));
        }
        counted
    }

    /// Adds to the time that the request has taken. False, adding nothing, once it is over.
    pub(crate) fn add_time(&self, ns: u64) -> bool {
        self.meter.add_time(ns)
    }

    pub(crate) fn send(&self, event: Event) {
        match self.events.try_send(event) {
            // A reader that left has closed the meter on its way; the next drain of aborts sees it.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => unreachable!("the queue holds every event a request can see"),
        }
    }

    pub(crate) fn finish(&self, reason: FinishReason) {
        if self.has_failed() {
            return;
        }
        for choice in self.choices.clone() {
            self.meter.close_choice(choice);
            self.send(Event::Finished { choice, reason, usage: self.meter.usage() });
        }
    }

    /// The request is lost, whatever its other choices still do. False if one of them has said so before.
    pub(crate) fn mark_failed(&self) -> bool {
        self.meter.mark_failed()
    }

    /// One of the request's choices has said that it is lost.
    pub(crate) fn has_failed(&self) -> bool {
        self.meter.has_failed()
    }

    /// Ends every choice of the request. Once for each of them at most; the reader hears the first.
    pub(crate) fn fail(&self, error: RequestError) {
        self.send(Event::Failed { error, usage: self.meter.close() });
    }

    /// Nobody waits for any of the choices that this sender stands for.
    pub(crate) fn is_aborted(&self) -> bool {
        self.choices.clone().all(|choice| self.meter.is_closed(choice))
    }

    /// Tokens that each choice may generate for now.
    pub(crate) fn granted_tokens(&self) -> usize {
        self.meter.granted_tokens() as usize
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::step::Command;

    fn channel(prompt_tokens: u32, max_tokens: u32, num_choices: u32) -> (EventSender, EventStream, Receiver<Command>) {
        let (commands, rings) = sync_channel(1);
        let spec = ChannelSpec { prompt_tokens, max_tokens, granted_tokens: u32::MAX, num_choices };
        let (sender, stream) = event_channel(spec, Doorbell::new(commands, Default::default()));
        (sender, stream, rings)
    }

    fn token(choice: u32, token: u32) -> TokenEvent {
        TokenEvent { choice, token, logprobs: None }
    }

    #[test]
    fn the_queue_holds_every_event_of_a_request_that_nobody_reads() {
        let (mut sender, mut stream, _) = channel(5, 3, 2);
        sender.start(4);
        sender.send(Event::PromptLogprobs(Vec::new()));
        let further = sender.take_further_choices();
        for sender in further.iter().chain([&sender]) {
            assert!((0..3).all(|id| sender.token(token(sender.choice(), id))));
            sender.finish(FinishReason::Length);
        }
        let events: Vec<_> = std::iter::from_fn(|| stream.try_next()).collect();
        let usage = Usage { prompt_tokens: 5, cached_tokens: 4, generated_tokens: 6, measured_ns: 0 };
        assert_eq!(events.len(), 9);
        assert_eq!(events[8], Event::Finished { choice: 0, reason: FinishReason::Length, usage });
        assert!(stream.has_ended());
    }

    #[test]
    fn usage_is_frozen_by_an_abort_also_the_time() {
        let (sender, stream, rings) = channel(5, 3, 1);
        assert_eq!(stream.usage(), Usage::default());
        sender.start(0);
        sender.token(token(0, 1));
        assert!(sender.add_time(70));
        let bill = stream.abort();
        assert_eq!(bill, Usage { prompt_tokens: 5, cached_tokens: 0, generated_tokens: 1, measured_ns: 70 });
        assert!(sender.is_aborted());
        assert!(!sender.token(token(0, 2)) && !sender.add_time(5));
        assert_eq!(stream.usage(), bill);
        assert!(rings.try_recv().is_ok(), "the engine is woken");
    }

    #[test]
    fn one_choice_may_leave_before_the_others() {
        let (sender, stream, _) = channel(1, 9, 2);
        sender.start(0);
        sender.token(token(1, 7));
        assert_eq!(stream.abort_choice(1), 1);
        assert!(!sender.token(token(1, 8)) && sender.token(token(0, 8)));
        assert!(!sender.is_aborted(), "its sequence still stands for choice 0");
        assert_eq!(stream.usage().generated_tokens, 2);
    }

    #[test]
    fn dropping_the_stream_aborts() {
        let (sender, stream, rings) = channel(1, 1, 1);
        drop(stream);
        assert!(sender.is_aborted() && rings.try_recv().is_ok());
        assert!(!sender.start(0));
    }

    #[test]
    fn a_request_fails_once_and_hears_nothing_after() {
        let (mut sender, mut stream, _) = channel(1, 1, 2);
        let further = sender.take_further_choices();
        assert!(further[0].mark_failed() && !sender.mark_failed());
        sender.finish(FinishReason::Aborted);
        further[0].fail(RequestError::NotFinite);
        sender.fail(RequestError::NotFinite);
        assert!(matches!(stream.try_next(), Some(Event::Failed { .. })));
        assert_eq!(stream.try_next(), None);
    }

    #[test]
    fn a_lost_engine_still_ends_the_stream() {
        let (sender, mut stream, _) = channel(1, 1, 1);
        drop(sender);
        assert!(matches!(stream.blocking_next(), Some(Event::Failed { .. })));
        assert_eq!(stream.blocking_next(), None);
    }
}
