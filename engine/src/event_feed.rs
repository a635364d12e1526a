//! The way in for what an engine in another process says: it ends in the same [`EventStream`] as that of an engine
//! here, with the same count of what was used.
//!
//! Whoever is on the other end may say anything. What no engine could say is an error, and leaves the stream as it was.

use std::sync::Arc;
use std::time::Duration;

use crate::doorbell::Doorbell;
use crate::encode::EncodeReply;
use crate::event::{Event, FinishReason, RequestError, TokenEvent, TokenLogprobs};
use crate::event_stream::{ChannelSpec, EventSender, EventStream, event_channel};
use crate::reply::{ReplySender, reply_channel};
use crate::request::Request;

/// What a request can have taken of steps, at most: bills are added up for a long time, and a worker's word may be any number.
const MOST_MEASURED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Feeds one request. Dropped before the end, it fails the request with [`RequestError::WorkerLost`].
#[derive(Debug)]
pub struct EventFeed {
    choices: Vec<FedChoice>,
    is_started: bool,
    measured_ns: u64,
    prompt_tokens: usize,
    max_tokens: u32,
    owes_prompt_logprobs: bool,
    vocab_size: usize,
}

/// What no engine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    #[error("a request has no such choice")]
    NoSuchChoice,
    #[error("a choice went on after its end")]
    AfterTheEnd,
    #[error("a token came before its prompt was read")]
    NotStarted,
    #[error("a choice has more tokens than it was granted")]
    BeyondGrant,
    #[error("a token is not of the vocabulary")]
    UnknownToken,
    #[error("log-probabilities are not those of the prompt")]
    NotOfThisPrompt,
}

#[derive(Debug)]
struct FedChoice {
    events: EventSender,
    generated_tokens: u32,
    is_over: bool,
}

impl EventFeed {
    /// `ring` is called whenever the reader has granted more or left, from its thread; it must not block.
    pub fn open(request: &Request, vocab_size: usize, ring: Arc<dyn Fn() + Send + Sync>) -> (Self, EventStream) {
        let (mut first, stream) = event_channel(ChannelSpec::of(request), Doorbell::Elsewhere(ring));
        let further = first.take_further_choices();
        let choice = |events| FedChoice { events, generated_tokens: 0, is_over: false };
        let feed = Self {
            choices: std::iter::once(first).chain(further).map(choice).collect(),
            is_started: false,
            measured_ns: 0,
            prompt_tokens: request.prompt.len(),
            max_tokens: request.sampling.max_tokens,
            owes_prompt_logprobs: request.sampling.prompt_logprobs.is_some(),
            vocab_size,
        };
        (feed, stream)
    }

    /// The prompt is owed from now on, so much of it found in a cache. Once is enough.
    pub fn start(&mut self, cached_tokens: u32) {
        if !self.is_started {
            self.is_started = true;
            // One sender starts the request for all; false only tells that nobody waits any more.
            let cached_tokens = (cached_tokens as usize).min(self.prompt_tokens);
            self.choices.iter().take(1).for_each(|choice| _ = choice.events.start(cached_tokens));
        }
    }

    /// The request's share of steps so far, in nanoseconds. Never falls, and is a month at most.
    pub fn measured(&mut self, ns: u64) {
        let ns = ns.min(MOST_MEASURED.as_nanos() as u64);
        let further = ns.saturating_sub(self.measured_ns);
        self.measured_ns = self.measured_ns.max(ns);
        self.choices.iter().take(1).for_each(|choice| _ = choice.events.add_time(further));
    }

    /// Errors unless they were asked for, are of the whole prompt, and come once.
    pub fn prompt_logprobs(&mut self, entries: Vec<Option<TokenLogprobs>>) -> Result<(), FeedError> {
        let is_of_prompt = std::mem::take(&mut self.owes_prompt_logprobs) && entries.len() == self.prompt_tokens;
        let first = self.choices.first().filter(|_| is_of_prompt).ok_or(FeedError::NotOfThisPrompt)?;
        first.events.send(Event::PromptLogprobs(entries));
        Ok(())
    }

    pub fn token(&mut self, event: TokenEvent) -> Result<(), FeedError> {
        if event.token as usize >= self.vocab_size {
            return Err(FeedError::UnknownToken);
        }
        let (is_started, max_tokens) = (self.is_started, self.max_tokens);
        let choice = self.open_choice(event.choice)?;
        if !is_started {
            return Err(FeedError::NotStarted);
        }
        let granted = u32::try_from(choice.events.granted_tokens()).unwrap_or(u32::MAX).min(max_tokens);
        if choice.generated_tokens >= granted {
            return Err(FeedError::BeyondGrant);
        }
        choice.generated_tokens += 1;
        // Not delivered where the reader has left.
        choice.events.token(event);
        Ok(())
    }

    pub fn finish(&mut self, choice: u32, reason: FinishReason) -> Result<(), FeedError> {
        let choice = self.open_choice(choice)?;
        choice.is_over = true;
        choice.events.finish(reason);
        Ok(())
    }

    /// Ends the request as a whole. Does nothing once every choice is over.
    pub fn fail(&mut self, error: RequestError) {
        if let Some(choice) = self.choices.iter().find(|choice| !choice.is_over) {
            choice.events.mark_failed();
            choice.events.fail(error);
        }
        self.choices.iter_mut().for_each(|choice| choice.is_over = true);
    }

    /// What each choice may generate for now.
    pub fn granted_tokens(&self) -> u32 {
        let granted = self.choices.first().map_or(0, |choice| choice.events.granted_tokens());
        u32::try_from(granted).unwrap_or(u32::MAX)
    }

    /// Whether every choice that is not over has generated what was granted to it, and waits for its reader to grant more.
    pub fn is_parked(&self) -> bool {
        let granted = self.granted_tokens();
        let mut open = self.choices.iter().filter(|choice| !choice.is_over);
        granted < self.max_tokens && !self.has_ended() && open.all(|choice| choice.generated_tokens >= granted)
    }

    /// Choices that nobody reads any more and that are not over.
    pub fn closed_choices(&self) -> impl Iterator<Item = u32> {
        let closed = |choice: &&FedChoice| !choice.is_over && choice.events.is_aborted();
        self.choices.iter().filter(closed).map(|choice| choice.events.choice())
    }

    pub fn has_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.is_over)
    }

    fn open_choice(&mut self, index: u32) -> Result<&mut FedChoice, FeedError> {
        let choice = self.choices.get_mut(index as usize).ok_or(FeedError::NoSuchChoice)?;
        if choice.is_over { Err(FeedError::AfterTheEnd) } else { Ok(choice) }
    }
}

impl Drop for EventFeed {
    fn drop(&mut self) {
        self.fail(RequestError::WorkerLost);
    }
}

/// Feeds the vector of one text. Dropped without an answer, it fails the text.
#[derive(Debug)]
pub struct EncodeFeed(Option<ReplySender<Vec<f32>>>);

impl EncodeFeed {
    pub fn open() -> (Self, EncodeReply) {
        let (sender, reply) = reply_channel();
        (Self(Some(sender)), reply)
    }

    /// Nobody waits for it any more.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_none_or(ReplySender::is_cancelled)
    }

    /// `owed_tokens`: that were run for it.
    pub fn answer(mut self, owed_tokens: usize, answer: Result<Vec<f32>, RequestError>) {
        if let Some(sender) = self.0.take() {
            sender.owe(owed_tokens);
            sender.send(answer);
        }
    }
}

impl Drop for EncodeFeed {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            sender.send(Err(RequestError::WorkerLost));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use passerelle_models::TokenId;

    use super::*;
    use crate::event::Usage;
    use crate::request::{RequestId, SamplingParams};

    const VOCAB_SIZE: usize = 100;

    fn open(num_choices: u32, granted_tokens: Option<u32>) -> (EventFeed, EventStream, Arc<AtomicUsize>) {
        let sampling = SamplingParams { max_tokens: 3, prompt_logprobs: Some(0), ..SamplingParams::default() };
        let num_choices = NonZeroU32::new(num_choices).expect("not zero");
        let request =
            Request { num_choices, granted_tokens, ..Request::new(RequestId(1), vec![1, 2, 3, 4, 5], sampling) };
        let rings = Arc::new(AtomicUsize::new(0));
        let ring = Arc::clone(&rings);
        let (feed, stream) =
            EventFeed::open(&request, VOCAB_SIZE, Arc::new(move || _ = ring.fetch_add(1, Ordering::Relaxed)));
        (feed, stream, rings)
    }

    fn token(choice: u32, token: TokenId) -> TokenEvent {
        TokenEvent { choice, token, logprobs: None }
    }

    #[test]
    fn what_is_fed_is_read_and_counted_as_from_an_engine_here() {
        let (mut feed, mut stream, _) = open(2, None);
        feed.start(4);
        feed.measured(70);
        feed.prompt_logprobs(vec![None; 5]).expect("they were asked for");
        feed.token(token(1, 7)).expect("granted");
        feed.measured(90);
        feed.finish(1, FinishReason::Stop).expect("it runs");
        feed.finish(0, FinishReason::Length).expect("it runs");
        assert!(feed.has_ended());
        let events: Vec<_> = std::iter::from_fn(|| stream.try_next()).collect();
        let usage = Usage { prompt_tokens: 5, cached_tokens: 4, generated_tokens: 1, measured_ns: 90 };
        assert_eq!(events[..2], [Event::PromptLogprobs(vec![None; 5]), Event::Token(token(1, 7))]);
        assert_eq!(events[3], Event::Finished { choice: 0, reason: FinishReason::Length, usage });
        assert_eq!(stream.usage(), usage);
    }

    #[test]
    fn what_no_engine_says_is_refused_and_the_stream_goes_on() {
        let (mut feed, mut stream, _) = open(1, Some(2));
        assert_eq!(feed.token(token(0, 1)), Err(FeedError::NotStarted));
        feed.start(99);
        assert_eq!(stream.usage().cached_tokens, 5, "no more than the prompt is cached");
        assert_eq!(feed.prompt_logprobs(vec![None; 4]), Err(FeedError::NotOfThisPrompt));
        assert_eq!(feed.prompt_logprobs(vec![None; 5]), Err(FeedError::NotOfThisPrompt), "they come once");
        assert_eq!(feed.token(token(1, 1)), Err(FeedError::NoSuchChoice));
        assert_eq!(feed.token(token(0, 100)), Err(FeedError::UnknownToken));
        assert_eq!([feed.token(token(0, 1)), feed.token(token(0, 2))], [Ok(()), Ok(())]);
        assert_eq!(feed.token(token(0, 3)), Err(FeedError::BeyondGrant));
        assert!(feed.is_parked());
        stream.grant(9);
        assert!(!feed.is_parked());
        assert_eq!(feed.token(token(0, 3)), Ok(()));
        assert_eq!(feed.token(token(0, 4)), Err(FeedError::BeyondGrant), "no more than max_tokens");
        assert!(!feed.is_parked(), "it has all that it may have");
        feed.finish(0, FinishReason::Length).expect("it runs");
        assert_eq!(feed.token(token(0, 4)), Err(FeedError::AfterTheEnd));
        assert_eq!(std::iter::from_fn(|| stream.try_next()).count(), 4);
    }

    #[test]
    fn no_worker_makes_a_request_take_more_time_than_can_be_added_up() {
        let (mut feed, stream, _) = open(1, None);
        feed.start(0);
        [5, u64::MAX, 7, u64::MAX].into_iter().for_each(|ns| feed.measured(ns));
        let measured = stream.usage().measured_ns;
        assert_eq!(u128::from(measured), MOST_MEASURED.as_nanos());
        assert!((measured / 1000).checked_mul(1_000_000).is_some_and(|micros| i64::try_from(micros).is_ok()));
    }

    #[test]
    fn a_reader_that_leaves_rings_and_its_choices_are_known() {
        let (mut feed, stream, rings) = open(2, None);
        feed.start(0);
        stream.abort_choice(1);
        assert_eq!((rings.load(Ordering::Relaxed), feed.closed_choices().collect::<Vec<_>>()), (1, vec![1]));
        drop(stream);
        assert_eq!((rings.load(Ordering::Relaxed), feed.closed_choices().count()), (2, 2));
        feed.finish(1, FinishReason::Aborted).expect("it was open");
        assert_eq!(feed.closed_choices().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_feed_that_is_lost_fails_its_request_and_its_text() {
        let (mut feed, mut stream, _) = open(2, None);
        feed.finish(0, FinishReason::Stop).expect("it runs");
        drop(feed);
        assert!(matches!(stream.try_next(), Some(Event::Finished { choice: 0, .. })));
        assert!(matches!(stream.try_next(), Some(Event::Failed { error: RequestError::WorkerLost, .. })));
        assert_eq!(stream.try_next(), None);
        let (feed, reply) = EncodeFeed::open();
        drop(feed);
        assert_eq!(reply.blocking_wait(), Err(RequestError::WorkerLost));
    }

    #[test]
    fn a_vector_is_owed_for_as_it_says() {
        let (feed, mut reply) = EncodeFeed::open();
        feed.answer(7, Ok(vec![0.5]));
        assert_eq!(reply.close().prompt_tokens, 7);
        let waiting = std::pin::pin!(reply.wait());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert_eq!(waiting.poll(&mut context), std::task::Poll::Ready(Ok(vec![0.5])));
    }
}
