//! One request to another server and the events of its answer, with a bound on every wait.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response};
use tokio::time::timeout;

use super::events::EventReader;
use super::{HttpClient, Timeouts, answer};
use crate::gateway::upstream::Failure;

/// Longest part of a refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;
const DONE: &str = "[DONE]";

pub(super) struct Exchange {
    client: HttpClient,
    timeouts: Timeouts,
    stage: Stage,
}

enum Stage {
    Unsent(Box<Request<Full<Bytes>>>),
    Reading { body: Incoming, events: EventReader },
    Over,
}

impl Exchange {
    pub(super) fn new(client: HttpClient, request: Request<Full<Bytes>>, timeouts: Timeouts) -> Self {
        Self { client, timeouts, stage: Stage::Unsent(Box::new(request)) }
    }

    /// The next event and what follows it. The last is the end, or a failure.
    pub(super) async fn step(mut self) -> Option<(Result<String, Failure>, Self)> {
        let said = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Over => return None,
            Stage::Unsent(request) => self.begin(*request).await,
            Stage::Reading { body, events } => self.go_on(body, events).await,
        };
        said.transpose().map(|said| (said, self))
    }

    async fn begin(&mut self, request: Request<Full<Bytes>>) -> Result<Option<String>, Failure> {
        let first = async {
            let body = event_stream(send(&self.client, request).await?).await?;
            self.read(body, EventReader::default()).await
        };
        let (event, stage) = timeout(self.timeouts.first_byte, first).await.map_err(|_| Failure::TimedOut)??;
        self.stage = stage;
        Ok(event)
    }

    async fn go_on(&mut self, body: Incoming, events: EventReader) -> Result<Option<String>, Failure> {
        let (event, stage) = self.read(body, events).await?;
        self.stage = stage;
        Ok(event)
    }

    /// Reads until an event is whole. An end without `[DONE]` is an end: whoever reads the events knows whether they are
    /// complete.
    async fn read(&self, mut body: Incoming, mut events: EventReader) -> Result<(Option<String>, Stage), Failure> {
        loop {
            match events.next_event().map_err(|error| Failure::Broke(error.to_string()))? {
                Some(event) if event == DONE => return Ok((None, Stage::Over)),
                Some(event) => return Ok((Some(event), Stage::Reading { body, events })),
                None => {}
            }
            let frame = timeout(self.timeouts.idle, body.frame()).await.map_err(|_| Failure::TimedOut)?;
            match frame {
                None => return Ok((None, Stage::Over)),
                Some(Err(_)) => return Err(Failure::Broke("the connection broke".to_owned())),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        events.push(bytes);
                    }
                }
            }
        }
    }
}

/// Whether the request is answered with a success, within the time for a connection and as much again for the answer.
pub(super) async fn answers(
    client: &HttpClient,
    request: Request<Full<Bytes>>,
    timeouts: Timeouts,
) -> Result<(), Failure> {
    let patience = timeouts.connect.saturating_mul(2);
    let response = timeout(patience, send(client, request)).await.map_err(|_| Failure::TimedOut)??;
    match response.status().as_u16() {
        200..300 => Ok(()),
        status => Err(answer::failure(status, response.headers(), b"")),
    }
}

async fn send(client: &HttpClient, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
    client.request(request).await.map_err(|error| match error.is_connect() {
        true => Failure::Unreachable,
        false => Failure::Broke("the connection broke before the answer".to_owned()),
    })
}

/// The body of an answer that is a stream of events.
async fn event_stream(response: Response<Incoming>) -> Result<Incoming, Failure> {
    let status = response.status().as_u16();
    if status != 200 {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_REFUSAL_BYTES).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(answer::failure(status, &head.headers, &body));
    }
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.to_ascii_lowercase().starts_with("text/event-stream") {
        return Err(Failure::Broke("its answer is no stream of events".to_owned()));
    }
    Ok(response.into_body())
}
