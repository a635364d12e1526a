//! The way out: one vector or one error, and a count that both ends agree on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::oneshot;

use crate::event::{RequestError, Usage};

/// The answer to one text. Dropping it before it is there cancels the text: one that waits is never run.
#[derive(Debug)]
pub struct EncodeReply {
    meter: Arc<Meter>,
    answer: oneshot::Receiver<Answer>,
}

pub(super) type Answer = Result<Vec<f32>, RequestError>;

/// The lane's end.
#[derive(Debug)]
pub(super) struct EncodeSender {
    meter: Arc<Meter>,
    answer: oneshot::Sender<Answer>,
}

/// Closing freezes what is owed, so that the reader's bill and the lane's own total agree.
#[derive(Debug)]
struct Meter {
    state: AtomicU8,
    tokens: u32,
}

const STARTED: u8 = 1;
const CLOSED: u8 = 2;

pub(super) fn reply_channel(num_tokens: usize) -> (EncodeSender, EncodeReply) {
    let meter = Arc::new(Meter { state: AtomicU8::new(0), tokens: num_tokens as u32 });
    let (sender, receiver) = oneshot::channel();
    (EncodeSender { meter: Arc::clone(&meter), answer: sender }, EncodeReply { meter, answer: receiver })
}

impl EncodeReply {
    /// The vector, or why there is none. Cancel safe, until it is ready.
    pub async fn wait(&mut self) -> Result<Vec<f32>, RequestError> {
        (&mut self.answer).await.unwrap_or_else(|_| Err(lost()))
    }

    /// [`EncodeReply::wait`] for threads outside an async runtime.
    pub fn blocking_wait(mut self) -> Result<Vec<f32>, RequestError> {
        let (_, nobody) = oneshot::channel();
        let answer = std::mem::replace(&mut self.answer, nobody);
        // The drop at the end cancels nothing: the text has been answered by then.
        answer.blocking_recv().unwrap_or_else(|_| Err(lost()))
    }

    /// Cancels the text unless it runs already, and returns what it has used, which from now on does not change.
    pub fn close(&self) -> Usage {
        self.meter.close()
    }
}

impl Drop for EncodeReply {
    fn drop(&mut self) {
        self.meter.close();
    }
}

impl EncodeSender {
    /// The text is about to run, and is owed from now on. False if it was cancelled.
    pub(super) fn start(&self) -> bool {
        let open = |state: u8| (state & CLOSED == 0).then_some(state | STARTED);
        self.meter.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.meter.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Whoever no longer listens has closed the meter.
    pub(super) fn send(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

impl Meter {
    fn close(&self) -> Usage {
        let before = self.state.fetch_or(CLOSED, Ordering::AcqRel);
        let prompt_tokens = if before & STARTED == 0 { 0 } else { self.tokens };
        Usage { prompt_tokens, ..Usage::default() }
    }
}

fn lost() -> RequestError {
    RequestError::Step("the engine stopped before the text was read".into())
}
