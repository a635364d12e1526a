//! Delivers the pieces of an admitted request: folded into one answer, or as an event stream. Both read the same
//! pieces, so both say the same.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use axum::Json;
use axum::response::{IntoResponse, Response};
use passerelle_engine::Usage;
use tokio::time::{sleep, timeout};

use super::delta::{Choice, ChoiceDelta};
use super::errors::{ApiError, ErrorKind};
use super::generate::Admitted;
use super::launch::LiveChoice;
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
    /// Whom to ask first for the next piece, so that no choice waits for another.
    next_turn: usize,
}

impl Delivery {
    pub(crate) fn new(state: AppState, admitted: Admitted, answer: Answer) -> Self {
        Self { state, admitted, answer, next_turn: 0 }
    }

    pub(crate) async fn respond(self) -> Result<Response, ApiError> {
        match self.answer.output.stream {
            None => self.whole().await,
            Some(_) => Ok(self.stream()),
        }
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let too_late = sleep(self.state.config().request_timeout);
        let choices = tokio::select! {
            biased;
            () = too_late => return Err(timed_out(&self.state)),
            choices = self.all_pieces() => choices?,
        };
        let body = self.answer.whole(&choices, self.usage());
        Ok(Json(body).into_response())
    }

    async fn all_pieces(&mut self) -> Result<Vec<Choice>, ApiError> {
        let mut choices = vec![Choice::default(); self.admitted.choices.len()];
        while let Some(ChoiceDelta { index, delta }) = self.next().await? {
            choices[index].push(delta);
        }
        Ok(choices)
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
        let too_late = sleep(self.state.config().request_timeout);
        let written = tokio::select! {
            biased;
            () = writer.reader_gone() => return Err(ReaderGone),
            () = too_late => Err(timed_out(&self.state)),
            written = self.write_answer(writer) => written?,
        };
        if let Err(error) = written {
            // What still runs ends before the reader is waited for.
            self.admitted.choices.clear();
            tracing::warn!(error = error.label(), "a stream ended with an error");
            writer.data(&error.body()).await?;
        }
        writer.done().await
    }

    /// The inner error is for the reader to see.
    async fn write_answer(&mut self, writer: &SseWriter) -> Result<Result<(), ApiError>, ReaderGone> {
        if let Some(opening) = self.answer.opening(self.usage()) {
            writer.data(&opening).await?;
        }
        loop {
            match self.next_or_keep_alive(writer).await? {
                Ok(Some(piece)) => {
                    if let Some(chunk) = self.answer.chunk(&piece, self.usage()) {
                        writer.data(&chunk).await?;
                    }
                }
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        if let Some(chunk) = self.answer.usage_chunk(self.usage()) {
            writer.data(&chunk).await?;
        }
        Ok(Ok(()))
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
        let piece = next_piece(&mut self.admitted.choices, self.next_turn).await?;
        if let Some(piece) = &piece {
            self.next_turn = piece.index + 1;
        }
        Ok(piece)
    }

    /// So far; what was settled, once all choices are over.
    fn usage(&self) -> Usage {
        sum_usage(self.admitted.choices.iter().map(LiveChoice::usage))
    }
}

/// Polls every choice once a wake-up, beginning with `first`.
async fn next_piece(choices: &mut [LiveChoice], first: usize) -> Result<Option<ChoiceDelta>, ApiError> {
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

fn timed_out(state: &AppState) -> ApiError {
    let seconds = state.config().request_timeout.as_secs();
    ApiError::new(ErrorKind::RequestTimeout, format!("The answer took longer than {seconds} seconds."))
}
