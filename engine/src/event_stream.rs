//! The way out of the engine: one bounded queue of events per request.
//!
//! The queue holds the request's `max_tokens` and the few other events it can ever see, so it is never full and the
//! engine never waits for a reader. What was used is counted in one atomic word that both ends share. Closing the
//! stream freezes it, so that the reader's bill and the engine's own totals agree to the token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::event::{Event, FinishReason, RequestError, TokenEvent, Usage};

/// `PromptLogprobs`, and one of `Finished` and `Failed`.
const EVENTS_BESIDE_TOKENS: usize = 2;

/// The events of one request. Dropping it before the last one aborts the request: its blocks are free at the next step.
#[derive(Debug)]
pub struct EventStream {
    meter: Arc<Meter>,
    events: mpsc::Receiver<Event>,
    ended: bool,
}

/// Aborts a request from elsewhere. Outliving the request is harmless.
#[derive(Debug, Clone)]
pub struct AbortHandle {
    meter: Arc<Meter>,
}

/// The engine's end.
#[derive(Debug)]
pub(crate) struct EventSender {
    meter: Arc<Meter>,
    events: mpsc::Sender<Event>,
}

/// ```text
/// word:  closed (1 bit) | started (1 bit) | unused (30) | generated tokens (32)
/// ```
#[derive(Debug)]
struct Meter {
    word: AtomicU64,
    cached_tokens: AtomicU32,
    prompt_tokens: u32,
}

const CLOSED: u64 = 1 << 63;
const STARTED: u64 = 1 << 62;

pub(crate) fn event_channel(prompt_tokens: usize, max_tokens: usize) -> (EventSender, EventStream) {
    let meter = Arc::new(Meter {
        word: AtomicU64::new(0),
        cached_tokens: AtomicU32::new(0),
        prompt_tokens: prompt_tokens as u32,
    });
    let (sender, receiver) = mpsc::channel(max_tokens + EVENTS_BESIDE_TOKENS);
    (EventSender { meter: Arc::clone(&meter), events: sender }, EventStream { meter, events: receiver, ended: false })
}

impl EventStream {
    /// The next event, or `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await;
        Some(self.note(event))
    }

    /// [`EventStream::next`] for threads outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.note(event))
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        match self.events.try_recv() {
            Ok(event) => Some(self.note(Some(event))),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(self.note(None)),
        }
    }

    /// Stops the request and returns what it has used, which from now on does not change. A last
    /// [`Event::Finished`] with [`FinishReason::Aborted`] follows for whoever still reads.
    pub fn abort(&self) -> Usage {
        self.meter.close()
    }

    /// What the request has used so far.
    pub fn usage(&self) -> Usage {
        self.meter.usage()
    }

    /// True once the last event was returned.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// A handle that aborts this request from elsewhere.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { meter: Arc::clone(&self.meter) }
    }

    /// A queue that closes without a last event lost its engine; the reader still gets one.
    fn note(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or_else(|| Event::Failed {
            error: RequestError::Step("the engine stopped before the request ended".into()),
            usage: self.meter.close(),
        });
        self.ended = matches!(event, Event::Finished { .. } | Event::Failed { .. });
        event
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.meter.close();
    }
}

impl AbortHandle {
    /// See [`EventStream::abort`].
    pub fn abort(&self) -> Usage {
        self.meter.close()
    }
}

impl EventSender {
    /// The first step is about to run. False if the request was aborted.
    pub(crate) fn start(&self, cached_tokens: usize) -> bool {
        self.meter.cached_tokens.store(cached_tokens as u32, Ordering::Release);
        self.meter.update(|word| word | STARTED)
    }

    /// Counts and delivers one token. False, without counting, if the request was aborted.
    pub(crate) fn token(&self, event: TokenEvent) -> bool {
        let counted = self.meter.update(|word| word + 1);
        if counted {
            self.send(Event::Token(event));
        }
        counted
    }

    pub(crate) fn send(&self, event: Event) {
        match self.events.try_send(event) {
            // A reader that left has closed the meter on its way; the next drain of aborts sees it.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => unreachable!("the queue holds every event a request can see"),
        }
    }

    pub(crate) fn finish(&self, reason: FinishReason) {
        self.send(Event::Finished { reason, usage: self.meter.close() });
    }

    pub(crate) fn fail(&self, error: RequestError) {
        self.send(Event::Failed { error, usage: self.meter.close() });
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.meter.word.load(Ordering::Acquire) & CLOSED != 0
    }
}

impl Meter {
    /// False, changing nothing, once closed.
    fn update(&self, change: impl Fn(u64) -> u64) -> bool {
        let open = |word: u64| (word & CLOSED == 0).then(|| change(word));
        self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
    }

    fn close(&self) -> Usage {
        self.usage_of(self.word.fetch_or(CLOSED, Ordering::AcqRel))
    }

    fn usage(&self) -> Usage {
        self.usage_of(self.word.load(Ordering::Acquire))
    }

    /// A request that never had a step has used nothing.
    fn usage_of(&self, word: u64) -> Usage {
        if word & STARTED == 0 {
            return Usage::default();
        }
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.load(Ordering::Acquire),
            generated_tokens: word as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(token: u32) -> TokenEvent {
        TokenEvent { token, logprobs: None }
    }

    #[test]
    fn the_queue_holds_every_event_of_a_request_that_nobody_reads() {
        let (sender, mut stream) = event_channel(5, 3);
        sender.start(4);
        sender.send(Event::PromptLogprobs(Vec::new()));
        assert!((0..3).all(|id| sender.token(token(id))));
        sender.finish(FinishReason::Length);
        let events: Vec<_> = std::iter::from_fn(|| stream.try_next()).collect();
        let usage = Usage { prompt_tokens: 5, cached_tokens: 4, generated_tokens: 3 };
        assert_eq!(events.len(), 5);
        assert_eq!(events[4], Event::Finished { reason: FinishReason::Length, usage });
        assert!(stream.has_ended());
    }

    #[test]
    fn usage_is_frozen_by_an_abort() {
        let (sender, stream) = event_channel(5, 3);
        assert_eq!(stream.usage(), Usage::default());
        sender.start(0);
        sender.token(token(1));
        let bill = stream.abort();
        assert_eq!(bill, Usage { prompt_tokens: 5, cached_tokens: 0, generated_tokens: 1 });
        assert!(sender.is_aborted());
        assert!(!sender.token(token(2)));
        assert_eq!(stream.usage(), bill);
    }

    #[test]
    fn dropping_the_stream_aborts() {
        let (sender, stream) = event_channel(1, 1);
        drop(stream);
        assert!(sender.is_aborted());
        assert!(!sender.start(0));
    }

    #[test]
    fn a_lost_engine_still_ends_the_stream() {
        let (sender, mut stream) = event_channel(1, 1);
        drop(sender);
        assert!(matches!(stream.blocking_next(), Some(Event::Failed { .. })));
        assert_eq!(stream.blocking_next(), None);
    }
}
