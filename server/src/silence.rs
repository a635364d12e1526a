//! How long nothing was heard.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Rings when nothing was heard for a while. Whoever hears something only notes when: of a stream something is heard at every
/// token, and setting a timer each time would cost more than the token.
#[derive(Debug)]
pub(crate) struct Silence {
    longest: Duration,
    since: Instant,
    /// Set to an instant at which it may be too long.
    alarm: Pin<Box<Sleep>>,
}

/// Longer than anything runs; a sum with it is still an instant.
const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

impl Silence {
    pub(crate) fn new(longest: Duration) -> Self {
        let longest = longest.min(NEVER);
        Self { longest, since: Instant::now(), alarm: Box::pin(sleep(longest)) }
    }

    /// It begins anew.
    pub(crate) fn heard(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when it has lasted for too long, and then begins anew.
    pub(crate) fn poll_too_long(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.alarm.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let is_too_long = now >= self.since + self.longest;
            if is_too_long {
                self.since = now;
            }
            self.alarm.as_mut().reset(self.since + self.longest);
            if is_too_long {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// See [`Silence::poll_too_long`]. Cancel-safe.
    pub(crate) async fn too_long(&mut self) {
        poll_fn(|context| self.poll_too_long(context)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_rings_the_longest_silence_after_the_last_word_and_again_after_as_much() {
        let (mut silence, began) = (Silence::new(LONGEST), Instant::now());
        for _ in 0..5 {
            advance(LONGEST / 2).await;
            silence.heard();
        }
        silence.too_long().await;
        assert_eq!(began.elapsed().as_secs(), 35);
        silence.too_long().await;
        assert_eq!(began.elapsed().as_secs(), 45);
    }

    #[tokio::test(start_paused = true)]
    async fn one_without_end_never_rings() {
        let mut silence = Silence::new(Duration::MAX);
        silence.heard();
        assert!(tokio::time::timeout(1000 * LONGEST, silence.too_long()).await.is_err());
    }
}
