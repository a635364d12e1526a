//! Which requests of one connection are being answered, and how far they have come: what the bytes of the connection alone do
//! not say.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, Response, Version};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::service::TowerToHyperService;

/// What a stream of events says to a peer that is asked whether it is still there.
const COMMENT: &[u8] = b": waiting\n\n";

/// A connection's requests. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// The last turn whose request was read to its end.
    heard: AtomicUsize,
    /// The last turn whose answer has begun.
    answered: AtomicUsize,
    /// Whether the last turn's peer knows that an answer may be announced. In HTTP/1.0 it may not.
    may_be_told_to_wait: AtomicBool,
    /// Whether a stream is to say something.
    is_prodded: AtomicBool,
}

/// How far the last request of a connection has come that has one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is over.
    Idle,
    /// A part of it may be missing, or its peer cannot be told anything before its answer.
    Asked,
    /// All of it is there, and no word of its answer.
    Silent,
    Answering,
}

/// One request, from the end of its head to that of its answer's body, however that comes.
#[derive(Debug)]
pub(super) struct Turn {
    counts: Arc<Counts>,
    /// From 1.
    number: usize,
}

/// The body of a request, which says when it was read to its end.
pub(super) struct Question {
    body: Incoming,
    counts: Arc<Counts>,
    number: usize,
}

/// The body of an answer, which ends its turn.
pub(super) struct Answer {
    body: Body,
    turn: Turn,
    is_event_stream: bool,
}

impl Turns {
    /// How many answers have ended.
    pub(super) fn ended(&self) -> usize {
        self.counts.ended.load(Ordering::Acquire)
    }

    pub(super) fn is_any_running(&self) -> bool {
        self.counts.begun.load(Ordering::Acquire) > self.ended()
    }

    pub(super) fn stage(&self) -> Stage {
        let counts = &self.counts;
        let last = counts.begun.load(Ordering::Acquire);
        if !self.is_any_running() {
            Stage::Idle
        } else if counts.answered.load(Ordering::Acquire) >= last {
            Stage::Answering
        } else if counts.heard.load(Ordering::Acquire) >= last && counts.may_be_told_to_wait.load(Ordering::Acquire) {
            Stage::Silent
        } else {
            Stage::Asked
        }
    }

    /// Lets a stream of events say something as soon as it has nothing to say. Other answers are written at once, as far as the
    /// peer takes them.
    pub(super) fn prod(&self) {
        self.counts.is_prodded.store(true, Ordering::Release);
    }

    /// `router`, whose requests are counted here.
    pub(super) fn count(
        &self,
        router: Router,
    ) -> impl Service<Request<Incoming>, Response = Response<Answer>, Error = Infallible, Future: Send + 'static> + use<>
    {
        let (turns, router) = (self.clone(), TowerToHyperService::new(router));
        service_fn(move |request: Request<Incoming>| {
            let turn = turns.begin(request.version());
            let answering = router.call(request.map(|body| Question::of(&turn, body)));
            async move {
                let response = answering.await?;
                Ok::<_, Infallible>(Answer::of(turn, response))
            }
        })
    }

    pub(super) fn begin(&self, version: Version) -> Turn {
        self.counts.may_be_told_to_wait.store(version == Version::HTTP_11, Ordering::Release);
        let number = self.counts.begun.fetch_add(1, Ordering::AcqRel) + 1;
        Turn { counts: Arc::clone(&self.counts), number }
    }
}

impl Counts {
    fn hear(&self, number: usize) {
        self.heard.fetch_max(number, Ordering::AcqRel);
    }
}

impl Turn {
    /// All of the request is there.
    #[cfg(test)]
    pub(super) fn hear(&self) {
        self.counts.hear(self.number);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.counts.ended.fetch_add(1, Ordering::AcqRel);
    }
}

impl Question {
    fn of(turn: &Turn, body: Incoming) -> Self {
        let question = Self { body, counts: Arc::clone(&turn.counts), number: turn.number };
        question.look_for_its_end();
        question
    }

    fn look_for_its_end(&self) {
        if self.body.is_end_stream() {
            self.counts.hear(self.number);
        }
    }
}

impl HttpBody for Question {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match &frame {
            Poll::Ready(None) => self.counts.hear(self.number),
            Poll::Ready(Some(Ok(_))) => self.look_for_its_end(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Answer {
    /// From here on its head may be written.
    fn of(turn: Turn, response: Response<Body>) -> Response<Self> {
        turn.counts.answered.fetch_max(turn.number, Ordering::AcqRel);
        let kind = response.headers().get(CONTENT_TYPE);
        let is_event_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        response.map(|body| Self { body, turn, is_event_stream })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // Frames of such a stream are whole events, so that a comment can stand between any two.
        if frame.is_pending() && self.is_event_stream && self.turn.counts.is_prodded.swap(false, Ordering::AcqRel) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
