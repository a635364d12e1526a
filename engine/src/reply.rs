//! The way out of a lane: one answer or one error, and a count that both ends agree on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;

use crate::counted::Counted;
use crate::event::{RequestError, Usage};

/// The answer to one request of a lane. Dropping it before it is there cancels the request: one that waits is never run.
#[derive(Debug)]
pub struct Reply<T> {
    owed: Arc<Owed>,
    answer: oneshot::Receiver<Result<T, RequestError>>,
}

/// The lane's end.
#[derive(Debug)]
pub(crate) struct ReplySender<T> {
    owed: Arc<Owed>,
    answer: oneshot::Sender<Result<T, RequestError>>,
}

/// Tokens that are owed. Closing freezes them, so that the reader's bill and the lane's own total agree.
#[derive(Debug, Default)]
struct Owed(AtomicU64);

const CLOSED: u64 = 1 << 63;

pub(crate) fn reply_channel<T>() -> (ReplySender<T>, Reply<T>) {
    let owed = Arc::new(Owed::default());
    let (sender, receiver) = oneshot::channel();
    (ReplySender { owed: Arc::clone(&owed), answer: sender }, Reply { owed, answer: receiver })
}

impl<T> Reply<T> {
    /// The answer, or why there is none. Cancel safe, until it is ready.
    pub async fn wait(&mut self) -> Result<T, RequestError> {
        (&mut self.answer).await.unwrap_or_else(|_| Err(lost()))
    }

    /// [`Reply::wait`] for threads outside an async runtime.
    pub fn blocking_wait(mut self) -> Result<T, RequestError> {
        let (_, nobody) = oneshot::channel();
        let answer = std::mem::replace(&mut self.answer, nobody);
        // The drop at the end cancels nothing: the request has been answered by then.
        answer.blocking_recv().unwrap_or_else(|_| Err(lost()))
    }

    /// Cancels what does not run already, and returns what was used, which from now on does not change.
    pub fn close(&self) -> Usage {
        self.owed.close()
    }

    /// The lane's count, for whoever looks at it when this reply is gone.
    pub fn count(&self) -> Arc<dyn Counted> {
        self.owed.clone()
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.owed.close();
    }
}

impl<T> ReplySender<T> {
    /// So many tokens are about to run, and are owed from now on. False, and nothing is owed, if nobody waits any more.
    pub(crate) fn owe(&self, num_tokens: usize) -> bool {
        let open = |state: u64| (state & CLOSED == 0).then_some(state + num_tokens as u64);
        self.owed.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.owed.0.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Whoever no longer listens has closed what is owed.
    pub(crate) fn send(self, answer: Result<T, RequestError>) {
        let _ = self.answer.send(answer);
    }
}

impl Owed {
    fn close(&self) -> Usage {
        Self::usage_of(self.0.fetch_or(CLOSED, Ordering::AcqRel))
    }

    fn usage_of(state: u64) -> Usage {
        let owed = state & !CLOSED;
        Usage { prompt_tokens: u32::try_from(owed).unwrap_or(u32::MAX), ..Usage::default() }
    }
}

impl Counted for Owed {
    fn counted(&self) -> Usage {
        Self::usage_of(self.0.load(Ordering::Acquire))
    }
}

fn lost() -> RequestError {
    RequestError::Step("the engine stopped before the text was read".into())
}
