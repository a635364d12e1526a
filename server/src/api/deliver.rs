//! Delivers the pieces of an admitted request: folded into one answer, or as an event stream. Both read the same
//! pieces, so both say the same.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use passerelle_engine::Usage;
use tokio::time::{sleep, timeout};

use super::delta::ChoiceDelta;
use super::errors::{ApiError, ErrorKind};
use super::generate::Admitted;
use super::launch::LivePrompt;
use super::sse::{ReaderGone, SseWriter, sse_response};
use super::state::AppState;
use super::wire::answer::{AnswerWriter, Part};
use super::wire::usage::sum_usage;
use crate::silence::Silence;

/// An answer on its way. Dropping it aborts what still runs.
#[derive(Debug)]
pub(crate) struct Delivery {
    state: AppState,
    admitted: Admitted,
    answer: Box<dyn AnswerWriter>,
    /// Whom to ask first for the next piece, so that no prompt waits for another.
    next_turn: usize,
}

/// A request that was not admitted.
pub(crate) struct NotAdmitted {
    pub(crate) error: ApiError,
    /// Makes the answer that says so, where a stream has begun; most refusals come before and need none.
    pub(crate) answer: Box<dyn FnOnce() -> Box<dyn AnswerWriter> + Send>,
}

/// A stream that begins before its request is admitted, so that nobody on its way takes it for dead.
pub(crate) fn stream_once_admitted(
    state: &AppState,
    admission: impl Future<Output = Result<Delivery, NotAdmitted>> + Send + 'static,
) -> Response {
    let sse = state.config().sse;
    let (writer, response) = sse_response(&sse);
    tokio::spawn(async move {
        // A reader that left leaves the line too: the admission is dropped.
        let Ok(admitted) = wait_for(admission, &writer, sse.keep_alive).await else { return };
        let _: Result<(), ReaderGone> = match admitted {
            Ok(delivery) => delivery.write_to(&writer).await,
            Err(refused) => refused.write_to(&writer).await,
        };
    });
    response
}

impl NotAdmitted {
    async fn write_to(self, writer: &SseWriter) -> Result<(), ReaderGone> {
        let mut answer = (self.answer)();
        let parts = answer.failure(&self.error);
        write_parts(writer, &parts).await?;
        writer.done(answer.stream_end()).await
    }
}

impl Delivery {
    pub(crate) fn new(state: AppState, admitted: Admitted, answer: Box<dyn AnswerWriter>) -> Self {
        Self { state, admitted, answer, next_turn: 0 }
    }

    pub(crate) async fn whole(mut self) -> Result<Response, ApiError> {
        let too_late = self.time_is_over();
        let joined = tokio::select! {
            biased;
            () = too_late => Err(timed_out(&self.state)),
            joined = self.join_all() => joined,
        };
        joined.inspect_err(|error| self.fail(error))?;
        let usage = self.usage();
        Ok(Json(self.answer.whole(usage)).into_response())
    }

    /// Ready when the whole request has taken as long as it may, its admission included; at once, if it has.
    fn time_is_over(&self) -> impl Future<Output = ()> + use<> {
        let left = self.admitted.ends_at.saturating_sub(self.state.clock().now());
        async move {
            if !left.is_zero() {
                sleep(left).await;
            }
        }
    }

    async fn join_all(&mut self) -> Result<(), ApiError> {
        while let Some(piece) = self.next().await? {
            self.answer.join(piece);
        }
        match self.answer.conclude(&mut self.admitted.prompts) {
            Some(conclusion) => conclusion.await,
            None => Ok(()),
        }
    }

    pub(crate) fn stream(self) -> Response {
        let (writer, response) = sse_response(&self.state.config().sse);
        tokio::spawn(async move {
            // A reader that left took the rest of the answer with it: dropping the delivery aborts what still runs.
            let _: Result<(), ReaderGone> = self.write_to(&writer).await;
        });
        response
    }

    async fn write_to(mut self, writer: &SseWriter) -> Result<(), ReaderGone> {
        let too_late = self.time_is_over();
        let written = tokio::select! {
            biased;
            () = writer.reader_gone() => return Err(ReaderGone),
            () = too_late => Err(timed_out(&self.state)),
            written = self.write_answer(writer) => written?,
        };
        if let Err(error) = written {
            // What still runs ends before the reader is waited for.
            self.fail(&error);
            self.admitted.prompts.clear();
            tracing::warn!(error = error.label(), "a stream ended with an error");
            let parts = self.answer.failure(&error);
            write_parts(writer, &parts).await?;
        }
        writer.done(self.answer.stream_end()).await
    }

    /// The inner error is for the reader to see.
    async fn write_answer(&mut self, writer: &SseWriter) -> Result<Result<(), ApiError>, ReaderGone> {
        let usage = self.usage();
        write_parts(writer, &self.answer.opening(usage)).await?;
        let mut silence = Silence::new(self.state.config().sse.keep_alive);
        loop {
            match self.next_or_keep_alive(writer, &mut silence).await? {
                Ok(Some(piece)) => {
                    let usage = self.usage();
                    write_parts(writer, &self.answer.part(piece, usage)).await?;
                }
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        let keep_alive = self.state.config().sse.keep_alive;
        if let Some(conclusion) = self.answer.conclude(&mut self.admitted.prompts)
            && let Err(error) = wait_for(conclusion, writer, keep_alive).await?
        {
            return Ok(Err(error));
        }
        let usage = self.usage();
        write_parts(writer, &self.answer.closing(usage)).await?;
        Ok(Ok(()))
    }

    /// Waits for a piece, and says so to the reader from time to time.
    async fn next_or_keep_alive(
        &mut self,
        writer: &SseWriter,
        silence: &mut Silence,
    ) -> Result<Result<Option<ChoiceDelta>, ApiError>, ReaderGone> {
        loop {
            tokio::select! {
                biased;
                piece = self.next() => {
                    silence.heard();
                    return Ok(piece);
                }
                () = silence.too_long() => writer.keep_alive().await?,
            }
        }
    }

    /// The next piece of whichever prompt has one; `None` when all are over. Cancel-safe.
    async fn next(&mut self) -> Result<Option<ChoiceDelta>, ApiError> {
        let Some((prompt, piece)) = next_piece(&mut self.admitted.prompts, self.next_turn).await? else {
            return Ok(None);
        };
        self.next_turn = prompt + 1;
        let index = prompt * self.admitted.num_choices + piece.index;
        Ok(Some(ChoiceDelta { index, ..piece }))
    }

    fn fail(&mut self, error: &ApiError) {
        self.admitted.prompts.iter_mut().for_each(|prompt| prompt.fail(error));
    }

    /// So far; what was settled, once all choices are over.
    fn usage(&mut self) -> Usage {
        let uses = self.admitted.prompts.iter().map(LivePrompt::usage);
        self.answer.note_uses(&mut uses.clone());
        sum_usage(uses)
    }
}

/// Says from time to time that it is not over.
async fn wait_for<T>(
    future: impl Future<Output = T>,
    writer: &SseWriter,
    keep_alive: Duration,
) -> Result<T, ReaderGone> {
    let mut future = pin!(future);
    loop {
        writer.keep_alive().await?;
        tokio::select! {
            biased;
            () = writer.reader_gone() => return Err(ReaderGone),
            awaited = timeout(keep_alive, future.as_mut()) => if let Ok(output) = awaited { return Ok(output) },
        }
    }
}

async fn write_parts(writer: &SseWriter, parts: &[Part]) -> Result<(), ReaderGone> {
    for part in parts {
        writer.part(part).await?;
    }
    Ok(())
}

/// Polls every prompt once a wake-up, beginning with `first`. Returns also whose piece it is.
async fn next_piece(prompts: &mut [LivePrompt], first: usize) -> Result<Option<(usize, ChoiceDelta)>, ApiError> {
    poll_fn(|context| {
        let count = prompts.len();
        let mut all_over = true;
        for index in (0..count).map(|turn| (first + turn) % count) {
            match pin!(prompts[index].next()).poll(context) {
                Poll::Ready(Ok(Some(piece))) => return Poll::Ready(Ok(Some((index, piece)))),
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
    let seconds = state.config().request_timeout.as_secs_f64();
    ApiError::new(ErrorKind::RequestTimeout, format!("The answer took longer than {seconds} seconds."))
}
