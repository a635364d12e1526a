//! How long nothing was heard.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// Rings when nothing was heard for a while: for what is stated, or up to a quarter more. Whoever hears something only
/// notes it: of a stream something is heard at every token, and setting a timer each time would cost more than the
/// token.
#[derive(Debug)]
pub(crate) struct Silence {
    part: Duration,
    /// Ends of parts since something was heard; the first may have come at once.
    ends: u32,
    end_of_part: Pin<Box<Sleep>>,
}

/// A silence is measured in parts.
const PARTS: u32 = 4;

impl Silence {
    pub(crate) fn new(longest: Duration) -> Self {
        let part = longest / PARTS;
        // It begins where a part ends.
        Self { part, ends: 1, end_of_part: Box::pin(sleep(part)) }
    }

    /// It begins anew.
    pub(crate) fn heard(&mut self) {
        self.ends = 0;
    }

    /// Ready when it has lasted for too long, and then begins anew.
    pub(crate) fn poll_too_long(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.end_of_part.as_mut().poll(context));
            self.end_of_part.set(sleep(self.part));
            self.ends += 1;
            if self.ends > PARTS {
                self.ends = 1;
                return Poll::Ready(());
            }
        }
    }

    /// See [`Silence::poll_too_long`]. Cancel-safe.
    pub(crate) async fn too_long(&mut self) {
        poll_fn(|context| self.poll_too_long(context)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance, timeout};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(8);

    #[tokio::test(start_paused = true)]
    async fn it_rings_a_quarter_late_at_most_and_never_early() {
        for heard_after in [0, 1, 1_999, 2_001, 6_500].map(Duration::from_millis) {
            let mut silence = Silence::new(LONGEST);
            for _ in 0..3 {
                assert!(timeout(heard_after, silence.too_long()).await.is_err());
                silence.heard();
            }
            let last_word = Instant::now();
            silence.too_long().await;
            let lasted = last_word.elapsed();
            assert!(lasted >= LONGEST && lasted <= LONGEST * 5 / 4 + Duration::from_millis(10), "{lasted:?}");
            let rang = Instant::now();
            silence.too_long().await;
            assert_eq!(rang.elapsed().as_secs(), LONGEST.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_without_end_never_rings() {
        let mut silence = Silence::new(Duration::MAX);
        advance(1_000 * LONGEST).await;
        assert!(timeout(LONGEST, silence.too_long()).await.is_err());
    }
}
