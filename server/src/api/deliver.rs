//! Delivers the pieces of an admitted request: folded into one answer, or as an event stream. Both read the same
//! pieces, so both say the same.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use passerelle_engine::Usage;
use tokio::time::{Sleep, sleep, timeout};

use super::choice::RunningChoice;
use super::delta::{Choice, ChoiceDelta, Delta};
use super::errors::{ApiError, ErrorKind};
use super::generate::Admitted;
use super::sse::{ReaderGone, SseWriter, sse_response};
use super::state::AppState;
use super::wire::answer::Answer;
use super::wire::usage::sum_usage;

/// An answer on its way. Dropping it aborts what still runs.
#[derive(Debug)]
pub(crate) struct Delivery {
    state: AppState,
    admitted: Admitted,
    answer: Answer,
    too_late: Pin<Box<Sleep>>,
    meter: Meter,
    /// Whom to ask first for the next piece, so that no choice waits for another.
    next_turn: usize,
}

impl Delivery {
    pub(crate) fn new(state: AppState, admitted: Admitted, answer: Answer) -> Self {
        let meter = Meter::new(&admitted);
        let too_late = Box::pin(sleep(state.config().request_timeout));
        Self { state, admitted, answer, too_late, meter, next_turn: 0 }
    }

    pub(crate) async fn respond(self) -> Result<Response, ApiError> {
        match self.answer.output.stream {
            None => self.whole().await,
            Some(_) => Ok(self.stream()),
        }
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut choices = vec![Choice::default(); self.admitted.choices.len()];
        while let Some(ChoiceDelta { index, delta }) = self.next().await? {
            choices[index].push(delta);
        }
        let body = self.answer.whole(&choices, self.meter.usage());
        Ok(Json(body).into_response())
    }

    fn stream(self) -> Response {
        let (writer, response) = sse_response(&self.state.config().sse);
        tokio::spawn(async move {
            // A reader that left took the rest of the answer with it: dropping the delivery aborts what still runs.
            let _: Result<(), ReaderGone> = self.write_to(&writer).await;
        });
        response
    }

    async fn write_to(mut self, writer: &SseWriter) -> Result<(), ReaderGone> {
        if let Some(opening) = self.answer.opening() {
            writer.data(&opening).await?;
        }
        loop {
            let piece = tokio::select! {
                () = writer.reader_gone() => return Err(ReaderGone),
                piece = self.next_or_keep_alive(writer) => piece?,
            };
            match piece {
                Ok(Some(piece)) => self.write_piece(writer, &piece).await?,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = error.label(), "a stream ended with an error");
                    writer.data(&error.body()).await?;
                    return writer.done().await;
                }
            }
        }
        if self.wants_usage() {
            writer.data(&self.answer.usage_chunk(self.meter.usage())).await?;
        }
        writer.done().await
    }

    async fn write_piece(&self, writer: &SseWriter, piece: &ChoiceDelta) -> Result<(), ReaderGone> {
        match self.answer.chunk(piece) {
            Some(chunk) => writer.data(&chunk).await,
            None => Ok(()),
        }
    }

    /// Waits for a piece, and says so to the reader from time to time.
    async fn next_or_keep_alive(
        &mut self,
        writer: &SseWriter,
    ) -> Result<Result<Option<ChoiceDelta>, ApiError>, ReaderGone> {
        let patience = self.state.config().sse.keep_alive;
        loop {
            match timeout(patience, self.next()).await {
                Ok(piece) => return Ok(piece),
                Err(_) => writer.keep_alive().await?,
            }
        }
    }

    /// The next piece of whichever choice has one; `None` when all are over. Cancel-safe.
    async fn next(&mut self) -> Result<Option<ChoiceDelta>, ApiError> {
        let piece = tokio::select! {
            biased;
            piece = next_piece(&mut self.admitted.choices, self.next_turn) => piece?,
            () = &mut self.too_late => return Err(timed_out(&self.state)),
        };
        if let Some(piece) = &piece {
            self.next_turn = piece.index + 1;
            self.meter.note(&self.state, &piece.delta);
        }
        Ok(piece)
    }

    fn wants_usage(&self) -> bool {
        self.answer.output.stream.is_some_and(|options| options.include_usage)
    }
}

impl Drop for Delivery {
    /// What did not get to its end was used nevertheless.
    fn drop(&mut self) {
        let Some(metrics) = self.state.metrics().model(&self.admitted.model.name) else { return };
        let took = self.state.clock().now().saturating_sub(self.admitted.arrived);
        for used in self.admitted.choices.iter().filter_map(RunningChoice::used) {
            metrics.ended(used, took);
        }
    }
}

/// Polls every choice once a wake-up, beginning with `first`.
async fn next_piece(choices: &mut [RunningChoice], first: usize) -> Result<Option<ChoiceDelta>, ApiError> {
    poll_fn(|context| {
        let count = choices.len();
        let mut all_over = true;
        for index in (0..count).map(|turn| (first + turn) % count) {
            match pin!(choices[index].next()).poll(context) {
                Poll::Ready(Ok(Some(delta))) => return Poll::Ready(Ok(Some(ChoiceDelta { index, delta }))),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => all_over = false,
            }
        }
        if all_over { Poll::Ready(Ok(None)) } else { Poll::Pending }
    })
    .await
}

/// What is measured of one answer, on the server's clock.
#[derive(Debug)]
struct Meter {
    model: Arc<super::state::ServedModel>,
    arrived: Duration,
    last_token: Option<Duration>,
    finished: Vec<Usage>,
}

impl Meter {
    fn new(admitted: &Admitted) -> Self {
        let model = Arc::clone(&admitted.model);
        Self { model, arrived: admitted.arrived, last_token: None, finished: Vec::new() }
    }

    fn note(&mut self, state: &AppState, delta: &Delta) {
        let Some(metrics) = state.metrics().model(&self.model.name) else { return };
        let now = state.clock().now();
        match delta {
            Delta::Text(part) if !part.token_ids.is_empty() => match self.last_token.replace(now) {
                None => metrics.first_token(now.saturating_sub(self.arrived)),
                Some(last) => metrics.next_token(now.saturating_sub(last)),
            },
            Delta::Finished(finish) => {
                self.finished.push(finish.usage);
                metrics.ended(finish.usage, now.saturating_sub(self.arrived));
            }
            _ => {}
        }
    }

    fn usage(&self) -> Usage {
        sum_usage(self.finished.iter().copied())
    }
}

fn timed_out(state: &AppState) -> ApiError {
    let seconds = state.config().request_timeout.as_secs();
    ApiError::new(ErrorKind::RequestTimeout, format!("The answer took longer than {seconds} seconds."))
}
