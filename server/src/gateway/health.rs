//! Whether a replica gets anywhere, read from its own step counter and not from what it says of itself.

use std::time::Duration;

use super::replica::{Accepting, Load};

/// A replica with work that finishes no step for this long is not ready.
pub const STALLED_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// It has work and makes no progress; it is ready again at the next finished step.
    Stalled,
    /// It takes no more requests.
    Closed,
}

/// What was seen of a replica so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    steps: u64,
    /// Since when it was seen with work and without a finished step.
    waiting_since: Option<Duration>,
}

impl Progress {
    pub fn observe(&mut self, now: Duration, load: &Load) -> Health {
        if load.accepting == Accepting::No {
            return Health::Closed;
        }
        if load.steps != self.steps || !load.has_work() {
            self.steps = load.steps;
            self.waiting_since = load.has_work().then_some(now);
            return Health::Ready;
        }
        let since = *self.waiting_since.get_or_insert(now);
        match now.saturating_sub(since) >= STALLED_AFTER {
            true => Health::Stalled,
            false => Health::Ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn working(steps: u64) -> Load {
        Load { running_requests: 1, steps, ..Load::default() }
    }

    #[test]
    fn work_without_a_step_for_two_seconds_is_not_ready_until_the_next_step() {
        let mut progress = Progress::default();
        assert_eq!(progress.observe(SECOND, &working(5)), Health::Ready);
        assert_eq!(progress.observe(3 * SECOND - Duration::from_nanos(1), &working(5)), Health::Ready);
        assert_eq!(progress.observe(3 * SECOND, &working(5)), Health::Stalled);
        assert_eq!(progress.observe(4 * SECOND, &working(6)), Health::Ready);
        assert_eq!(progress.observe(5 * SECOND, &working(6)), Health::Ready);
    }

    #[test]
    fn an_idle_replica_is_ready_however_long_nobody_looked() {
        let mut progress = Progress::default();
        let idle = Load { steps: 5, ..Load::default() };
        assert_eq!(progress.observe(SECOND, &idle), Health::Ready);
        assert_eq!(progress.observe(100 * SECOND, &idle), Health::Ready);
        assert_eq!(progress.observe(200 * SECOND, &working(5)), Health::Ready, "its first step has only begun");
    }

    #[test]
    fn a_closed_replica_is_never_ready() {
        let closed = Load { accepting: Accepting::No, ..working(1) };
        assert_eq!(Progress::default().observe(SECOND, &closed), Health::Closed);
    }
}
