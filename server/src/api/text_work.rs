//! Text work off the async threads, a bounded number at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::errors::{ApiError, ErrorKind};

#[derive(Debug)]
pub(crate) struct TextWork {
    permits: Arc<Semaphore>,
}

impl TextWork {
    pub(crate) fn new(most: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(most.max(1))) }
    }

    /// Waits for a turn and runs `work`. The turn is taken until the work ends, even if nobody waits for it any more.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| failed())?;
        let worked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        worked.await.unwrap_or_else(|_| {
            // What a panic says may quote the text.
            tracing::error!("text work panicked");
            Err(failed())
        })
    }
}

fn failed() -> ApiError {
    ApiError::new(ErrorKind::Internal, "The server failed on this request.")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_whose_caller_left_still_counts() {
        let texts = TextWork::new(1);
        let (release, released) = sync_channel(1);
        let left = texts.run(move || Ok(released.recv().is_ok())).now_or_never();
        assert!(left.is_none());
        assert_eq!(texts.permits.available_permits(), 0);
        release.send(()).unwrap();
        assert_eq!(texts.run(|| Ok(2)).await, Ok(2));
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_work_only() {
        let texts = TextWork::new(1);
        let panicked: Result<(), ApiError> = texts.run(|| panic!("for the test")).await;
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(texts.run(|| Ok(1)).await, Ok(1));
    }
}
