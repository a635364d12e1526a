//! One request to another server and the events of its answer, with a bound on every wait.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_TYPE;
use tokio::time::timeout;

use super::events::EventReader;
use super::lines::{Line, Lines, Question};
use super::{Timeouts, answer};
use crate::gateway::upstream::Failure;
use crate::silence::Silence;

/// Longest part of a refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;
const DONE: &str = "[DONE]";

/// Its items are the events; the last is the end, or a failure.
pub(super) struct Exchange {
    stage: Stage,
}

enum Stage {
    Asking(Pin<Box<dyn Future<Output = Result<Reading, Failure>> + Send>>),
    Reading(Box<Reading>),
    Over,
}

/// An answer that has begun.
struct Reading {
    lines: Lines,
    line: Line,
    body: Incoming,
    events: EventReader,
    /// The first event, until it is handed out; `None` in it: there was none.
    first: Option<Option<String>>,
    silence: Silence,
}

impl Exchange {
    /// Nothing is sent before it is first polled.
    pub(super) fn new(lines: Lines, question: Question, timeouts: Timeouts) -> Self {
        let first = timeout(timeouts.first_byte, ask(lines, question, timeouts));
        let asking = async { first.await.map_err(|_| Failure::TimedOut)? };
        Self { stage: Stage::Asking(Box::pin(asking)) }
    }
}

impl Stream for Exchange {
    type Item = Result<String, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Stage::Asking(asking) = &mut self.stage {
            match ready!(asking.as_mut().poll(context)) {
                Ok(reading) => self.stage = Stage::Reading(Box::new(reading)),
                Err(failure) => {
                    self.stage = Stage::Over;
                    return Poll::Ready(Some(Err(failure)));
                }
            }
        }
        let Stage::Reading(reading) = &mut self.stage else { return Poll::Ready(None) };
        let said = ready!(reading.poll_event(context));
        if !matches!(said, Ok(Some(_)))
            && let Stage::Reading(reading) = mem::replace(&mut self.stage, Stage::Over)
            && said.is_ok()
        {
            reading.lines.give_back(reading.line, reading.body);
        }
        Poll::Ready(said.transpose())
    }
}

/// Sends the question and reads up to the first event.
async fn ask(lines: Lines, question: Question, timeouts: Timeouts) -> Result<Reading, Failure> {
    let (mut line, response) = lines.ask(question).await?;
    let body = event_stream(&mut line, response, timeouts).await?;
    let silence = Silence::new(timeouts.idle);
    let mut reading = Reading { lines, line, body, events: EventReader::default(), first: None, silence };
    reading.first = Some(std::future::poll_fn(|context| reading.poll_event(context)).await?);
    Ok(reading)
}

impl Reading {
    /// Reads until an event is whole. An end without `[DONE]` is an end: whoever reads the events knows whether they are
    /// complete.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<String>, Failure>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Ok(first));
        }
        loop {
            match self.events.next_event().map_err(|error| Failure::Broke(error.to_string()))? {
                Some(event) if event.trim_end() == DONE => return Poll::Ready(Ok(None)),
                Some(event) => return Poll::Ready(Ok(Some(event))),
                None => {}
            }
            match self.line.poll_part(&mut self.body, context) {
                Poll::Pending => return self.silence.poll_too_long(context).map(|()| Err(Failure::TimedOut)),
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(_))) => {
                    return Poll::Ready(Err(Failure::Broke("the connection broke".to_owned())));
                }
                Poll::Ready(Some(Ok(part))) => {
                    self.silence.heard();
                    if let Some(bytes) = part.data_ref() {
                        self.events.push(bytes);
                    }
                }
            }
        }
    }
}

/// Whether the request is answered with a success, within the time for a connection and as much again for the answer.
pub(super) async fn answers(lines: &Lines, question: Question, timeouts: Timeouts) -> Result<(), Failure> {
    let patience = timeouts.connect.saturating_mul(2);
    let (line, response) = timeout(patience, lines.ask(question)).await.map_err(|_| Failure::TimedOut)??;
    match response.status().as_u16() {
        200..300 => {
            lines.give_back(line, response.into_body());
            Ok(())
        }
        status => Err(answer::failure(status, response.headers(), b"")),
    }
}

/// The body of an answer that is a stream of events.
async fn event_stream(line: &mut Line, response: Response<Incoming>, timeouts: Timeouts) -> Result<Incoming, Failure> {
    let status = response.status().as_u16();
    if status != 200 {
        let (head, body) = response.into_parts();
        let patience = timeouts.connect.min(timeouts.first_byte / 2);
        let body = beginning(Driven { line, body }, patience).await;
        return Err(answer::failure(status, &head.headers, &body));
    }
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.to_ascii_lowercase().starts_with("text/event-stream") {
        return Err(Failure::Broke("its answer is no stream of events".to_owned()));
    }
    Ok(response.into_body())
}

/// As much of a refusal as has come by then: what it means stands in its status, however slowly its text follows.
async fn beginning(mut body: Driven<'_>, patience: Duration) -> Vec<u8> {
    let mut read = Vec::new();
    let reading = async {
        while read.len() < MAX_REFUSAL_BYTES
            && let Some(Ok(part)) = body.frame().await
        {
            if let Some(bytes) = part.data_ref() {
                read.extend_from_slice(bytes);
            }
        }
    };
    // What is missing is not waited for.
    let _ = timeout(patience, reading).await;
    read.truncate(MAX_REFUSAL_BYTES);
    read
}

/// A body with the line that brings it.
struct Driven<'a> {
    line: &'a mut Line,
    body: Incoming,
}

impl Body for Driven<'_> {
    type Data = hyper::body::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        this.line.poll_part(&mut this.body, context)
    }
}
