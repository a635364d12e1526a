//! The requests that one worker has, as its gateway keeps account of them: what is still to be sent, what was heard,
//! and what their readers have changed since. Without threads or time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use passerelle_engine::{
    EncodeFeed, EncodeReply, EncodeRequest, EventFeed, EventStream, FinishReason, Request, RequestError,
};
use tokio::sync::Notify;

use super::wire::{self, CallId, Change, Heard, Orders, Submission, Text, Violation, event, feed_events};

/// Prompt tokens of one message of orders; what is beyond goes with the next.
const MAX_ORDERED_TOKENS: usize = 1 << 20;

/// A request or a text, and the way in for what comes of it. Dropped, it is lost, and its reader is told.
#[derive(Debug)]
pub(super) struct Job {
    kind: JobKind,
    /// Of the link that it is given to, which wants to hear of what its reader changes.
    bell: Arc<OnceLock<Arc<Notify>>>,
}

#[derive(Debug)]
enum JobKind {
    Generate { request: Box<Request>, grammar: Option<Vec<u8>>, feed: EventFeed },
    Encode { text: EncodeRequest, vector_len: usize, feed: EncodeFeed },
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    next: u64,
    /// Not sent yet, in the order in which they came.
    unsent: VecDeque<(CallId, Job)>,
    sent: BTreeMap<u64, Sent>,
}

/// What one model has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Occupancy {
    pub(super) waiting_requests: usize,
    pub(super) waiting_tokens: usize,
    /// Tokens of prompts that have had no answer yet.
    pub(super) unanswered_prompt_tokens: usize,
    /// Tokens that may still be generated for what waits and what runs.
    pub(super) owed_tokens: u64,
    pub(super) running_requests: usize,
    /// Wait for their readers to grant more, and for nothing of the worker.
    pub(super) parked_requests: usize,
}

#[derive(Debug)]
struct Sent {
    model: u32,
    prompt_tokens: usize,
    /// That may still come.
    owed_tokens: u64,
    is_started: bool,
    is_answered: bool,
    way_in: WayIn,
}

#[derive(Debug)]
enum WayIn {
    /// `granted_tokens`, `closed_choices`: as the worker was told.
    Events { feed: EventFeed, granted_tokens: u32, closed_choices: Vec<u32> },
    /// `is_cancelled`: the worker was told.
    Vector { feed: Option<EncodeFeed>, vector_len: usize, is_cancelled: bool },
}

impl Job {
    /// `vocab_size`: tokens that an answer may be made of.
    pub(super) fn generate(mut request: Request, grammar: Option<Vec<u8>>, vocab_size: usize) -> (Self, EventStream) {
        let bell: Arc<OnceLock<Arc<Notify>>> = Arc::default();
        let ring = Arc::clone(&bell);
        let ring = move || ring.get().into_iter().for_each(|bell| bell.notify_one());
        let (feed, stream) = EventFeed::open(&request, vocab_size, Arc::new(ring));
        request.constraint = None;
        (Self { kind: JobKind::Generate { request: Box::new(request), grammar, feed }, bell }, stream)
    }

    /// `vector_len`: numbers of the answer.
    pub(super) fn encode(text: EncodeRequest, vector_len: usize) -> (Self, EncodeReply) {
        let (feed, reply) = EncodeFeed::open();
        (Self { kind: JobKind::Encode { text, vector_len, feed }, bell: Arc::default() }, reply)
    }

    fn prompt_tokens(&self) -> usize {
        match &self.kind {
            JobKind::Generate { request, .. } => request.prompt.len(),
            JobKind::Encode { text, .. } => text.tokens.len(),
        }
    }

    /// The longest answers that it may get, together; a step for a text.
    fn answer_tokens(&self) -> u64 {
        match &self.kind {
            JobKind::Generate { request, .. } => answer_tokens(request),
            JobKind::Encode { .. } => 1,
        }
    }

    /// Whether nobody waits for it any more; then its reader has heard the end. Of one that goes on, the worker is told which
    /// choices are closed: it runs them until then.
    pub(super) fn is_abandoned(&mut self) -> bool {
        match &mut self.kind {
            JobKind::Encode { feed, .. } => feed.is_cancelled(),
            JobKind::Generate { request, feed, .. } => {
                let closed: Vec<u32> = feed.closed_choices().collect();
                if closed.len() < request.num_choices.get() as usize {
                    return feed.has_ended();
                }
                for choice in closed {
                    // It is open, or it would not be closed and not over.
                    let _ = feed.finish(choice, FinishReason::Aborted);
                }
                true
            }
        }
    }
}

/// The longest answers that a request may get, all choices together.
pub(super) fn answer_tokens(request: &Request) -> u64 {
    u64::from(request.sampling.max_tokens).saturating_mul(u64::from(request.num_choices.get()))
}

impl Calls {
    /// Takes it in; `bell` is rung when its reader changes something.
    pub(super) fn add(&mut self, model: u32, job: Job, bell: &Arc<Notify>) {
        // A job is given to a link once.
        let _ = job.bell.set(Arc::clone(bell));
        self.unsent.push_back((CallId { call: self.next, model }, job));
        self.next += 1;
    }

    pub(super) fn occupancy(&self, model: u32) -> Occupancy {
        let mut occupancy = Occupancy::default();
        let mut wait = |prompt_tokens: usize| {
            occupancy.waiting_requests += 1;
            occupancy.waiting_tokens += prompt_tokens;
        };
        let unsent = || self.unsent.iter().filter(move |(id, _)| id.model == model).map(|(_, job)| job);
        unsent().for_each(|job| wait(job.prompt_tokens()));
        let (started, waiting): (Vec<&Sent>, Vec<&Sent>) =
            self.sent.values().filter(|call| call.model == model).partition(|call| call.is_started);
        waiting.iter().for_each(|call| wait(call.prompt_tokens));
        let sent = || started.iter().chain(&waiting);
        let unanswered: usize = sent().filter(|call| !call.is_answered).map(|call| call.prompt_tokens).sum();
        occupancy.unanswered_prompt_tokens = unanswered + unsent().map(Job::prompt_tokens).sum::<usize>();
        let owed: u64 = sent().map(|call| call.owed_tokens).sum();
        occupancy.owed_tokens = owed.saturating_add(unsent().map(Job::answer_tokens).sum());
        occupancy.parked_requests = started.iter().filter(|call| call.is_parked()).count();
        occupancy.running_requests = started.len() - occupancy.parked_requests;
        occupancy
    }

    /// Requests and texts of one model that have not ended.
    pub(super) fn num_of(&self, model: u32) -> u64 {
        let unsent = self.unsent.iter().filter(|(id, _)| id.model == model).count();
        let sent = self.sent.values().filter(|call| call.model == model).count();
        (unsent + sent) as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.sent.is_empty()
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// What the worker does not know yet. `None` when it knows everything.
    pub(super) fn take_orders(&mut self) -> Option<Orders> {
        let mut orders = Orders::default();
        let mut tokens = 0;
        while tokens < MAX_ORDERED_TOKENS
            && let Some((id, mut job)) = self.unsent.pop_front()
        {
            if !job.is_abandoned() {
                tokens += job.prompt_tokens();
                self.send(id, job, &mut orders);
            }
        }
        orders.changes.extend(self.sent.iter_mut().filter_map(|(&call, sent)| sent.take_change(call)));
        let is_empty = orders.submissions.is_empty() && orders.texts.is_empty() && orders.changes.is_empty();
        (!is_empty).then_some(orders)
    }

    fn send(&mut self, id: CallId, job: Job, orders: &mut Orders) {
        let (prompt_tokens, owed_tokens) = (job.prompt_tokens(), job.answer_tokens());
        let way_in = match job.kind {
            JobKind::Generate { request, grammar, feed } => {
                let granted_tokens = feed.granted_tokens();
                orders.submissions.push(Submission::of(id, *request, grammar, granted_tokens));
                WayIn::Events { feed, granted_tokens, closed_choices: Vec::new() }
            }
            JobKind::Encode { text, vector_len, feed } => {
                orders.texts.push(Text::of(id, text));
                WayIn::Vector { feed: Some(feed), vector_len, is_cancelled: false }
            }
        };
        let sent = Sent { model: id.model, prompt_tokens, owed_tokens, is_started: false, is_answered: false, way_in };
        self.sent.insert(id.call, sent);
    }

    /// Errors leave everything as it was but for what the message had said before.
    pub(super) fn hear(&mut self, heard: Heard) -> Result<(), Violation> {
        let id = heard.call;
        let call = self.sent.get_mut(&id).ok_or(Violation::UnknownCall)?;
        if call.hear(heard)? {
            self.sent.remove(&id);
        }
        Ok(())
    }
}

impl Sent {
    /// What its reader has changed since the worker was told.
    fn take_change(&mut self, call: u64) -> Option<Change> {
        match &mut self.way_in {
            WayIn::Events { feed, granted_tokens, closed_choices } => {
                let newly_closed: Vec<u32> =
                    feed.closed_choices().filter(|choice| !closed_choices.contains(choice)).collect();
                let granted = feed.granted_tokens();
                if newly_closed.is_empty() && granted == *granted_tokens {
                    return None;
                }
                *granted_tokens = granted;
                closed_choices.extend(&newly_closed);
                Some(Change { call, granted_tokens: granted, closed_choices: newly_closed })
            }
            WayIn::Vector { feed, is_cancelled, .. } => {
                let is_news = !*is_cancelled && feed.as_ref().is_some_and(EncodeFeed::is_cancelled);
                *is_cancelled |= is_news;
                is_news.then(|| Change { call, granted_tokens: 0, closed_choices: vec![0] })
            }
        }
    }

    fn is_parked(&self) -> bool {
        matches!(&self.way_in, WayIn::Events { feed, .. } if feed.is_parked())
    }

    /// True once nothing more can come.
    fn hear(&mut self, heard: Heard) -> Result<bool, Violation> {
        match &mut self.way_in {
            WayIn::Events { feed, .. } => {
                if let Some(cached_tokens) = heard.cached_tokens {
                    self.is_started = true;
                    feed.start(cached_tokens);
                }
                feed.measured(heard.measured_ns);
                let tokens = heard.events.iter().filter(|event| matches!(event.what, Some(event::What::Token(_))));
                let tokens = tokens.count() as u64;
                self.is_answered |= tokens > 0;
                self.owed_tokens = self.owed_tokens.saturating_sub(tokens);
                feed_events(heard.events, feed)?;
                Ok(feed.has_ended())
            }
            WayIn::Vector { feed, vector_len, .. } => {
                let Some(event) = heard.events.into_iter().next() else { return Ok(false) };
                let (owed_tokens, answer) = match event.what.ok_or(wire::Malformed("event"))? {
                    event::What::Vector(vector) if !is_answer(&vector.values, *vector_len) => {
                        return Err(wire::Malformed("vector").into());
                    }
                    event::What::Vector(vector) => (vector.owed_tokens as usize, Ok(vector.values)),
                    event::What::Failed(failed) => (0, Err(RequestError::try_from(failed)?)),
                    _ => return Err(wire::Malformed("event").into()),
                };
                if let Some(feed) = feed.take() {
                    feed.answer(owed_tokens.min(self.prompt_tokens), answer);
                }
                Ok(true)
            }
        }
    }
}

/// An engine fails a text whose numbers are none.
fn is_answer(values: &[f32], vector_len: usize) -> bool {
    values.len() == vector_len && values.iter().all(|value| value.is_finite())
}

#[cfg(test)]
mod tests;
