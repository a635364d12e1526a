//! How long to wait before a worker that ended is started again.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffBounds {
    /// After the first end; doubles with each that follows soon.
    pub first: Duration,
    pub longest: Duration,
}

/// A worker that lived for the longest pause has proven itself: after it, pauses begin anew.
#[derive(Debug)]
pub struct Backoff {
    bounds: BackoffBounds,
    next: Duration,
}

impl Backoff {
    pub fn new(bounds: BackoffBounds) -> Self {
        Self { bounds, next: bounds.first }
    }

    /// The pause after a worker that lived for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= self.bounds.longest {
            self.next = self.bounds.first;
        }
        let pause = self.next.min(self.bounds.longest);
        self.next = pause.saturating_mul(2);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_worker_that_lived() {
        let [second, minute] = [1, 60].map(Duration::from_secs);
        let mut backoff = Backoff::new(BackoffBounds { first: second, longest: 5 * second });
        let pauses = |backoff: &mut Backoff, lived| [(); 4].map(|()| backoff.after(lived).as_secs());
        assert_eq!(pauses(&mut backoff, Duration::ZERO), [1, 2, 4, 5]);
        assert_eq!(backoff.after(4 * second), 5 * second);
        assert_eq!(backoff.after(minute), second);
        assert_eq!(backoff.after(Duration::ZERO), 2 * second);
    }
}
